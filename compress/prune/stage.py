"""`compress prune`: checkpoint to smaller checkpoint.

Trim vocabulary and positions, choose a shape, cut to it and repair in closed form, heal by distillation. What is
finished lies in the work folder beside OUT (`.NAME.healing/`), so that a run that is killed goes on from there:

    request.json     what was asked for
    data/            the data set in the trimmed vocabulary's ids
    clock.json       the seconds that the healing has taken so far
    choice.json      the shape, and the candidates that were tried
    trials/          candidates that are being healed
    round-1/ …       see `compress.prune.rounds`

The result is an ordinary checkpoint.
"""

import copy
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chitchat.architectures.registry import architecture_of, count_parameters, geometry_of
from chitchat.checkpoint import load_model, save_checkpoint
from chitchat.data.dataset import ChatData, open_dataset
from chitchat.errors import BadInput
from chitchat.lineage import Stage, identity
from chitchat.system.folder import check_output, staged_folder
from chitchat.tokenizer import tokenizer_of
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.workfolder import WorkFolder
from compress.calibrate.measure import measure
from compress.prune.options import PruneOptions
from compress.prune.plan import CostModel, find_candidates
from compress.prune.retokenize import retokenize
from compress.prune.rounds import Healed, plan_rounds, run_rounds
from compress.prune.run import PruneRun, PruneSource
from compress.prune.search import Choice, choose_shape
from compress.prune.shape import explicit_shape, shape_figures
from compress.prune.vocabulary import choose_vocabulary, trim_positions, trim_tokenizer, trim_vocabulary, used_ids
from serve.geometry import Geometry


def prune(
    checkpoint: str,
    data: Path,
    out: Path,
    options: PruneOptions,
    resume: bool = False,
    cost_model: CostModel | None = None,
    stopwatch: Stopwatch | None = None,
) -> dict[str, Any]:
    """Write the pruned and healed checkpoint `out` and return its figures.

    `resume` goes on with a killed run of the same options, if there is one. `cost_model` measures shapes; without it
    there are no times, and no budgets of megabytes or milliseconds. The minutes of healing are those on the `stopwatch`
    (default: one that begins now): models are read and healed in them, shapes are cut and measured beside them. Under a
    launcher every process calls this; the first one writes. Raises `BadInput` for a shape that cannot be had, a data
    set or teacher of another vocabulary, and everything that reading a checkpoint refuses.
    """
    started, stopwatch, out = time.monotonic(), stopwatch or Stopwatch(), Path(out)
    check_output(out, "checkpoint")
    source = _open(checkpoint, data, options.tokenizer)
    _check(source.model, options)
    teacher = _open_teacher(options, source)
    parent = identity(Path(checkpoint)) if Path(checkpoint).is_dir() else None
    key = {**asdict(options), "checkpoint": parent or checkpoint, "data": source.data.identity}
    folder = WorkFolder(out.parent / f".{out.name}.healing")

    def resume_point(error: BaseException) -> str | None:
        begun = "round-*/distill/*" if isinstance(error, BadInput) else "round-*"
        return "here" if any(folder.path.glob(begun)) else None

    with folder.resumable("request.json", key, resume, stopwatch, resume_point):
        folder.decide("request.json", key, dict)
        with stopwatch.paused():
            trimmed, teacher = _trim(source, teacher, options, folder)
        run = PruneRun(trimmed, teacher, options, folder, key, resume, stopwatch)
        choice, healed = _pruned(run, count_parameters(geometry_of(source.model)), cost_model)
        healing_minutes = stopwatch.seconds / 60
        metrics = _metrics(run, source, choice, healed)
        recorded = {**asdict(options), "shape": shape_figures(choice.shape), "kept_layers": healed.layers}
        record = Stage("prune", recorded, options.seed, parent, source.data.identity, metrics)

        def store() -> None:
            with staged_folder(out, "checkpoint") as staging:
                save_checkpoint(staging, healed.student, trimmed.tokenizer, record, parent=checkpoint)
            folder.remove()

        folder.distributed.run_on_main(store)
    figures = _figures(choice.shape, metrics, (time.monotonic() - started) / 60)
    return {**figures, "healing_minutes": healing_minutes} if choice.healing else figures


def prune_loaded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, data: ChatData, options: PruneOptions
) -> PreTrainedModel:
    """What `prune` makes of a model in memory, in float32 on the CPU; `model` stays as it is.

    The tokens stay (no `vocab`), and the budget is `keep` or a shape. Raises `BadInput` for a shape that cannot be had,
    and for a data set that is not in the ids of `tokenizer`.
    """
    data.check_tokenizer(tokenizer, "the tokenizer")
    source, stopwatch = PruneSource(copy.deepcopy(model).to("cpu").float().eval(), tokenizer, data), Stopwatch()
    _check(source.model, options)
    with tempfile.TemporaryDirectory(prefix="compress-prune-") as work:
        folder = WorkFolder(Path(work))
        with stopwatch.paused():
            trimmed, teacher = _trim(source, source.model, options, folder)
        run = PruneRun(trimmed, teacher, options, folder, {}, False, stopwatch)
        _, healed = _pruned(run, count_parameters(geometry_of(source.model)), None)
    return healed.student.eval()


def plan(checkpoint: str, data: Path, options: PruneOptions, cost_model: CostModel | None = None) -> dict[str, Any]:
    """The candidates that `prune` would try, and what the vocabulary could give; nothing is cut, nothing written.

    Figures: `parameters` now, `candidates` (a list of rows, the least expected loss first), `used_tokens` of
    `vocabulary`, those that occur in the training conversations. Raises what `prune` raises.
    """
    source = _open(checkpoint, data, options.tokenizer)
    _check(source.model, options)
    full, counts = geometry_of(source.model), used_ids(source.data)
    if options.vocab is not None:
        choose_vocabulary(source.tokenizer, counts, options.vocab)
    trimmed = explicit_shape(full, vocab=options.vocab, context=options.context)
    found = find_candidates(count_parameters(full), trimmed, options, cost_model)
    if not options.has_budget and cost_model is not None:
        shape = found[0].shape
        found = [replace(found[0], file_mb=cost_model.file_mb(shape), ms_per_token=cost_model.measure([shape])[0])]
    return {
        "parameters": count_parameters(full),
        "candidates": [{**row.as_json(), "expected_loss": row.expected_loss} for row in found],
        "vocabulary": full.vocab,
        "used_tokens": int(np.count_nonzero(counts)),
    }


def _open(checkpoint: str, data: Path, tokenizer_option: str | None) -> PruneSource:
    model, opened = load_model(checkpoint), open_dataset(data)
    tokenizer = tokenizer_of(checkpoint, tokenizer_option, opened.tokenizer)
    opened.check_tokenizer(tokenizer, tokenizer_option or checkpoint)
    return PruneSource(model, tokenizer, opened)


def _check(model: PreTrainedModel, options: PruneOptions) -> None:
    """Raise `BadInput` for a shape that cannot be had of this model, before anything is computed."""
    full = geometry_of(model)
    asked = explicit_shape(full, options.layers, options.width, options.ffn, options.vocab, options.context)
    if asked == full and not options.has_budget:
        raise BadInput(f"--layers, --width, --ffn: {asked} is the model's own shape; ask for less of at least one")
    refusal = architecture_of(model).refuses_layer_cut(model.config)
    if refusal and (options.has_budget or asked.layers != full.layers):
        option = "--keep" if options.has_budget else f"--layers {asked.layers}"
        raise BadInput(f"{option}: {refusal}, so no layer can go; give --width and --ffn instead")


def _open_teacher(options: PruneOptions, source: PruneSource) -> PreTrainedModel:
    """The model to heal from. Raises `BadInput` when its vocabulary or its context does not fit."""
    if options.teacher is None or not options.heals:
        return source.model
    teacher = load_model(options.teacher)
    if teacher.config.vocab_size != source.model.config.vocab_size:
        raise BadInput(
            f"--teacher {options.teacher}: has a vocabulary of {teacher.config.vocab_size} and the checkpoint one of "
            f"{source.model.config.vocab_size}; a teacher must share the student's tokens"
        )
    source.data.check_tokenizer(tokenizer_of(options.teacher, other=source.tokenizer), options.teacher)
    reads, needed = (model.config.max_position_embeddings for model in (teacher, source.model))
    if reads < needed:
        raise BadInput(
            f"--teacher {options.teacher}: its context is {reads} and the checkpoint's {needed}; give a teacher that "
            "reads as far"
        )
    return teacher


def _trim(
    source: PruneSource, teacher: PreTrainedModel, options: PruneOptions, folder: WorkFolder
) -> tuple[PruneSource, PreTrainedModel]:
    """The model and its teacher with fewer tokens and positions, and the data set in the new ids."""
    own = teacher is source.model
    model, tokenizer, data = source.model, source.tokenizer, source.data
    if options.vocab is not None and options.vocab != model.config.vocab_size:
        keep = choose_vocabulary(tokenizer, used_ids(data), options.vocab)
        tokenizer = trim_tokenizer(tokenizer, keep)
        kept = folder.path / "data"
        folder.distributed.run_on_main(
            lambda: None if (kept / "data.json").is_file() else retokenize(data, tokenizer, kept)
        )
        data = open_dataset(kept)
        model = trim_vocabulary(model, keep)
        teacher = model if own else trim_vocabulary(teacher, keep)
    if options.context is not None:
        model = trim_positions(model, options.context)
        teacher = model if own else trim_positions(teacher, options.context)
        tokenizer = copy.copy(tokenizer)
        tokenizer.model_max_length = options.context
    return PruneSource(model, tokenizer, data), teacher


def _pruned(run: PruneRun, whole_parameters: int, cost_model: CostModel | None) -> tuple[Choice, Healed]:
    """The shape that was taken, and the student after all rounds; `keep` is a share of `whole_parameters`."""
    full, pruner = geometry_of(run.source.model), run.pruner()
    choice = choose_shape(run, whole_parameters, cost_model, pruner)
    return choice, run_rounds(run, plan_rounds(full, choice.shape, choice.healing), pruner)


def _metrics(run: PruneRun, source: PruneSource, choice: Choice, healed: Healed) -> dict[str, Any]:
    """The figures of the lineage; `before` are those of the model as it came."""
    metrics = {"before": measure(source.model, source.model, source.data), **healed.metrics}
    healing = choice.healing is not None
    metrics["after"] = measure(healed.student, run.source.model, run.source.data) if healing else healed.sliced
    if run.options.has_budget:
        metrics["candidates"] = [candidate.as_json() for candidate in choice.candidates]
    return metrics


def _figures(shape: Geometry, metrics: dict[str, Any], minutes: float) -> dict[str, Any]:
    before, sliced, after = metrics["before"], metrics["sliced"], metrics["after"]
    return {
        "shape": str(shape),
        **shape_figures(shape),
        "parameters_before": before["parameters"],
        "parameters_after": after["parameters"],
        "kept": after["parameters"] / before["parameters"],
        "perplexity_before": before["perplexity"],
        "perplexity_sliced": sliced["perplexity"],
        "perplexity": after["perplexity"],
        "bits_per_byte": after["bits_per_byte"],
        "kl": after["kl"],
        "top1": after["top1"],
        "minutes": minutes,
    }
