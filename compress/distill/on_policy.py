"""On-policy distillation, the last part of healing: the student learns its teacher's distribution on its own replies.

A model that only ever reads other people's text never learns to continue its own (exposure bias; GKD, arXiv 2306.13649,
DistiLLM, arXiv 2402.03898). In each round the student answers prompts of the training split, then learns on its replies
with the skewed divergence, mixed with windows that it read before, at a low rate. A round that does not lower the
held-out loss is undone, and the part ends.

A reply has a tenth of the labels of another window, so every label weighs the same here, not every step. With equal
steps, 40 of them at 1e-4 led a halved 9 M model away from its teacher (held-out KL 0.0454; 0.0484 after replies
alone, 0.0462 after replies and windows, 0.0434 after windows alone).
"""

import copy
import math
from dataclasses import dataclass, field

import numpy as np

from chitchat.data.windows import IGNORED
from chitchat.training.batches import TrainingWindows
from chitchat.training.options import FitResult
from chitchat.training.workfolder import PLAN
from compress.distill.budget import Budget
from compress.distill.objective import SKEW
from compress.distill.run import HealRun
from compress.distill.samples import Chosen, Joined, SampledWindows, student_replies

OWN_ROWS = 0.5  # of the windows of a round; the others were read before
OWN_RATE = 0.2  # of the first part's peak learning rate
EVALUATIONS_PER_ROUND = 4  # whose time a round must have: it begins and ends with one
WRITING_SHARE = 0.4  # of a round's time that the student may write, at most


@dataclass(frozen=True)
class OnPolicyResult:
    """All `rounds` that were run, of which the first `kept` ones count in the weights."""

    rounds: list[FitResult] = field(default_factory=list)
    kept: int = 0


def heal_on_policy(
    run: HealRun, budget: Budget, windows: TrainingWindows, best: float, main: FitResult
) -> OnPolicyResult:
    """Run the rounds; the student holds the best weights of all afterwards.

    `best` is its held-out loss so far, `main` the first part, `windows` what that read. On a machine that got slow
    there are fewer rounds, or none.
    """
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
    begun = (run.folder.path / f"round-{number}" / PLAN).is_file()
    seconds = max(0.0, run.ends - run.stopwatch.seconds)
    fitting = math.floor(seconds / (EVALUATIONS_PER_ROUND * eval_seconds)) if eval_seconds else rounds
    return run.distributed.broadcast(max(min(rounds, fitting), int(begun)))


def _round(
    run: HealRun, budget: Budget, windows: TrainingWindows, number: int, left: int, eval_tokens: int
) -> FitResult:
    """Round `number`, the first of the `left` ones that share the time."""
    read = budget.round_steps * run.options.batch_size  # windows of the round
    count = max(1, round(OWN_ROWS * read))
    ends = None if run.ends is None else run.stopwatch.part(run.ends, 1 / left)

    def write() -> SampledWindows:
        run.student.to(run.distributed.device)
        seed, enough = run.options.seed + 1000 * number, run.time_limit(WRITING_SHARE / left)
        return student_replies(run.student, run.data, run.context, count, seed=seed, enough=enough)

    replies = run.stored_windows(f"round-{number}.npz", write)
    random = np.random.default_rng([run.options.seed, 5, number])
    read_before = Chosen(windows, random.permutation(len(windows))[: max(1, read - count)])
    minutes = run.options.heal_minutes
    options = run.fit_options(
        OWN_RATE,
        labels_per_step=run.options.batch_size * _mean_labels(read_before),
        steps=budget.round_steps if minutes is None else None,
        max_minutes=None if minutes is None else minutes * budget.own_share / budget.rounds,
        eval_tokens=eval_tokens,
    )
    return run.fit(Joined(replies, read_before), run.objective(SKEW), options, f"round-{number}", ends)


def _mean_labels(windows: TrainingWindows) -> float:
    """Labels of an average window, by the first ones."""
    few = [windows[number]["labels"][1:] for number in range(min(len(windows), 256))]
    return max(1.0, sum(label != IGNORED for labels in few for label in labels) / len(few))
