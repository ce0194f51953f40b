"""One graph of a bundle: written, proven against torch, measured through the engine. The stage puts them together.

The cuda graph is proven on CUDA where a device is, else on onnxruntime's CPU provider, which computes the same
operators; bundle.json names the provider, so that nobody takes the one for the other.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from chitchat.architectures.registry import geometry_of
from chitchat.data.dataset import ChatData
from chitchat.score import score
from compress.calibrate.batches import calibration_sequences
from compress.calibrate.ranges import calibrate_kv
from export.bundle import EXTERNAL_DATA_BYTES, write_graph
from export.graph.builder import build_graph, graph_spec
from export.graph.spec import GraphSpec, graph_names
from export.options import ExportOptions
from export.parity import Parity, changed_weights, check_parity, grade_of
from export.source import Source
from export.weights import GraphWeights, half_weights, with_kv_scales
from serve.bundle import GRAPH, Bundle, Graph, Manifest
from serve.cpu import EXACT_BYTE_SUMS, cpu_features
from serve.engine import Engine
from serve.graph_selection import PROVIDERS, find_providers
from serve.options import SamplingOptions

CUDA_GRAPH = "model.cuda.onnx"  # beside a cpu graph; alone it is model.onnx
QUALITY_TOKENS = 20_000  # a record of what was shipped; `compress eval` scores all of the held-out text
LATENCY_PROMPT = 32
LATENCY_STEPS = 32
LATENCY_REPEATS = 5


@dataclass(frozen=True)
class ExportContext:
    """What an export works on: the source, the folder that becomes the bundle, and what it is proven with."""

    source: Source
    folder: Path
    chat: ChatData | None
    prompts: Sequence[Sequence[int]]
    origin: dict[str, int]
    options: ExportOptions
    optimum: str = ""  # the interpreter that has it, for a portable graph


@dataclass(frozen=True)
class Variant:
    """A graph that stands in the folder, and what was measured of it; the fields of `Manifest`."""

    graph: Graph
    parity: Mapping[str, Any]
    quality: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)


def write_cpu(work: ExportContext) -> Variant:
    """Write our graph for the CPU and measure it through the engine. Raises WorkFailed when parity fails.

    The quality of an int8 cache stands beside that of a float32 one, which is written for it and thrown away.
    """
    source, weights = work.source, work.source.weights
    compared: dict[str, Any] = {}
    if work.options.kv == "int8":
        assert work.chat is not None, "an int8 cache needs conversations to calibrate on"
        with tempfile.TemporaryDirectory() as folder:
            other = replace(work, folder=Path(folder), options=replace(work.options, kv="float32"))
            plain = _write(other, weights, "cpu", GRAPH)
            compared = _prefixed(quality_of(plain.engine(), work), "float32_kv")
        sequences = calibration_sequences(
            work.chat.windows("train", source.model.config.max_position_embeddings), seed=work.options.seed
        )
        weights = with_kv_scales(weights, calibrate_kv(source.model, sequences))
    written = _write(work, weights, "cpu", GRAPH)
    parity = _prove(written, work)
    engine = written.engine()
    return Variant(written.graph, _record(parity, "cpu"), quality_of(engine, work) | compared, measure_latency(engine))


def write_cuda(work: ExportContext, file: str = GRAPH) -> Variant:
    """Write our float16 graph for CUDA, and prove it on what there is: CUDA, else the CPU provider.

    Without a CUDA device there is no latency, and bundle.json's parity names the provider that computed it. Beside a
    cpu graph (`file` says so) quality and latency are that one's.
    """
    written = _write(work, half_weights(work.source.weights), "cuda", file)
    device = "cuda" if PROVIDERS["cuda"] in find_providers() else "cpu"
    written = replace(written, device=device)
    parity = _record(_prove(written, work), device)
    if file != GRAPH:
        return Variant(written.graph, parity)
    engine = written.engine()
    latency = measure_latency(engine) if device == "cuda" else {}
    return Variant(written.graph, parity, quality_of(engine, work), latency)


def write_portable(work: ExportContext) -> Variant:
    """Write optimum's graph and prove it through optimum's runtime."""
    from export.portable import check_portable, export_portable

    source = work.source
    exported = export_portable(source.model, source.tokenizer, work.folder, work.prompts, work.optimum)
    parity = check_portable(exported, source.model, work.prompts, work.origin)
    parity.require()
    graph = Graph(GRAPH, exported.inputs, exported.outputs, source.weights.nbytes)
    return Variant(graph, _record(parity, "cpu") | {"versions": exported.versions})


@dataclass(frozen=True)
class _Written:
    """A graph file before it is proven. `device` is where the engine runs it, whatever it was made for."""

    source: Source
    spec: GraphSpec
    weights: GraphWeights
    path: Path
    graph: Graph
    device: str = "cpu"

    def engine(self, threads: int | None = None) -> Engine:
        """Load it as the graph for `device` of an unfinished bundle."""
        manifest = manifest_of(self.source, {self.device: self.graph})
        return Engine(Bundle(self.path.parent, manifest), threads, device=self.device)


def _write(work: ExportContext, weights: GraphWeights, target: str, file: str) -> _Written:
    source = work.source
    kv = work.options.kv if target == "cpu" else "float32"
    spec = graph_spec(source.model.config, weights.formats, target=target, kv=kv)
    # onnxruntime-genai's graph has the same weights, so they lie in a file of their own, however small they are.
    above = 0 if work.options.genai and target == "cpu" else EXTERNAL_DATA_BYTES
    path = write_graph(build_graph(spec, weights), work.folder, file, above)
    # A checkpoint that was made for another kernel than the exact one says so.
    needs = EXACT_BYTE_SUMS if source.kernel == "u8s8" and target == "cpu" else ()
    names = graph_names(spec.geometry.layers)
    return _Written(source, spec, weights, path, Graph(file, *names, weights.nbytes, spec.kv_dtype, needs))


def _prove(written: _Written, work: ExportContext) -> Parity:
    """Measure the engine against torch. Raises WorkFailed for a graph that says something else."""
    # One thread: it and torch take turns, and spinning threads of the one would stall the other (7 times slower).
    engine = written.engine(threads=1)
    parity = check_parity(engine, work.source.model, work.prompts, work.origin, grade_of(written.spec))
    parity.figures["weights_changed"] = changed_weights(written.path, written.weights)
    parity.require()
    return parity


def manifest_of(source: Source, graphs: Mapping[str, Graph]) -> Manifest:
    """The manifest before anything is measured."""
    return Manifest(
        graphs=graphs,
        scheme=source.scheme,
        geometry=geometry_of(source.model),
        parameters=source.parameters,
        dialogue=source.dialogue.as_json(),
        sampling=asdict(SamplingOptions()),
        cpu_features=cpu_features(),
        lineage=(),
        parity={},
        quality={},
        latency={},
    )


def _record(parity: Parity, device: str) -> dict[str, Any]:
    """The object that bundle.json holds under `parity` for one target: figures, limits, and what ran the graph."""
    return parity.as_json() | {"provider": PROVIDERS[device]}


def quality_of(engine: Engine, work: ExportContext) -> dict[str, Any]:
    """Score held-out conversations through the engine; {} without a data set."""
    if work.chat is None:
        return {}
    windows = work.chat.windows("validation", engine.context)
    return score(engine.scorer(), windows, max_tokens=QUALITY_TOKENS).as_json()


def _prefixed(figures: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The figures that a cache can change, under names of their own."""
    return {f"{prefix}_{name}": figures[name] for name in ("perplexity", "bits_per_byte", "token_accuracy")}


def measure_latency(engine: Engine) -> dict[str, Any]:
    """Time a short run, batch 1: `ttft_ms` of a prompt and `tpot_ms` of a further token, medians."""
    prompt = [token % engine.geometry.vocab for token in range(min(LATENCY_PROMPT, engine.context // 2))]
    steps = min(LATENCY_STEPS, engine.context - len(prompt))
    first, further = [], []
    for repeat in range(1 + LATENCY_REPEATS):  # the first one warms up
        engine.reset()  # else the tokens of the last round are reused
        marks = [time.perf_counter()]
        engine.prefill(prompt)
        marks.append(time.perf_counter())
        for index in range(steps):
            engine.step(prompt[index % len(prompt)])
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
