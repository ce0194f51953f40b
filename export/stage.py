"""`compress export`: a checkpoint becomes a bundle, after the graph proved to say what torch says.

Everything is written into a staging folder and loaded from there by the runtime that ships; the bundle takes its place
only when the parity check has passed. What is measured on the way (parity, quality, latency) goes into bundle.json.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from chitchat.checkpoint import check_vocabulary, load_model, load_tokenizer, read_config
from chitchat.data.dataset import ChatData, open_dataset
from chitchat.dialogue import Dialogue, open_dialogue
from chitchat.errors import BadInput
from chitchat.folder import check_output, staged_folder
from chitchat.lineage import Stage, identity, read_lineage
from chitchat.score import score
from compress.calibration import check_same_tokenizer
from compress.quantize.checkpoint import load_quantized
from export.bundle import write_graph, write_manifest, write_tokenizer
from export.graph import build_graph, geometry_of, graph_names, graph_spec
from export.parity import Parity, changed_weights, check_parity, parity_prompts
from export.portable import check_portable, export_portable
from export.weights import GraphWeights, float_weights, quantized_weights
from serve.bundle import GRAPH, Bundle, Graph, Manifest
from serve.engine import Engine
from serve.processors import cpu_features
from serve.sampler import SamplingOptions

TARGETS = ("cpu", "portable")
QUALITY_TOKENS = 20_000  # a record of what was shipped; `compress eval` scores all of the held-out text
LATENCY_PROMPT = 32
LATENCY_STEPS = 32
LATENCY_REPEATS = 5


@dataclass(frozen=True)
class Source:
    """A checkpoint that is to be exported. `model` is in float32: of a quantized one, what its integers stand for."""

    name: str
    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    dialogue: Dialogue
    scheme: str
    weights: GraphWeights

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def export(
    checkpoint: str,
    out: Path,
    target: str = "cpu",
    data: Path | None = None,
    seed: int = 0,
    dialogue: str | None = None,
) -> dict[str, Any]:
    """Export `checkpoint` to the bundle `out`. With `data`, parity runs on held-out prompts and quality is measured.

    `dialogue` is the family of a checkpoint that does not say its own. Gives the figures. Raises BadInput for what
    cannot be exported and WorkFailed when parity fails; `out` is then as it was before.
    """
    started = time.monotonic()
    _check_target(target)
    check_output(out, "bundle")
    chat = open_dataset(data) if data is not None else None
    source = open_source(checkpoint, chat, dialogue)
    if target == "portable" and source.scheme != "fp32":
        raise BadInput(
            f"--target portable: {checkpoint} is quantized ({source.scheme}), and standard ONNX has no such weights; "
            "give the float checkpoint, or use --target cpu"
        )
    with staged_folder(out, "bundle") as staging:
        write = _write_portable if target == "portable" else _write_cpu
        manifest = write(source, staging, chat, seed)
        stage = Stage(
            "export",
            {"target": target},
            seed,
            parent_sha256=identity(Path(checkpoint)) if Path(checkpoint).is_dir() else None,
            data_sha256=chat.identity if chat else None,
            metrics={"parity": manifest.parity[target]["figures"], **manifest.quality},
        )
        earlier = read_lineage(Path(checkpoint)) if Path(checkpoint).is_dir() else []
        write_manifest(replace(manifest, lineage=(*earlier, asdict(stage))), staging)
        bundle = Bundle.open(staging)
    return _figures(bundle, time.monotonic() - started)


def open_source(checkpoint: str, chat: ChatData | None, family: str | None = None) -> Source:
    """Load a float or quantized checkpoint. Raises BadInput when the data set was made with another tokenizer."""
    config = read_config(checkpoint)
    if "quantization_config" in config:
        stored = load_quantized(checkpoint)
        model, tokenizer = stored.dequantized_model(), stored.tokenizer
        scheme = str(config["quantization_config"]["scheme"])
        weights = quantized_weights(stored.blocks, stored.floats, tied=model.config.tie_word_embeddings)
    else:
        model, tokenizer, scheme = load_model(checkpoint), load_tokenizer(checkpoint), "fp32"
        weights = float_weights(model)
    check_vocabulary(tokenizer, config, checkpoint)
    if chat is not None:
        check_same_tokenizer(chat, tokenizer, checkpoint)
    dialogue = open_dialogue(tokenizer, checkpoint, family) if family or not chat else chat.dialogue
    return Source(checkpoint, model, tokenizer, dialogue, scheme, weights)


def measure_latency(engine: Engine) -> dict[str, Any]:
    """Time a short run, batch 1: `ttft_ms` of a prompt and `tpot_ms` of a further token, medians."""
    prompt = [token % engine.geometry.vocab for token in range(min(LATENCY_PROMPT, engine.context // 2))]
    steps = min(LATENCY_STEPS, engine.context - len(prompt))
    first, further = [], []
    for repeat in range(1 + LATENCY_REPEATS):  # the first one warms up
        marks = [time.perf_counter()]
        engine.prefill(prompt)
        marks.append(time.perf_counter())
        for place in range(steps):
            engine.step(prompt[place % len(prompt)])
            marks.append(time.perf_counter())
        if repeat:
            first.append(marks[1] - marks[0])
            further += np.diff(marks[1:]).tolist()
    return {
        "prompt_tokens": len(prompt),
        "ttft_ms": round(float(np.median(first)) * 1e3, 3),
        "tpot_ms": round(float(np.median(further)) * 1e3, 3),
        "threads": engine.threads,
    }


def _check_target(target: str) -> None:
    if target == "cuda":
        raise BadInput("--target cuda: there is no fp16 graph for CUDA yet; use --target cpu or --target portable")
    if target not in TARGETS:
        raise BadInput(f"--target {target}: no such target; give one of {', '.join(TARGETS)}")


def _write_cpu(source: Source, staging: Path, chat: ChatData | None, seed: int) -> Manifest:
    """Write our graph and measure it through the engine."""
    spec = graph_spec(source.model.config, source.weights.blocks)
    graph = write_graph(build_graph(spec, source.weights), staging)
    write_tokenizer(source.tokenizer, staging)
    inputs, outputs = graph_names(spec.geometry.layers)
    manifest = _manifest(source, {"cpu": Graph(GRAPH, inputs, outputs, source.weights.nbytes)})
    bundle = Bundle(staging, manifest)
    prompts, origin = parity_prompts(chat, spec.geometry.vocab, spec.geometry.context, seed=seed)
    # One thread: it and torch take turns, and spinning threads of the one would stall the other (7 times slower).
    parity = check_parity(Engine(bundle, threads=1), source.model, prompts, origin, quantized=bool(spec.blocks))
    parity.figures["weights_changed"] = changed_weights(graph, source.weights)
    parity.require()
    engine = Engine(bundle)
    quality: dict[str, Any] = {}
    if chat is not None:
        windows = chat.windows("validation", spec.geometry.context)
        quality = score(engine.scorer(), windows, max_tokens=QUALITY_TOKENS).as_json()
    return replace(manifest, parity={"cpu": parity.as_json()}, quality=quality, latency=measure_latency(engine))


def _write_portable(source: Source, staging: Path, chat: ChatData | None, seed: int) -> Manifest:
    """Write optimum's graph and prove it through optimum's runtime."""
    inputs, outputs = export_portable(source.model, source.tokenizer, staging)
    geometry = geometry_of(source.model.config)
    prompts, origin = parity_prompts(chat, geometry.vocab, geometry.context, seed=seed)
    parity: Parity = check_portable(staging, source.model, prompts, origin)
    parity.require()
    manifest = _manifest(source, {"portable": Graph(GRAPH, inputs, outputs, source.weights.nbytes)})
    return replace(manifest, parity={"portable": parity.as_json()})


def _manifest(source: Source, graphs: dict[str, Graph]) -> Manifest:
    """The manifest before anything is measured."""
    config: GPT2Config = source.model.config
    return Manifest(
        graphs=graphs,
        scheme=source.scheme,
        geometry=geometry_of(config),
        parameters=source.parameters,
        dialogue=source.dialogue.as_json(),
        sampling=asdict(SamplingOptions()),
        cpu_features=cpu_features(),
        lineage=(),
        parity={},
        quality={},
        latency={},
    )


def _figures(bundle: Bundle, seconds: float) -> dict[str, Any]:
    manifest = bundle.manifest
    target, graph = next(iter(manifest.graphs.items()))
    return {
        "target": target,
        "scheme": manifest.scheme,
        "parameters": manifest.parameters,
        "weight_bytes": graph.weight_bytes,
        "file_mb": round(bundle.file_bytes / 1e6, 3),
        "parity": dict(manifest.parity[target]["figures"]),
        "parity_prompts": dict(manifest.parity[target]["prompts"]),
        **manifest.quality,
        **{name: value for name, value in manifest.latency.items() if name.endswith("_ms")},
        "seconds": round(seconds, 2),
    }
