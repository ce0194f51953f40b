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
from export.parity import parity_prompts
from export.source import Source, open_source
from export.variants import CUDA_GRAPH, ExportContext, Variant, manifest_of, write_cpu, write_cuda, write_portable
from serve.bundle import GRAPH, Bundle, Manifest

TARGETS = {"cpu": ("cpu",), "cuda": ("cuda",), "cpu+cuda": ("cpu", "cuda"), "portable": ("portable",)}
KV = ("float32", "int8")


def export(
    checkpoint: str,
    out: Path,
    target: str = "cpu",
    data: Path | None = None,
    seed: int = 0,
    dialogue: str | None = None,
    kv: str = "float32",
    genai: bool = False,
    tokenizer: str | None = None,
    portable_python: str | None = None,
) -> dict[str, Any]:
    """Export `checkpoint` to the bundle `out`. With `data`, parity runs on held-out prompts and quality is measured.

    `dialogue` is the family of a checkpoint that does not say its own; `kv` "int8" stores the cpu graph's cache in
    bytes, calibrated on `data`; `genai` adds what onnxruntime-genai reads; `tokenizer` is that of a checkpoint whose
    vocabulary lies elsewhere; `portable_python` is the interpreter that has optimum, for the target "portable"
    (default: that of `make portable`). Gives the figures. Raises BadInput for what cannot be exported and WorkFailed
    when parity fails; `out` is then as it was before.
    """
    started, out = time.monotonic(), Path(out)
    _check_options(target, kv, genai, data)
    out = Path(out)
    check_output(out, "bundle")
    optimum = _find_optimum(portable_python) if target == "portable" else ""
    chat = open_dataset(data) if data is not None else None
    source = open_source(checkpoint, chat, dialogue, tokenizer)
    _check_scheme(target, source)
    with staged_folder(out, "bundle") as staging:
        geometry = geometry_of(source.model)
        prompts, origin = parity_prompts(chat, geometry.vocab, geometry.context, seed=seed)
        work = ExportContext(source, staging, chat, prompts, origin, seed, kv, shared_weights=genai, optimum=optimum)
        manifest = _written(work, TARGETS[target])
        write_tokenizer(source.tokenizer, staging)
        if genai:
            _add_genai(work, manifest)
        stage = Stage(
            "export",
            {"target": target, "kv": kv, "genai": genai},
            seed,
            parent_sha256=identity(Path(checkpoint)) if Path(checkpoint).is_dir() else None,
            data_sha256=chat.identity if chat else None,
            metrics={"parity": _first(manifest.parity)["figures"], **manifest.quality},
        )
        earlier = read_lineage(Path(checkpoint)) if Path(checkpoint).is_dir() else []
        write_manifest(replace(manifest, lineage=(*earlier, asdict(stage))), staging)
        bundle = Bundle.open(staging)
    return _figures(bundle, time.monotonic() - started)


def _find_optimum(python: str | None) -> str:
    from export.portable import find_optimum

    return find_optimum(python)


def _check_options(target: str, kv: str, genai: bool, data: Path | None) -> None:
    if target not in TARGETS:
        raise BadInput(f"--target {target}: no such target; give one of {', '.join(TARGETS)}")
    if kv not in KV:
        raise BadInput(f"--kv {kv}: there is no such cache; give one of {', '.join(KV)}")
    if kv == "int8" and "cpu" not in TARGETS[target]:
        raise BadInput(f"--kv int8 --target {target}: only the cpu graph has such a cache; give --target cpu")
    if kv == "int8" and data is None:
        raise BadInput("--kv int8: its scales are calibrated on conversations; give --data")
    if genai and "cpu" not in TARGETS[target]:
        raise BadInput(f"--genai --target {target}: onnxruntime-genai takes our cpu graph; give --target cpu")


def _check_scheme(target: str, source: Source) -> None:
    if target == "portable" and source.scheme != "fp32":
        raise BadInput(
            f"--target portable: {source.name} is quantized ({source.scheme}), and standard ONNX has no such weights; "
            "give the float checkpoint, or use --target cpu"
        )


def _written(work: ExportContext, targets: tuple[str, ...]) -> Manifest:
    """Write the graph of each target; quality and latency are those of the first one."""
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
