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
from compress.distill.run import Task
from compress.distill.samples import Chosen, Joined, SampledWindows, own_replies

OWN_ROWS = 0.5  # of the windows of a round; the others are read before ones
OWN_RATE = 0.2  # of the first part's peak learning rate
EVALUATIONS_PER_ROUND = 4  # whose time a round must have: it begins and ends with one
WRITING_SHARE = 0.4  # of a round's time that the student may write, at most


@dataclass(frozen=True)
class OwnPart:
    """All rounds that were run, and how many of them, from the first on, were kept."""

    rounds: list[FitResult] = field(default_factory=list)
    count: int = 0


def heal_on_own_replies(task: Task, budget: Budget, windows: TrainingWindows, best: float, main: FitResult) -> OwnPart:
    """Run the rounds; the student holds the best weights of all afterwards. `best` is its held-out loss so far, `main`
    the first part. On a machine that got slow there are fewer rounds, or none."""
    rounds: list[FitResult] = []
    for number in range(1, budget.rounds + 1):
        left = _affordable(task, number, budget.rounds - number + 1, (rounds or [main])[-1].eval_seconds)
        if not left:
            return OwnPart(rounds, number - 1)
        weights = copy.deepcopy(task.student.state_dict())
        rounds.append(_round(task, budget, windows, number, left, main.eval_tokens))
        if rounds[-1].after["loss"] > best:
            task.student.load_state_dict(weights)
            return OwnPart(rounds, number - 1)
        best = rounds[-1].after["loss"]
    return OwnPart(rounds, len(rounds))


def _affordable(task: Task, number: int, rounds: int, eval_seconds: float) -> int:
    """How many rounds the time is enough for, `rounds` at most; at least one where round `number` has begun."""
    if task.ends is None:
        return rounds
    begun = (task.work / f"round-{number}" / PLAN).is_file()
    time = max(0.0, task.ends - task.stopwatch.seconds)
    fit = math.floor(time / (EVALUATIONS_PER_ROUND * eval_seconds)) if eval_seconds else rounds
    return int(task.processes.from_first(max(min(rounds, fit), int(begun))))


def _round(task: Task, budget: Budget, windows: TrainingWindows, number: int, left: int, eval_tokens: int) -> FitResult:
    reads = budget.round_steps * task.options.batch_size
    count = max(1, round(OWN_ROWS * reads))
    ends = None if task.ends is None else task.stopwatch.part(task.ends, 1 / left)

    def write() -> SampledWindows:
        task.student.to(task.processes.device)
        seed = task.options.seed + 1000 * number
        enough = task.over(WRITING_SHARE / left)
        return own_replies(task.student, task.data, task.context, count, seed=seed, enough=enough)

    replies = task.stored_windows(task.work / f"round-{number}.npz", write)
    random = np.random.default_rng([task.options.seed, 5, number])
    others = random.permutation(len(windows))[: max(1, reads - count)]
    minutes = task.options.minutes
    read_before = Chosen(windows, others)
    options = task.fit_options(
        OWN_RATE,
        labels_per_step=task.options.batch_size * _mean_labels(read_before),
        steps=budget.round_steps if minutes is None else None,
        max_minutes=None if minutes is None else minutes * budget.own_share / budget.rounds,
        eval_tokens=eval_tokens,
    )
    return fit(
        task.student, Joined(replies, read_before), task.objective(SKEW), options,
        WorkFolder(task.work / f"round-{number}"), task.key, resume=task.resume, stopwatch=task.stopwatch,
        ends=ends,
    )  # fmt: skip


def _mean_labels(windows: TrainingWindows) -> float:
    """Labels of an average window, by the first ones."""
    few = [windows[number]["labels"][1:] for number in range(min(len(windows), 256))]
    return max(1.0, sum(label != IGNORED for labels in few for label in labels) / len(few))
