"""`compress export`: a checkpoint becomes a bundle, after each of its graphs proved to say what torch says.

Everything is written into a staging folder and loaded from there by the runtime that ships; the bundle takes its place
only when the parity check has passed. What is measured on the way (parity, quality, latency) goes into bundle.json.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from chitchat.architectures.registry import geometry_of
from chitchat.data.dataset import open_dataset
from chitchat.errors import BadInput
from chitchat.lineage import Stage, identity, read_lineage
from chitchat.system.folder import check_output, staged_folder
from export.bundle import write_manifest, write_tokenizer
from export.genai import check_genai, write_genai
from export.options import ExportOptions
from export.parity import parity_prompts
from export.source import Source, open_source
from export.variants import CUDA_GRAPH, ExportContext, Variant, manifest_of, write_cpu, write_cuda, write_portable
from serve.bundle import GRAPH, Bundle, Manifest


def export(
    checkpoint: str, out: Path, data: Path | None = None, options: ExportOptions | None = None
) -> dict[str, Any]:
    """Export `checkpoint` to the bundle `out`. With `data`, parity runs on held-out prompts and quality is measured.

    Gives the figures. Raises BadInput for what cannot be exported, and for an int8 cache without `data`, and WorkFailed
    when parity fails; `out` is then as it was before.
    """
    started, out, options = time.monotonic(), Path(out), options or ExportOptions()
    if options.kv == "int8" and data is None:
        raise BadInput("--kv int8: its scales are calibrated on conversations; give --data")
    check_output(out, "bundle")
    optimum = _find_optimum(options.portable_python) if options.target == "portable" else ""
    chat = open_dataset(data) if data is not None else None
    source = open_source(checkpoint, chat, options.dialogue, options.tokenizer)
    _check_scheme(options.target, source)
    with staged_folder(out, "bundle") as staging:
        geometry = geometry_of(source.model)
        prompts, origin = parity_prompts(chat, geometry.vocab, geometry.context, seed=options.seed)
        work = ExportContext(source, staging, chat, prompts, origin, options, optimum)
        manifest = _written(work)
        write_tokenizer(source.tokenizer, staging)
        if options.genai:
            _add_genai(work, manifest)
        stage = Stage(
            "export",
            asdict(options),
            options.seed,
            parent_sha256=identity(Path(checkpoint)) if Path(checkpoint).is_dir() else None,
            data_sha256=chat.identity if chat else None,
            metrics={"parity": _first(manifest.parity)["figures"], **manifest.quality},
        )
        earlier = read_lineage(Path(checkpoint)) if Path(checkpoint).is_dir() else []
        write_manifest(replace(manifest, lineage=(*earlier, asdict(stage))), staging)
        bundle = Bundle.open(staging)
    return _figures(bundle, time.monotonic() - started)


def _find_optimum(portable_python: str | None) -> str:
    from export.portable import find_optimum

    return find_optimum(portable_python)


def _check_scheme(target: str, source: Source) -> None:
    if target == "portable" and source.scheme != "fp32":
        raise BadInput(
            f"--target portable: {source.name} is quantized ({source.scheme}), and standard ONNX has no such weights; "
            "give the float checkpoint, or use --target cpu"
        )


def _written(work: ExportContext) -> Manifest:
    """Write the graph of each target; quality and latency are those of the first one."""
    targets = work.options.targets
    variants: dict[str, Variant] = {}
    if "cpu" in targets:
        variants["cpu"] = write_cpu(work)
    if "cuda" in targets:
        variants["cuda"] = write_cuda(work, CUDA_GRAPH if len(targets) > 1 else GRAPH)
    if "portable" in targets:
        variants["portable"] = write_portable(work)
    return replace(
        manifest_of(work.source, {target: variant.graph for target, variant in variants.items()}),
        parity={target: variant.parity for target, variant in variants.items()},
        quality=_first(variants).quality,
        latency=_first(variants).latency,
    )


def _add_genai(work: ExportContext, manifest: Manifest) -> None:
    bundle = Bundle(work.folder, manifest)
    write_genai(bundle, work.source.tokenizer)
    check_genai(bundle, work.prompts)


def _first(values: Any) -> Any:
    return next(iter(values.values()))


def _figures(bundle: Bundle, seconds: float) -> dict[str, Any]:
    manifest = bundle.manifest
    target, parity = next(iter(manifest.parity.items()))
    return {
        "target": "+".join(manifest.graphs),
        "scheme": manifest.scheme,
        "parameters": manifest.parameters,
        "weight_bytes": manifest.graphs[target].weight_bytes,
        "kv_dtype": manifest.graphs[target].kv_dtype,
        "file_mb": round(bundle.file_bytes / 1e6, 3),
        "parity": dict(parity["figures"]),
        "parity_provider": parity["provider"],
        "parity_prompts": dict(parity["prompts"]),
        **manifest.quality,
        **{name: value for name, value in manifest.latency.items() if name.endswith("_ms")},
        "seconds": round(seconds, 2),
    }
