"""Which of the shapes that a budget buys: prune to them all, heal the better half for a while, keep the best.

Minitron (arXiv 2407.14679) finds that the order of candidates settles after a few hundred steps of healing, and that
the order right after the cut is not yet it. Here the cut is repaired in closed form first, which settles much of it;
so the worse half goes by its held-out KL after the refit, and the rest is healed for a small share of the budget.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel

from chitchat.architectures.registry import geometry_of
from chitchat.training.objective import fused_gelu
from compress.calibrate.batches import calibration_batches
from compress.calibrate.measure import divergence, final_states
from compress.distill.heal import heal
from compress.distill.options import HealOptions
from compress.prune.plan import Candidate, CostModel, find_candidates
from compress.prune.pruner import TRIAL_TOKENS, Pruner
from compress.prune.run import PruneRun
from serve.geometry import Geometry

SEARCH_SHARE = 0.2  # of the healing budget goes to trials
MIN_MINUTES, MIN_STEPS = 1.0, 30  # of a trial: less says no more than the refit does
MIN_SHARE = 0.6  # of its minutes, for a trial to begin
MAX_STEPS = 300
COMPARED_TOKENS = 4_096  # held-out


@dataclass(frozen=True)
class Choice:
    """The candidates with what was measured of them, and the healing that the trials left."""

    candidates: Sequence[Candidate]
    healing: HealOptions | None

    @property
    def shape(self) -> Geometry:
        """The one that was taken."""
        return next(candidate.shape for candidate in self.candidates if candidate.chosen)


def choose_shape(run: PruneRun, whole_parameters: int, cost_model: CostModel | None, pruner: Pruner) -> Choice:
    """The choice of the run that is resumed, else the best of what the budget buys (`find_candidates`).

    Shapes are measured in the main process. Under a launcher every process calls this.
    """
    full = geometry_of(run.source.model)

    def make() -> dict[str, Any]:
        with run.stopwatch.paused():
            found = run.distributed.run_on_main(
                lambda: find_candidates(whole_parameters, full, run.options, cost_model)
            )
        trial = None
        if run.healing is not None and len(found) > 1:
            windows = run.source.data.windows("train", run.source.model.config.max_position_embeddings)
            trial = trial_of(run.healing, len(windows), len(found))
        return {"candidates": [row.as_json() for row in try_candidates(run, found, pruner, trial)]}

    rows = run.folder.decide("choice.json", {}, make)["candidates"]
    tried, healing = [Candidate.from_json(row, full) for row in rows], run.healing
    if healing is not None and any(candidate.steps for candidate in tried):
        healing = healing.part(1 - SEARCH_SHARE)
    return Choice(tried, healing)


def trial_of(healing: HealOptions, windows: int, candidates: int) -> HealOptions | None:
    """The healing of each finalist among so many candidates; None where the budget is too small to tell them apart.

    `healing` is the whole healing, its budget minutes or epochs; `windows` are those of the training split.
    """
    short = replace(healing, own_replies=0.0, teacher_samples=False, patience=None)
    share = SEARCH_SHARE / finalists(candidates)
    if healing.heal_minutes is not None:
        minutes = share * healing.heal_minutes
        return replace(short, heal_minutes=minutes) if minutes >= MIN_MINUTES else None
    steps = math.floor(share * (healing.heal_epochs or 0) * (windows // healing.batch_size))
    if steps < MIN_STEPS:
        return None
    return replace(short, heal_epochs=None, heal_steps=min(steps, MAX_STEPS), eval_tokens=COMPARED_TOKENS)


def finalists(candidates: int) -> int:
    """How many of the candidates are healed for a while."""
    return math.ceil(candidates / 2)


def try_candidates(
    run: PruneRun, candidates: Sequence[Candidate], pruner: Pruner, trial: HealOptions | None
) -> list[Candidate]:
    """The candidates with what was measured of them, in the order given; the one with the least KL is `chosen`.

    `trial` heals the better half of them; None for none. Trials by minutes share `SEARCH_SHARE` of the run's, on its
    stopwatch, which stands still while shapes are cut and measured.
    """
    if len(candidates) == 1:
        return [replace(candidates[0], chosen=True)]
    ends = None if run.ends is None else run.stopwatch.part(run.ends, SEARCH_SHARE)
    data = run.source.data
    windows = data.windows("validation", pruner.model.config.max_position_embeddings)
    held_out = calibration_batches(windows, data.dialogue.pad_id, COMPARED_TOKENS, run.options.seed)
    with fused_gelu(pruner.model):
        states = final_states(pruner.model, held_out)

    def measured(candidate: Candidate, student: PreTrainedModel) -> Candidate:
        with fused_gelu(student):
            found = divergence(pruner.model, student, held_out, states)
        ratio = math.exp(found.loss - found.reference_loss)
        return replace(candidate, kl=found.kl, perplexity=math.exp(found.loss), perplexity_ratio=ratio)

    with run.stopwatch.paused():
        shapes = [candidate.shape for candidate in candidates]
        students = dict(enumerate(pruned.student for pruned in pruner.prune_to_all(shapes, TRIAL_TOKENS)))
        tried = [measured(candidate, students[index]) for index, candidate in enumerate(candidates)]
    if trial is not None:
        order = run.distributed.broadcast(sorted(range(len(tried)), key=lambda index: tried[index].kl or 0.0))
        chosen = order[: finalists(len(tried))]
        students = {index: students[index] for index in chosen}  # the others' memory is free for healing
        for number, index in enumerate(tqdm(chosen, desc="healing candidates", unit="shape", disable=None)):
            student = students.pop(index)
            until = None if ends is None else run.stopwatch.part(ends, 1 / (len(chosen) - number))
            if not run.distributed.broadcast(_long_enough(run, trial, until)):
                break
            folder = run.work / "trials" / f"trial-{index}"
            result = heal(student, run.teacher, data, folder, trial, stopwatch=run.stopwatch, ends=until)
            with run.stopwatch.paused():
                healed = replace(tried[index], steps=result.steps)
                tried[index] = measured(healed, student)
        shutil.rmtree(run.work / "trials", ignore_errors=True)
    best = min(tried, key=lambda candidate: (-min(candidate.steps, 1), candidate.kl))
    return [replace(candidate, chosen=candidate is best) for candidate in tried]


def _long_enough(run: PruneRun, trial: HealOptions, until: float | None) -> bool:
    """Whether the time until then is most of what a trial was to have: a machine that got slow tries fewer shapes."""
    if until is None or trial.heal_minutes is None:
        return True
    return until - run.stopwatch.seconds >= MIN_SHARE * 60 * trial.heal_minutes
