"""Which of the shapes that a budget buys: cut them all, heal the better half for a while, keep the best.

Minitron (arXiv 2407.14679) finds that the order of candidates settles after a few hundred steps of healing, and that
the order right after the cut is not yet it. Here the cut is repaired in closed form first, which settles much of it;
so the worse half goes by its held-out KL after the refit, and the rest is healed for a small share of the budget.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm
from transformers import GPT2LMHeadModel

from chitchat.data.dataset import ChatData
from chitchat.training.processes import Distributed
from chitchat.training.stopwatch import Stopwatch
from compress.calibrate.calibration import calibration_batches, divergence, mean_loss
from compress.distill.heal import heal
from compress.distill.options import HealOptions
from compress.prune.plan import Candidate
from compress.prune.pruner import TRIAL_TOKENS, Pruner

SEARCH_SHARE = 0.2  # of the healing budget goes to trials
MIN_MINUTES, MIN_STEPS = 1.0, 30  # of a trial: less says no more than the refit does
MIN_SHARE = 0.6  # of its minutes, for a trial to begin
MAX_STEPS = 300
COMPARED_TOKENS = 8_192  # held-out


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
    candidates: Sequence[Candidate], knife: Pruner, teacher: GPT2LMHeadModel, data: ChatData, trial: HealOptions | None,
    work: Path, seed: int = 0, stopwatch: Stopwatch | None = None, ends: float | None = None,
) -> list[Candidate]:  # fmt: skip
    """The candidates with what was measured of them, in the order given; the one with the least KL is `chosen`.

    `trial` heals the better half of them; None for none. Trials by minutes end at `ends`, seconds on the `stopwatch`,
    which stands still while shapes are cut and measured. `work` is a folder for the trials, removed at the end. Under a
    launcher every process calls this.
    """
    stopwatch = stopwatch or Stopwatch()
    if len(candidates) == 1:
        return [replace(candidates[0], chosen=True)]
    windows = data.windows("validation", knife.model.config.n_positions)
    held_out = calibration_batches(windows, data.dialogue.pad_id, COMPARED_TOKENS, seed)
    uncut = mean_loss(knife.model, held_out)

    def measured(candidate: Candidate, student: GPT2LMHeadModel) -> Candidate:
        kl, loss = divergence(knife.model, student, held_out).kl, mean_loss(student, held_out)
        return replace(candidate, kl=kl, perplexity=math.exp(loss), perplexity_ratio=math.exp(loss - uncut))

    with stopwatch.paused():
        tried = [
            measured(each, knife.cut(each.shape, TRIAL_TOKENS).student)
            for each in tqdm(candidates, desc="cutting candidates", unit="shape", disable=None)
        ]
    if trial is not None:
        order = Distributed().broadcast(sorted(range(len(tried)), key=lambda place: tried[place].kl or 0.0))
        chosen = order[: finalists(len(tried))]
        for number, place in enumerate(tqdm(chosen, desc="healing candidates", unit="shape", disable=None)):
            with stopwatch.paused():
                student = knife.cut(tried[place].shape, TRIAL_TOKENS).student
            until = None if ends is None else stopwatch.part(ends, 1 / (len(chosen) - number))
            if not Distributed().broadcast(_long_enough(trial, stopwatch, until)):
                break
            result = heal(student, teacher, data, work / f"trial-{place}", trial, stopwatch=stopwatch, ends=until)
            with stopwatch.paused():
                tried[place] = measured(replace(tried[place], steps=result.steps), student)
        shutil.rmtree(work, ignore_errors=True)
    best = min(tried, key=lambda each: (-min(each.steps, 1), each.kl))
    return [replace(each, chosen=each is best) for each in tried]


def _long_enough(trial: HealOptions, stopwatch: Stopwatch, until: float | None) -> bool:
    """Whether the time until then is most of what a trial was to have: a machine that got slow tries fewer shapes."""
    if until is None or trial.heal_minutes is None:
        return True
    return until - stopwatch.seconds >= MIN_SHARE * 60 * trial.heal_minutes
