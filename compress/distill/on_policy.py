"""The last part of healing: the student answers prompts of the training split and learns what its teacher thinks of it.

A model that only ever reads other people's text never learns to go on after words of its own (exposure bias; GKD,
arXiv 2306.13649, DistiLLM, arXiv 2402.03898). Each round the student writes replies, then learns on them with the
skewed divergence, mixed with windows that it read before, at a low rate. A round that does not lower the held-out loss
is taken back, and the part ends.

A row with a reply has a tenth of the labels of another, so every label weighs the same here, not every step. With
equal steps, 40 of them at 1e-4 led a halved 9 M model away from its teacher (held-out KL 0.0454; 0.0484 after replies
alone, 0.0462 after replies and windows, 0.0434 after windows alone).
"""

import copy
import math
from dataclasses import dataclass, field

import numpy as np

from chitchat.data.windows import IGNORED
from chitchat.training.batches import TrainingWindows
from chitchat.training.options import FitResult
from chitchat.training.trainer import fit
from chitchat.training.workfolder import PLAN, WorkFolder
from compress.distill.budget import Budget
from compress.distill.objective import SKEW
from compress.distill.run import HealRun
from compress.distill.samples import Chosen, Joined, SampledWindows, own_replies

OWN_ROWS = 0.5  # of the windows of a round; the others are read before ones
OWN_RATE = 0.2  # of the first part's peak learning rate
EVALUATIONS_PER_ROUND = 4  # whose time a round must have: it begins and ends with one
WRITING_SHARE = 0.4  # of a round's time that the student may write, at most


@dataclass(frozen=True)
class OnPolicyResult:
    """All rounds that were run, and how many of them, from the first on, were kept."""

    rounds: list[FitResult] = field(default_factory=list)
    count: int = 0


def heal_on_own_replies(
    run: HealRun, budget: Budget, windows: TrainingWindows, best: float, main: FitResult
) -> OnPolicyResult:
    """Run the rounds; the student holds the best weights of all afterwards. `best` is its held-out loss so far, `main`
    the first part. On a machine that got slow there are fewer rounds, or none."""
    rounds: list[FitResult] = []
    for number in range(1, budget.rounds + 1):
        left = _affordable(run, number, budget.rounds - number + 1, (rounds or [main])[-1].eval_seconds)
        if not left:
            return OnPolicyResult(rounds, number - 1)
        weights = copy.deepcopy(run.student.state_dict())
        rounds.append(_round(run, budget, windows, number, left, main.eval_tokens))
        if rounds[-1].after["loss"] > best:
            run.student.load_state_dict(weights)
            return OnPolicyResult(rounds, number - 1)
        best = rounds[-1].after["loss"]
    return OnPolicyResult(rounds, len(rounds))


def _affordable(run: HealRun, number: int, rounds: int, eval_seconds: float) -> int:
    """How many rounds the time is enough for, `rounds` at most; at least one where round `number` has begun."""
    if run.ends is None:
        return rounds
    begun = (run.work / f"round-{number}" / PLAN).is_file()
    time = max(0.0, run.ends - run.stopwatch.seconds)
    fit = math.floor(time / (EVALUATIONS_PER_ROUND * eval_seconds)) if eval_seconds else rounds
    return int(run.processes.broadcast(max(min(rounds, fit), int(begun))))


def _round(
    run: HealRun, budget: Budget, windows: TrainingWindows, number: int, left: int, eval_tokens: int
) -> FitResult:
    reads = budget.round_steps * run.options.batch_size
    count = max(1, round(OWN_ROWS * reads))
    ends = None if run.ends is None else run.stopwatch.part(run.ends, 1 / left)

    def write() -> SampledWindows:
        run.student.to(run.processes.device)
        seed = run.options.seed + 1000 * number
        enough = run.over(WRITING_SHARE / left)
        return own_replies(run.student, run.data, run.context, count, seed=seed, enough=enough)

    replies = run.stored_windows(run.work / f"round-{number}.npz", write)
    random = np.random.default_rng([run.options.seed, 5, number])
    others = random.permutation(len(windows))[: max(1, reads - count)]
    minutes = run.options.heal_minutes
    read_before = Chosen(windows, others)
    options = run.fit_options(
        OWN_RATE,
        labels_per_step=run.options.batch_size * _mean_labels(read_before),
        steps=budget.round_steps if minutes is None else None,
        max_minutes=None if minutes is None else minutes * budget.own_share / budget.rounds,
        eval_tokens=eval_tokens,
    )
    return fit(
        run.student, Joined(replies, read_before), run.objective(SKEW), options,
        WorkFolder(run.work / f"round-{number}"), run.key, resume=run.resume, stopwatch=run.stopwatch,
        ends=ends,
    )  # fmt: skip


def _mean_labels(windows: TrainingWindows) -> float:
    """Labels of an average window, by the first ones."""
    few = [windows[number]["labels"][1:] for number in range(min(len(windows), 256))]
    return max(1.0, sum(label != IGNORED for labels in few for label in labels) / len(few))
