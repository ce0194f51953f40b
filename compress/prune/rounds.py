"""From a model to a smaller one that is healed: one round of cutting and healing, two when well over half goes.

What is gone at once is harder to win back than what goes in two steps (NVIDIA's Model-Optimizer guide, 2026: prune,
distil, prune again above a half). The teacher is always the model that came. A round's folder:

    sliced/     the model after the knife and the refit
    distill/    healing, as `compress.distill.heal` keeps it
    healed/     the end of the round
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from chitchat.checkpoint import load_model, save_checkpoint
from chitchat.data.dataset import ChatData
from chitchat.lineage import LINEAGE, Stage, read_lineage
from chitchat.system.folder import staged_folder
from chitchat.training.processes import Distributed
from chitchat.training.stopwatch import Stopwatch
from compress.calibrate.calibration import measure
from compress.distill.heal import heal
from compress.distill.options import HealOptions
from compress.prune.pruner import PrunedModel, Pruner
from compress.prune.shape import Shape, candidate_shapes

# Of the parameters that stay. A budget of a half buys shapes a little below it, and there the first of two rounds took
# more steps away from the second than it seemed to give (LOG.md; not in equal minutes).
TWO_ROUNDS_BELOW = 0.48
FIRST_SHARE = 0.4  # of the healing budget for the first of two rounds


@dataclass(frozen=True)
class Round:
    """A shape to cut to, and how to heal afterwards (None: not at all)."""

    shape: Shape
    healing: HealOptions | None


@dataclass(frozen=True)
class Healed:
    """The student after all rounds. `layers` are the numbers of the layers that stayed, in the model that came;
    `metrics` are `sliced` (the last cut) and, where it was healed, `rounds` (a healing's figures each)."""

    student: GPT2LMHeadModel
    layers: list[int]
    metrics: dict[str, Any]


def plan_rounds(full: Shape, shape: Shape, healing: HealOptions | None) -> list[Round]:
    """One round; two where well below half of the parameters stays and the model is healed."""
    if healing is None or shape.parameters >= TWO_ROUNDS_BELOW * full.parameters:
        return [Round(shape, healing)]
    half_way = _half_way(full, shape)
    if half_way in (full, shape):
        return [Round(shape, healing)]
    first = replace(healing.part(FIRST_SHARE), own_replies=0.0)  # what is cut again need not know how it speaks
    return [Round(half_way, first), Round(shape, healing.part(1 - FIRST_SHARE))]


def run_rounds(
    rounds: list[Round], knife: Pruner, teacher: GPT2LMHeadModel, data: ChatData, tokenizer: PreTrainedTokenizerFast,
    work: Path, resume: bool, key: Mapping[str, Any], stopwatch: Stopwatch | None = None, ends: float | None = None,
) -> Healed:  # fmt: skip
    """Run the rounds in `work`; finished ones are not run again. Under a launcher every process calls this.

    Rounds by minutes share the time until `ends`, seconds on the `stopwatch`, which stands still under the knife.
    """
    stopwatch = stopwatch or Stopwatch()
    layers = list(range(len(knife.model.transformer.h)))
    healings: list[dict[str, Any]] = []
    processes = Distributed()
    student: GPT2LMHeadModel = knife.model
    sliced: dict[str, Any] = {}
    for number, each in enumerate(rounds, 1):
        folder = work / f"round-{number}"
        stored = _stored(folder / "healed", processes)
        if stored is None:
            with stopwatch.paused():
                cut, sliced = _cut(each, knife, data, tokenizer, folder, processes)
            student = cut.student
            if each.healing is not None:
                inputs = {"round": number, **key}
                until = None if ends is None else stopwatch.part(ends, _share(rounds[number - 1 :]))
                result = heal(
                    student, teacher, data, folder / "distill", each.healing, resume=resume, inputs=inputs,
                    stopwatch=stopwatch, ends=until,
                )  # fmt: skip
                healings.append(asdict(result))
            layers = [layers[place] for place in cut.layers]
            if number < len(rounds):
                noted: dict[str, Any] = {"sliced": sliced, "layers": layers, "healings": healings}
                _store(folder / "healed", student, tokenizer, noted, processes)
        else:
            student, noted = stored
            sliced, layers, healings = noted["sliced"], noted["layers"], noted["healings"]
        if number < len(rounds):
            knife = Pruner(student, data, knife.importance, knife.refits, knife.seed)
    return Healed(student, layers, {"sliced": sliced, **({"rounds": healings} if healings else {})})


def _share(rounds: list[Round]) -> float:
    """What the first of these rounds has of the minutes of all."""
    minutes = [each.healing.heal_minutes or 0.0 for each in rounds if each.healing is not None]
    return minutes[0] / sum(minutes)


def _cut(
    each: Round, knife: Pruner, data: ChatData, tokenizer: PreTrainedTokenizerFast, folder: Path, processes: Distributed
) -> tuple[PrunedModel, dict[str, Any]]:
    """The model after the knife, and its figures; stored before it is healed: floating point may differ in the last bit
    when a resumed run has other threads."""
    stored = _stored(folder / "sliced", processes)
    if stored is not None:
        return PrunedModel(stored[0], stored[1]["layers"]), stored[1]["figures"]
    if processes.first:
        shutil.rmtree(folder, ignore_errors=True)
    cut = knife.cut(each.shape)
    figures = measure(cut.student, knife.model, data)
    if each.healing is not None:
        _store(folder / "sliced", cut.student, tokenizer, {"layers": cut.layers, "figures": figures}, processes)
    return cut, figures


def _store(
    folder: Path, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, metrics: dict[str, Any],
    processes: Distributed,
) -> None:  # fmt: skip
    if processes.first:
        with staged_folder(folder, "checkpoint") as staging:
            save_checkpoint(staging, model, tokenizer, Stage("round", {}, 0, metrics=metrics))
    processes.wait()


def _stored(folder: Path, processes: Distributed) -> tuple[GPT2LMHeadModel, dict[str, Any]] | None:
    """What `_store` left; all processes see the same, also when one of them comes late."""
    if not processes.broadcast((folder / LINEAGE).is_file()):
        return None
    return load_model(folder), dict(read_lineage(folder)[-1]["metrics"])


def _half_way(full: Shape, shape: Shape) -> Shape:
    """A shape between the two in every axis, of about the geometric mean of their parameters."""
    budget = (full.parameters * shape.parameters) ** 0.5
    between = [
        each
        for each in candidate_shapes(full, lambda each: each.parameters <= budget)
        if each.layers >= shape.layers and each.heads >= shape.heads and each.ffn >= shape.ffn
    ]
    return between[0] if between else shape
