"""`compress prune`: checkpoint to smaller checkpoint.

Choose a shape, cut whole layers, cut units, heal by distillation. The cut is made once; the sliced model then lies in
the work folder beside OUT (`.NAME.healing/`), so that a run that is killed while healing goes on from there. The result
is an ordinary GPT-2 checkpoint.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from chitchat.checkpoint import check_vocabulary, load_model, load_tokenizer, save_checkpoint
from chitchat.data.dataset import ChatData, open_dataset
from chitchat.errors import BadInput
from chitchat.folder import check_output, staged_folder
from chitchat.lineage import LINEAGE, Stage, identity, read_lineage
from compress.calibration import Batch, calibration_batches, check_same_tokenizer, measure
from compress.distill.heal import HealResult, heal
from compress.distill.options import HealOptions
from compress.prune.importance import IMPORTANCES, score_units
from compress.prune.layers import choose_layers, keep_layers
from compress.prune.shape import Shape, choose_shape, explicit_shape
from compress.prune.slicing import slice_model

# Units are ranked on more tokens than layers are tried on, since every trial of a layer is a run of its own.
UNIT_TOKENS, LAYER_TOKENS = 16_384, 4_096


@dataclass(frozen=True)
class PruneOptions:
    """What `compress prune` was asked for: a share of parameters (`keep`) or explicit axes, and how long to heal.

    Without `heal_epochs` and `heal_minutes` one epoch; 0 of either: no healing. `teacher` is a checkpoint to heal from,
    the unpruned one when None.
    """

    keep: float | None = None
    layers: int | None = None
    width: int | None = None
    ffn: int | None = None
    heal_epochs: float | None = None
    heal_minutes: float | None = None
    teacher: str | None = None
    importance: str = "activation"
    seed: int = 0

    def __post_init__(self) -> None:
        axes = [f"--{name}" for name in ("layers", "width", "ffn") if getattr(self, name) is not None]
        if self.keep is None and not axes:
            raise BadInput("--keep: say how much is to stay (--keep 0.5), or a shape by --layers, --width, --ffn")
        if self.keep is not None and axes:
            raise BadInput(f"--keep {self.keep:g}: is a budget and {', '.join(axes)} a shape; give one of the two")
        if self.keep is not None and not 0 < self.keep < 1:
            raise BadInput(f"--keep {self.keep:g}: a share of the parameters, between 0 and 1 (0.5 keeps half)")
        if self.heal_epochs is not None and self.heal_minutes is not None:
            raise BadInput("--heal-epochs and --heal-minutes: give one of the two")
        for name, value in (("--heal-epochs", self.heal_epochs), ("--heal-minutes", self.heal_minutes)):
            if value is not None and not 0 <= value < float("inf"):
                raise BadInput(f"{name} {value:g}: 0 (no healing) or more")
        if self.importance not in IMPORTANCES:
            raise BadInput(f"--importance {self.importance}: no such ranking; choose {', '.join(IMPORTANCES)}")

    @property
    def heals(self) -> bool:
        return self.heal_epochs != 0 and self.heal_minutes != 0


def prune(checkpoint: str, data: Path, out: Path, options: PruneOptions, resume: bool = False) -> dict[str, Any]:
    """Write the pruned and healed checkpoint `out` and return its figures.

    `resume` goes on with a killed run of the same options, if there is one. Raises `BadInput` for a shape that cannot
    be had, a data set or teacher of another vocabulary, and everything that reading a checkpoint refuses.
    """
    started = time.monotonic()
    check_output(out, "checkpoint")
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    shape = plan(model, options)
    opened = open_dataset(data)
    check_vocabulary(tokenizer, model.config.to_dict(), checkpoint)
    check_same_tokenizer(opened, tokenizer, checkpoint)
    teacher = _open_teacher(options, model, opened)
    parent = identity(Path(checkpoint)) if Path(checkpoint).is_dir() else None
    key = {**asdict(options), "checkpoint": parent or checkpoint, "data": opened.identity}

    work = Path(os.path.abspath(out)).parent / f".{out.name}.healing"
    sliced = _left_over(work, key) if resume else None
    if sliced is None:
        shutil.rmtree(work, ignore_errors=True)
        sliced = cut(model, shape, opened, options)
        if options.heals:
            _save_sliced(work, sliced, tokenizer, key)
    student, metrics = sliced.student, sliced.metrics
    if options.heals:
        result = _heal(student, teacher, opened, work, options, resume)
        metrics = {**metrics, "healing": asdict(result), "after": measure(student, model, opened)}
    else:
        metrics = {**metrics, "after": metrics["sliced"]}
    recorded = {**asdict(options), "shape": shape.as_json(), "kept_layers": sliced.layers}
    with staged_folder(out, "checkpoint") as staging:
        record = Stage("prune", recorded, options.seed, parent, opened.identity, metrics)
        save_checkpoint(staging, student, tokenizer, record, parent=checkpoint)
    shutil.rmtree(work, ignore_errors=True)
    return _figures(shape, metrics, (time.monotonic() - started) / 60)


def plan(model: GPT2LMHeadModel, options: PruneOptions) -> Shape:
    """The shape that `options` ask for of `model`. Raises `BadInput` for one that cannot be had."""
    config = model.config
    if getattr(config, "pruned_heads", None):
        raise BadInput("the checkpoint has layers of different numbers of heads (pruned_heads); prune the original one")
    full = Shape.of(config.to_dict())
    if options.keep is not None:
        shape = choose_shape(full, options.keep)
    else:
        shape = explicit_shape(full, options.layers, options.width, options.ffn)
    if config.scale_attn_by_inverse_layer_idx and shape.layers != full.layers:
        raise BadInput(
            f"--layers {shape.layers}: the model scales attention by the layer's number "
            "(scale_attn_by_inverse_layer_idx), so no layer can go; give --width and --ffn instead"
        )
    return shape


@dataclass(frozen=True)
class Sliced:
    """A model after the knife, unhealed: the layers that stayed, and figures before and after the cut."""

    student: GPT2LMHeadModel
    layers: list[int]
    metrics: dict[str, Any]


def cut(model: GPT2LMHeadModel, shape: Shape, data: ChatData, options: PruneOptions) -> Sliced:
    """Slice a copy of `model` to `shape`; the same options give the same weights."""
    windows = data.windows("train", model.config.n_positions)

    def calibration(tokens: int) -> Sequence[Batch]:
        return calibration_batches(windows, data.dialogue.pad_id, tokens, options.seed)

    layers = choose_layers(model, calibration(LAYER_TOKENS), shape.layers)
    student = keep_layers(model, layers)
    scores = score_units(student, calibration(UNIT_TOKENS), options.importance, options.seed)
    student = slice_model(student, scores.keep(shape))
    metrics = {"before": measure(model, model, data), "sliced": measure(student, model, data)}
    return Sliced(student, layers, metrics)


def _heal(
    student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, data: ChatData, work: Path, options: PruneOptions, resume: bool
) -> HealResult:
    """Train `student` in place towards `teacher`."""
    epochs = options.heal_epochs
    if epochs is None and options.heal_minutes is None:
        epochs = 1.0
    healing = HealOptions(epochs=epochs, minutes=options.heal_minutes, seed=options.seed)
    return heal(student, teacher, data, work / "distill", healing, resume=resume)


def _open_teacher(options: PruneOptions, model: GPT2LMHeadModel, data: ChatData) -> GPT2LMHeadModel:
    """The model to heal from. Raises `BadInput` when its vocabulary or its context does not fit."""
    if options.teacher is None or not options.heals:
        return model
    teacher = load_model(options.teacher)
    if teacher.config.vocab_size != model.config.vocab_size:
        raise BadInput(
            f"--teacher {options.teacher}: has a vocabulary of {teacher.config.vocab_size} and the checkpoint one of "
            f"{model.config.vocab_size}; a teacher must share the student's tokens"
        )
    check_same_tokenizer(data, load_tokenizer(options.teacher), options.teacher)
    if teacher.config.n_positions < model.config.n_positions:
        raise BadInput(
            f"--teacher {options.teacher}: its context is {teacher.config.n_positions} and the checkpoint's "
            f"{model.config.n_positions}; give a teacher that reads as far"
        )
    return teacher


def _save_sliced(work: Path, sliced: Sliced, tokenizer: PreTrainedTokenizerFast, key: dict[str, Any]) -> None:
    """Keep the sliced model: floating point may differ in the last bit when a resumed run has other threads."""
    record = Stage("slice", {"key": key, "layers": sliced.layers}, key["seed"], metrics=sliced.metrics)
    with staged_folder(work / "sliced", "checkpoint") as staging:
        save_checkpoint(staging, sliced.student, tokenizer, record)


def _left_over(work: Path, key: dict[str, Any]) -> Sliced | None:
    """What `_save_sliced` kept of a killed run; None where there is nothing. Raises `BadInput` when that run was asked
    for something else."""
    folder = work / "sliced"
    if not (folder / LINEAGE).is_file():
        return None
    record = read_lineage(folder)[-1]
    old = record["options"]["key"]
    changed = [f"{name} {old.get(name)}, now {value}" for name, value in key.items() if old.get(name) != value]
    if changed:
        raise BadInput(
            f"--resume: the unfinished run in {work} was started with other values ({'; '.join(changed)}); give the "
            "same ones, or leave --resume out to start anew"
        )
    return Sliced(load_model(folder), record["options"]["layers"], record["metrics"])


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
