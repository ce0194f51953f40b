"""From a model to a smaller one that is healed: one round of cutting and healing, two when well over half goes.

What is gone at once is harder to win back than what goes in two steps (NVIDIA's Model-Optimizer guide, 2026: prune,
distil, prune again above a half). The teacher is always the model that came. A round's folder:

    sliced/     the model after the cut and the refit
    distill/    healing, as `compress.distill.heal` keeps it
    healed/     the end of the round
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from chitchat.architectures.registry import count_parameters
from compress.calibrate.measure import measure
from compress.distill.heal import heal
from compress.distill.options import HealOptions
from compress.prune.pruner import PrunedModel, Pruner
from compress.prune.run import PruneRun
from compress.prune.shape import candidate_shapes
from serve.geometry import Geometry

# Of the parameters that stay. A budget of a half buys shapes a little below it, and there the first of two rounds took
# more steps away from the second than it seemed to give (LOG.md; not in equal minutes).
TWO_ROUNDS_BELOW = 0.48
FIRST_SHARE = 0.4  # of the healing budget for the first of two rounds


@dataclass(frozen=True)
class Round:
    """A shape to cut to, and how to heal afterwards (None: not at all)."""

    shape: Geometry
    healing: HealOptions | None


@dataclass(frozen=True)
class Healed:
    """The student after its rounds so far. `layers` are the numbers of the layers that stayed, in the model that came;
    `sliced` are the figures of the last cut, `healings` those of each healing."""

    student: PreTrainedModel
    layers: list[int]
    sliced: dict[str, Any] = field(default_factory=dict)
    healings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, Any]:
        """What the lineage says of it."""
        return {"sliced": self.sliced, **({"rounds": self.healings} if self.healings else {})}


def plan_rounds(full: Geometry, shape: Geometry, healing: HealOptions | None) -> list[Round]:
    """One round; two where well below half of the parameters stays and the model is healed."""
    if healing is None or count_parameters(shape) >= TWO_ROUNDS_BELOW * count_parameters(full):
        return [Round(shape, healing)]
    half_way = _half_way(full, shape)
    if half_way in (full, shape):
        return [Round(shape, healing)]
    first = replace(healing.part(FIRST_SHARE), own_replies=0.0)  # what is cut again need not know how it speaks
    return [Round(half_way, first), Round(shape, healing.part(1 - FIRST_SHARE))]


def run_rounds(run: PruneRun, rounds: Sequence[Round], pruner: Pruner) -> Healed:
    """Run the rounds in the work folder; finished ones are not run again. Under a launcher every process calls this.

    Rounds by minutes share the time that is left on the stopwatch, which stands still while a model is cut.
    """
    healed = Healed(pruner.model, list(range(pruner.model.config.num_hidden_layers)))
    for number in range(1, len(rounds) + 1):
        folder, last = run.work / f"round-{number}", number == len(rounds)
        stored = run.stored(folder / "healed")
        if stored is not None:
            student, noted = stored
            healed = Healed(student, noted["layers"], noted["sliced"], noted["healings"])
        else:
            healed = _run_round(run, rounds[number - 1 :], number, pruner, healed)
            if not last:
                noted = {"sliced": healed.sliced, "layers": healed.layers, "healings": healed.healings}
                run.store(folder / "healed", healed.student, noted)
        if not last:
            pruner = Pruner(healed.student, run.source.data, pruner.importance, pruner.refits, pruner.seed)
    return healed


def _run_round(run: PruneRun, left: Sequence[Round], number: int, pruner: Pruner, before: Healed) -> Healed:
    """Cut and heal; `left` are this round and those after it."""
    planned, healings = left[0], list(before.healings)
    with run.stopwatch.paused():
        pruned, sliced = _cut(run, planned, number, pruner)
    if planned.healing is not None:
        until = None if run.ends is None else run.stopwatch.part(run.ends, _share(left))
        result = heal(
            pruned.student,
            run.teacher,
            run.source.data,
            run.work / f"round-{number}" / "distill",
            planned.healing,
            resume=run.resume,
            inputs={"round": number, **run.key},
            stopwatch=run.stopwatch,
            ends=until,
        )
        healings.append(asdict(result))
    return Healed(pruned.student, [before.layers[layer] for layer in pruned.layers], sliced, healings)


def _share(rounds: Sequence[Round]) -> float:
    """What the first of these rounds has of the minutes of all."""
    minutes = [planned.healing.heal_minutes or 0.0 for planned in rounds if planned.healing is not None]
    return minutes[0] / sum(minutes)


def _cut(run: PruneRun, planned: Round, number: int, pruner: Pruner) -> tuple[PrunedModel, dict[str, Any]]:
    """The pruned model and its figures; stored before it is healed: floating point may differ in the last bit when a
    resumed run has other threads."""
    folder = run.work / f"round-{number}"
    stored = run.stored(folder / "sliced")
    if stored is not None:
        return PrunedModel(stored[0], stored[1]["layers"]), stored[1]["figures"]
    if run.distributed.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    pruned = pruner.prune(planned.shape)
    figures = measure(pruned.student, pruner.model, run.source.data)
    if planned.healing is not None:
        run.store(folder / "sliced", pruned.student, {"layers": pruned.layers, "figures": figures})
    return pruned, figures


def _half_way(full: Geometry, shape: Geometry) -> Geometry:
    """A shape between the two in every axis, of about the geometric mean of their parameters."""
    budget = (count_parameters(full) * count_parameters(shape)) ** 0.5
    between = [
        candidate
        for candidate in candidate_shapes(full, lambda candidate: count_parameters(candidate) <= budget)
        if candidate.layers >= shape.layers and candidate.heads >= shape.heads and candidate.ffn >= shape.ffn
    ]
    return between[0] if between else shape
