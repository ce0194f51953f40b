"""`compress prune`: checkpoint to smaller checkpoint.

Trim vocabulary and positions, choose a shape, cut to it and repair in closed form, heal by distillation. What is
finished lies in the work folder beside OUT (`.NAME.healing/`), so that a run that is killed goes on from there:

    request.json     what was asked for
    data/            the data set in the trimmed vocabulary's ids
    clock.json       the seconds that the healing has taken so far
    choice.json      the shape, and the candidates that were tried
    trials/          candidates that are being healed
    round-1/ …       see `compress.prune.rounds`

The result is an ordinary GPT-2 checkpoint.
"""

import copy
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from chitchat.checkpoint import load_model, save_checkpoint
from chitchat.data.dataset import ChatData, open_dataset
from chitchat.errors import BadInput
from chitchat.lineage import Stage, identity
from chitchat.system.folder import check_output, is_disk_full, staged_folder, write_json
from chitchat.tokenizer import tokenizer_of
from chitchat.training.processes import Distributed
from chitchat.training.stopwatch import CLOCK, Stopwatch
from chitchat.training.workfolder import read_keyed
from compress.calibrate.calibration import measure
from compress.distill.options import HealOptions
from compress.prune.options import PruneOptions
from compress.prune.plan import Candidate, CostModel, plan_candidates
from compress.prune.pruner import Pruner
from compress.prune.retokenize import retokenize
from compress.prune.rounds import plan_rounds, run_rounds
from compress.prune.search import SEARCH_SHARE, trial_of, try_candidates
from compress.prune.shape import Shape, explicit_shape
from compress.prune.vocabulary import choose_vocabulary, trim_positions, trim_tokenizer, trim_vocabulary, used_ids

HEALING_BATCH = 4  # windows of an optimizer step


@dataclass(frozen=True)
class PruneSource:
    """A model with its tokenizer and the conversations in that tokenizer's ids."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    data: ChatData


def prune(
    checkpoint: str, data: Path, out: Path, options: PruneOptions, resume: bool = False, clock: CostModel | None = None,
    stopwatch: Stopwatch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the pruned and healed checkpoint `out` and return its figures.

    `resume` goes on with a killed run of the same options, if there is one. `clock` measures shapes; without it there
    are no times, and no budgets of megabytes or milliseconds. The minutes of healing are those on the `stopwatch`
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
    work = Path(os.path.abspath(out)).parent / f".{out.name}.healing"
    processes = Distributed()
    resume = processes.broadcast(_goes_on(work, key, resume) if processes.first else False)
    with _tidied(work):
        if processes.first and not resume:
            _begin(work, key)
        if processes.first:
            stopwatch.keep_in(work / CLOCK, resume)
        processes.wait()
        with stopwatch.paused():
            trimmed, teacher = _trim(source, teacher, options, work)
        shape, candidates, knife, left = _choose(
            source.model, trimmed, teacher, options, clock, work, resume, stopwatch
        )
        rounds = plan_rounds(_shape(trimmed.model), shape, left)
        healed = run_rounds(
            rounds, knife, teacher, trimmed.data, trimmed.tokenizer, work, resume, key, stopwatch, _ends(options)
        )
        healing_minutes = stopwatch.seconds / 60
        metrics = {"before": measure(source.model, source.model, source.data), **healed.metrics}
        metrics["after"] = measure(healed.student, trimmed.model, trimmed.data) if left else healed.metrics["sliced"]
        if candidates:
            metrics["candidates"] = [each.as_json() for each in candidates]
        recorded = {**asdict(options), "shape": shape.as_json(), "kept_layers": healed.layers}
        record = Stage("prune", recorded, options.seed, parent, source.data.identity, metrics)
        if processes.first:
            with staged_folder(out, "checkpoint") as staging:
                save_checkpoint(staging, healed.student, trimmed.tokenizer, record, parent=checkpoint)
            shutil.rmtree(work, ignore_errors=True)
        processes.wait()
    figures = _figures(shape, metrics, (time.monotonic() - started) / 60)
    return {**figures, "healing_minutes": healing_minutes} if left else figures


def plan(checkpoint: str, data: Path, options: PruneOptions, clock: CostModel | None = None) -> dict[str, Any]:
    """The candidates that `prune` would try, and what the vocabulary could give; nothing is cut, nothing written.

    Figures: `parameters` now, `candidates` (a list of rows, the least expected loss first), `used_tokens` of
    `vocabulary`, those that occur in the training conversations. Raises what `prune` raises.
    """
    source = _open(checkpoint, data, options.tokenizer)
    _check(source.model, options)
    full, counts = _shape(source.model), used_ids(source.data)
    if options.vocab is not None:
        choose_vocabulary(source.tokenizer, counts, options.vocab)
    trimmed = explicit_shape(full, vocab=options.vocab, context=options.context)
    found = _candidates(full, trimmed, options, clock)
    if not options.has_budget and clock is not None:
        shape = found[0].shape
        found = [replace(found[0], file_mb=clock.file_mb(shape), ms_per_token=clock.measure([shape])[0])]
    return {
        "parameters": full.parameters,
        "candidates": [{**each.as_json(), "expected_loss": each.expected_loss} for each in found],
        "vocabulary": full.vocab,
        "used_tokens": int(np.count_nonzero(counts)),
    }


def _open(checkpoint: str, data: Path, tokenizer_option: str | None) -> PruneSource:
    model, opened = load_model(checkpoint), open_dataset(data)
    tokenizer = tokenizer_of(checkpoint, tokenizer_option, opened.tokenizer)
    opened.check_tokenizer(tokenizer, tokenizer_option or checkpoint)
    return PruneSource(model, tokenizer, opened)


def _check(model: GPT2LMHeadModel, options: PruneOptions) -> None:
    """Raise `BadInput` for a shape that cannot be had of this model, before anything is computed."""
    config = model.config
    full = _shape(model)
    asked = explicit_shape(full, options.layers, options.width, options.ffn, options.vocab, options.context)
    if asked == full and not options.has_budget:
        raise BadInput(f"--layers, --width, --ffn: {asked} is the model's own shape; ask for less of at least one")
    if config.scale_attn_by_inverse_layer_idx and (options.has_budget or asked.layers != full.layers):
        raise BadInput(
            f"{'--keep' if options.has_budget else f'--layers {asked.layers}'}: the model scales attention by the "
            "layer's number (scale_attn_by_inverse_layer_idx), so no layer can go; give --width and --ffn instead"
        )


def _open_teacher(options: PruneOptions, source: PruneSource) -> GPT2LMHeadModel:
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
    if teacher.config.n_positions < source.model.config.n_positions:
        raise BadInput(
            f"--teacher {options.teacher}: its context is {teacher.config.n_positions} and the checkpoint's "
            f"{source.model.config.n_positions}; give a teacher that reads as far"
        )
    return teacher


def _goes_on(work: Path, key: Mapping[str, Any], resume: bool) -> bool:
    """Whether there is a run to go on with. Raises `BadInput` for one of other values."""
    return resume and read_keyed(work / "request.json", key) is not None


def _begin(work: Path, key: Mapping[str, Any]) -> None:
    """An empty work folder that notes what was asked for."""
    shutil.rmtree(work, ignore_errors=True)
    write_json(work / "request.json", {"key": key})


@contextmanager
def _tidied(work: Path) -> Iterator[None]:
    """After an error, leave the work folder only where a resume would save anything; a full disk is told in a line."""
    try:
        yield
    except BaseException as error:
        if not any(work.glob("round-*")) or (isinstance(error, BadInput) and not any(work.glob("round-*/distill/*"))):
            shutil.rmtree(work, ignore_errors=True)
        if is_disk_full(error) and not isinstance(error, BadInput):
            raise BadInput(f"--out: the disk is full ({work}); free some space or choose another disk") from error
        raise


def _trim(
    source: PruneSource, teacher: GPT2LMHeadModel, options: PruneOptions, work: Path
) -> tuple[PruneSource, GPT2LMHeadModel]:
    """The model and its teacher with fewer tokens and positions, and the data set in the new ids."""
    own = teacher is source.model
    model, tokenizer, data = source.model, source.tokenizer, source.data
    if options.vocab is not None and options.vocab != model.config.vocab_size:
        keep = choose_vocabulary(tokenizer, used_ids(data), options.vocab)
        tokenizer = trim_tokenizer(tokenizer, keep)
        processes = Distributed()
        if processes.first and not (work / "data" / "data.json").is_file():
            retokenize(data, tokenizer, work / "data")
        processes.wait()
        data = open_dataset(work / "data")
        model = trim_vocabulary(model, keep)
        teacher = model if own else trim_vocabulary(teacher, keep)
    if options.context is not None:
        model = trim_positions(model, options.context)
        teacher = model if own else trim_positions(teacher, options.context)
        tokenizer = copy.copy(tokenizer)
        tokenizer.model_max_length = options.context
    return PruneSource(model, tokenizer, data), teacher


def _choose(
    source: GPT2LMHeadModel, trimmed: PruneSource, teacher: GPT2LMHeadModel, options: PruneOptions,
    clock: CostModel | None,
    work: Path, resume: bool, stopwatch: Stopwatch,
) -> tuple[Shape, Sequence[Candidate], Pruner, HealOptions | None]:  # fmt: skip
    """The shape, the candidates that were tried for it, the knife, and the healing that the trials left."""
    processes = Distributed()
    full = _shape(trimmed.model)
    healing = _healing(options) if options.heals else None
    knife = Pruner(trimmed.model, trimmed.data, options.importance, not options.no_refit, options.seed)
    choice = processes.broadcast(read_keyed(work / "choice.json", {}) if resume and processes.first else None)
    if choice is not None:
        candidates = [Candidate.from_json(row, full) for row in choice["candidates"]]
    else:
        with stopwatch.paused():
            found = _candidates(_shape(source), full, options, clock) if processes.first else []
            candidates = processes.broadcast(found)
        trial = None
        if healing is not None and len(candidates) > 1:
            windows = trimmed.data.windows("train", trimmed.model.config.n_positions)
            trial = trial_of(healing, len(windows), len(candidates))
        ends = _ends(options)
        tried = try_candidates(
            candidates, knife, teacher, trimmed.data, trial, work / "trials", options.seed, stopwatch,
            None if ends is None else stopwatch.part(ends, SEARCH_SHARE),
        )  # fmt: skip
        candidates = processes.broadcast(tried)
        if processes.first:
            write_json(work / "choice.json", {"key": {}, "candidates": [each.as_json() for each in candidates]})
    shape = next(each.shape for each in candidates if each.chosen)
    if healing is not None and any(each.steps for each in candidates):
        healing = healing.part(1 - SEARCH_SHARE)
    return shape, candidates if options.has_budget else [], knife, healing


def _candidates(full: Shape, trimmed: Shape, options: PruneOptions, clock: CostModel | None) -> list[Candidate]:
    """What the budget buys; the shape itself where one was asked for."""
    if options.has_budget:
        return plan_candidates(full, trimmed, options, clock)
    shape = explicit_shape(trimmed, options.layers, options.width, options.ffn)
    return [Candidate.of(shape, trimmed)]


def _healing(options: PruneOptions) -> HealOptions:
    """The whole healing; one epoch where neither minutes nor epochs are asked for."""
    epochs = options.heal_epochs
    if epochs is None and options.heal_minutes is None:
        epochs = 1.0
    return HealOptions(
        heal_minutes=options.heal_minutes,
        heal_epochs=epochs,
        heal_loss=options.heal_loss,
        heal_labels=options.heal_labels,
        own_replies=options.own_replies,
        batch_size=HEALING_BATCH,
        seed=options.seed,
    )


def _ends(options: PruneOptions) -> float | None:
    """When the healing ends, in seconds on the stopwatch; None where it is not by minutes."""
    return 60 * options.heal_minutes if options.heal_minutes else None


def _shape(model: GPT2LMHeadModel) -> Shape:
    return Shape.of(model.config.to_dict())


def _figures(shape: Shape, metrics: dict[str, Any], minutes: float) -> dict[str, Any]:
    before, sliced, after = metrics["before"], metrics["sliced"], metrics["after"]
    return {
        "shape": str(shape),
        **shape.as_json(),
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
