"""The stages as functions: what the command line runs, for Python.

    data = build_dataset("talks.jsonl", "data")
    train(data, "teacher", max_minutes=5)
    small = prune("teacher", data, keep=0.5)
    bundle = export(quantize(small, data, scheme="w4"), data=data)

Sources are paths (str, `Path`, or a result of a stage before) or hub ids. Without `out` the result stands beside its
source: see `chitchat_compress.results.out_folder`. Progress bars are shown on stderr where that is a terminal; what was
done (the stages of a recipe) goes to the logger "chitchat_compress" at level INFO, and what a user must know (integers
that are slower than float32 here) as a warning, whose figures are in the result; nothing is written to stdout. All
raise `BadInput` for what cannot be used and `WorkFailed` where the work failed; the folder `out` is then as it was
before.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.evaluate.options import EvalOptions
from bench.run.options import BenchOptions
from chitchat.data.options import DataOptions
from chitchat.options import make_options
from chitchat.system.notices import log
from chitchat.training.options import TrainOptions
from chitchat_compress.keywords import takes
from chitchat_compress.options import GenerateOptions, InfoOptions, RunOptions, ServeOptions
from chitchat_compress.results import Report, Result, out_folder
from compress.prune.options import PruneOptions
from compress.quantize.options import QuantizeOptions
from export.options import ExportOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from bench.cost.probe import CostProbe
    from chitchat.data.dataset import ChatData
    from chitchat_compress.texts import Texts
    from serve.geometry import Geometry

PathLike = str | os.PathLike[str]


@takes(DataOptions)
def build_dataset(
    corpora: PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    *,
    options: DataOptions | None = None,
    **given: Any,
) -> Result:
    """Conversations → tokenised data set, split by conversation. Figures: those of data.json.

    `corpora` are files (.txt .json .jsonl .csv .tsv .pkl, each also .gz or .zst), installed corpora ("byu",
    "chatterbot:<language>") or data sets of the hub ("hf:NAME[:split]"), one or several.
    """
    options = make_options(DataOptions, options, given, "build_dataset")
    from chitchat.data.builder import build_dataset as build

    named = _texts(corpora)
    folder = out_folder(out, named[0] if named else "corpus", "data")
    return Result(folder, build(named, folder, options))


@takes(TrainOptions)
def train(
    data: PathLike,
    out: PathLike | None = None,
    *,
    options: TrainOptions | None = None,
    resume: bool = False,
    **given: Any,
) -> Result:
    """Data set → fine-tuned GPT-2 (the teacher), from scratch or from `init`.

    With `resume` a run of the same options that was killed goes on. Default `out`: `DATA-trained`.
    """
    options = make_options(TrainOptions, options, given, "train")
    from chitchat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()  # before the libraries are loaded: the minutes are the user's
    from chitchat.training.train import train as run

    folder = out_folder(out, data, "trained")
    return Result(folder, run(Path(data), folder, options, resume=resume, stopwatch=stopwatch))


@takes(PruneOptions)
def prune(
    checkpoint: PathLike,
    data: PathLike,
    out: PathLike | None = None,
    *,
    options: PruneOptions | None = None,
    resume: bool = False,
    **given: Any,
) -> Result:
    """Checkpoint → smaller checkpoint: cut, refitted, and healed by distillation from the unpruned one.

    Give a budget (`keep`, `max_mb`, `max_ms_per_token`) or a shape (`layers`, `width`, `ffn`, `vocab`, `context`).
    Default `out`: `CHECKPOINT-pruned`.
    """
    options = make_options(PruneOptions, options, given, "prune")
    from chitchat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()
    from compress.prune.stage import prune as run

    folder, spec = out_folder(out, checkpoint, "pruned"), os.fspath(checkpoint)
    probe = _cost_probe(spec, options) if options.has_budget else None
    return Result(folder, run(spec, Path(data), folder, options, resume=resume, cost_model=probe, stopwatch=stopwatch))


@takes(PruneOptions)
def plan_pruning(
    checkpoint: PathLike, data: PathLike, *, options: PruneOptions | None = None, **given: Any
) -> dict[str, Any]:
    """What a budget buys: `candidates`, the shapes that `prune` would try, measured here; nothing is cut or written."""
    options = make_options(PruneOptions, options, given, "plan_pruning")
    from compress.prune.stage import plan

    spec = os.fspath(checkpoint)
    return plan(spec, Path(data), options, _cost_probe(spec, options))


def _cost_probe(checkpoint: str, options: PruneOptions) -> "CostProbe":
    """What measures shapes in the engine that ships."""
    from bench.cost.probe import CostProbe

    return CostProbe.of(checkpoint, options.scheme, options.tokenizer)


def prune_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    data: "PathLike | ChatData",
    *,
    shape: "Geometry | Mapping[str, int] | None" = None,
    options: PruneOptions | None = None,
    **given: Any,
) -> "PreTrainedModel":
    """A transformers model in, a smaller transformers model out; nothing is written, and `model` stays as it is.

    The shape is `shape` (layers, width, ffn, context) or what the options of `prune` say, a budget `keep` among them;
    it is healed only where `heal_epochs` or `heal_minutes` ask for it. `data` must be in the ids of `tokenizer`. The
    tokens stay: for `vocab`, and for budgets of MB or ms, there is `prune`. Computed in float32 on the CPU.
    """
    from chitchat.data.dataset import ChatData, open_dataset
    from chitchat.options import require
    from compress.prune.stage import prune_loaded

    axes = dict(shape) if isinstance(shape, Mapping) else {} if shape is None else asdict(shape)
    wanted = {name: axes[name] for name in ("layers", "width", "ffn", "context") if name in axes}
    if options is None and "heal_minutes" not in given:
        given = {"heal_epochs": 0, **given}
    made = make_options(PruneOptions, options, {**wanted, **given}, "prune_model")
    for name in ("vocab", "max_mb", "max_ms_per_token", "teacher"):
        require(getattr(made, name) is None, name, getattr(made, name), "goes with prune, on checkpoints in folders")
    opened = data if isinstance(data, ChatData) else open_dataset(Path(data))
    return prune_loaded(model, tokenizer, opened, made)


@takes(QuantizeOptions)
def quantize(
    checkpoint: PathLike,
    data: PathLike,
    out: PathLike | None = None,
    *,
    options: QuantizeOptions | None = None,
    resume: bool = False,
    **given: Any,
) -> Result:
    """Checkpoint → checkpoint of blockwise integers, checked on held-out conversations.

    The figures `prompt_vs_fp32` and `decode_vs_fp32` say how many times as fast as float32 the integers are on this
    machine; below 1 is a warning. `resume` goes on with a fine-tune (kd). Default `out`: `CHECKPOINT-SCHEME`.
    """
    options = make_options(QuantizeOptions, options, given, "quantize")
    from chitchat.training.stopwatch import Stopwatch

    stopwatch = Stopwatch()
    from compress.quantize.stage import quantize as run

    folder = out_folder(out, checkpoint, options.scheme)
    figures = run(os.fspath(checkpoint), Path(data), folder, options, resume=resume, stopwatch=stopwatch)
    return Result(folder, figures | _speedup(folder))


@takes(ExportOptions)
def export(
    checkpoint: PathLike,
    out: PathLike | None = None,
    *,
    data: PathLike | None = None,
    options: ExportOptions | None = None,
    **given: Any,
) -> Result:
    """Checkpoint → ONNX graph with an in-place KV cache → bundle, once it proved equal to torch.

    With `data`, parity runs on held-out prompts and the quality of the bundle is measured. Default `out`:
    `CHECKPOINT-bundle`.
    """
    options = make_options(ExportOptions, options, given, "export")
    from export.stage import export as run

    folder, spec = out_folder(out, checkpoint, "bundle"), os.fspath(checkpoint)
    figures = run(spec, folder, None if data is None else Path(data), options)
    if figures["scheme"] != "fp32" and "cpu" in options.targets:
        figures |= _speedup(Path(spec))
    return Result(folder, figures)


def _speedup(quantized: Path) -> dict[str, float]:
    """How many times as fast as float32 the integers are here; a warning where they are slower."""
    from bench.cost.speedup import measure_speedup

    found = measure_speedup(quantized)
    if warning := found.warning():
        log.warning(warning.removeprefix("warning: "))
    return found.as_json()


@takes(EvalOptions)
def evaluate(model: PathLike, data: PathLike, *, options: EvalOptions | None = None, **given: Any) -> dict[str, Any]:
    """Quality on held-out conversations and the health of replies, through the runtime that ships; its figures."""
    options = make_options(EvalOptions, options, given, "evaluate")
    from bench.evaluate.measure import evaluate as run

    return run(os.fspath(model), Path(data), options)


@takes(BenchOptions)
def bench(
    models: PathLike | Sequence[PathLike],
    out: PathLike | None = None,
    *,
    data: PathLike | None = None,
    options: BenchOptions | None = None,
    **given: Any,
) -> Report:
    """Latency, memory and quality side by side, each model in a process of its own; ratios refer to the first one.

    Default `out`: `FIRST-bench`. Ctrl-C ends it early with a report of the complete rounds.
    """
    options = make_options(BenchOptions, options, given, "bench")
    from bench.run.stage import bench as run

    specs = _texts(models)
    folder = out_folder(out, specs[0] if specs else "models", "bench")
    return Report(folder, run(specs, folder, None if data is None else Path(data), options))


@takes(GenerateOptions)
def generate(model: PathLike, *, options: GenerateOptions | None = None, **given: Any) -> "Texts":
    """Texts drawn from any model, each when it is asked for, with the log-probability of each of its tokens.

    A `prompt`, or each line of `prompt_file`, is replied to as a turn or, with `continue_prompt`, continued; without
    one, conversations are drawn out of nothing. `seed` of what is given back is that of the first text.
    """
    options = make_options(GenerateOptions, options, given, "generate")
    from bench.models.open import open_model
    from chitchat_compress.texts import Texts

    return Texts(open_model(os.fspath(model), options.dialogue, options.tokenizer), options)


@takes(InfoOptions)
def info(
    model: PathLike, *, options: InfoOptions | None = None, announce: bool = False, **given: Any
) -> dict[str, Any]:
    """What a model is: shape, parameters, bytes, dialogue format, lineage.

    With `announce` stderr says what would run it on this machine.
    """
    options = make_options(InfoOptions, options, given, "info")
    from bench.models.open import open_model

    opened = open_model(os.fspath(model), tokenizer=options.tokenizer)
    if announce:
        opened.announce()
    return opened.figures()


@takes(RunOptions)
def run_recipe(
    recipe: PathLike | None = None,
    out: PathLike | None = None,
    *,
    options: RunOptions | None = None,
    show_report: Callable[[dict[str, Any]], None] | None = None,
    **given: Any,
) -> Result:
    """The whole pipeline of a recipe (default: the demo); stages that are done are not run again.

    What is run, and what that prints, goes to the logger "chitchat_compress" at level INFO, line by line. `show_report`
    is given the last report (report.json) at the end. Default `out`: the recipe's name with `-run`, beside it; for the
    demo `demo-run` in the working folder.
    """
    options = make_options(RunOptions, options, given, "run_recipe")
    from chitchat_compress.pipeline.run import run

    path = None if recipe is None else Path(recipe)
    folder = out_folder(out, "demo" if path is None else path, "run")
    return Result(folder, run(path, folder, seed=options.seed, show_report=show_report))


@takes(ServeOptions)
def serve(bundle: PathLike, *, options: ServeOptions | None = None, as_json: bool = False, **given: Any) -> None:
    """Serve a bundle over HTTP in OpenAI's format until SIGTERM or Ctrl-C; needs no torch.

    With `as_json` one JSON object on stdout, url and model, says that it serves.
    """
    options = make_options(ServeOptions, options, given, "serve")
    from serve.server import run_server

    run_server(Path(bundle), **asdict(options), as_json=as_json)


def _texts(given: PathLike | Sequence[PathLike]) -> list[str]:
    """One path or several, as texts."""
    return [os.fspath(given)] if isinstance(given, str | os.PathLike) else [os.fspath(one) for one in given]
