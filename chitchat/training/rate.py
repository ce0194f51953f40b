"""The learning rate of every step: warm-up, then one of four schedules, with an end that can be moved during the run.

A cosine needs a fixed end. With wsd, the default, the rate stays at its peak until the decay begins, which is planned
backwards from the end (warm-up, stable, decay: MiniCPM, arXiv 2404.06395; Hägele et al., arXiv 2405.18392). Those
papers decay over a tenth or a fifth of the steps, by 1 - sqrt; in runs as short as these a linear decay over a third of
the steps was best, and better than a cosine of the same length (LOG.md). The end is a list of decisions: the planned
one, and those by which the clock or the patience moved it. The rate of a step depends only on the decisions before it,
so a resumed run that reads them takes the same steps.

linear and cosine decay from the warm-up to the end, constant does not. Where the end is moved, their decay continues
from where it was: bent, without a jump.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from chitchat.training.options import ScheduleKind

DECAY_SHARE = 0.35  # of the steps
Cause = Literal["plan", "clock", "patience"]


@dataclass(frozen=True)
class Decision:
    """Decided after `step` steps: the run has `end` steps in all."""

    step: int
    end: int
    cause: Cause


class RateSchedule:
    """The share of the peak rate, step by step; `warmup` is a share of the steps, see `warmup_steps`."""

    def __init__(self, decisions: list[Decision], warmup: float, kind: ScheduleKind = "wsd") -> None:
        self.decisions, self.warmup, self.kind = decisions, warmup, kind

    def end(self, step: int) -> int:
        """The number of steps of the run, as decided until after `step` steps."""
        return self._before(step)[-1].end

    def decays(self, step: int) -> bool:
        """Whether the decay has begun at step `step` (0-based), or none will come."""
        return self.kind == "constant" or self._progress(step)[1] > 0

    def patient_end(self, step: int) -> int | None:
        """The end of a run whose patience is spent after `step` steps; None where it ends no sooner than planned.

        A constant rate has nothing to wait for. The others decay for the usual share of all steps.
        """
        end = self.end(step)
        if step >= end or any(decision.cause == "patience" for decision in self.decisions):
            return None
        if self.kind == "constant":
            return step + 1
        return None if self.kind == "wsd" and self.decays(step) else min(patient_end(step), end)

    def factor(self, step: int) -> float:
        """The share of the peak rate in step `step` (0-based): 0 in the first step of a warm-up, which only fills the
        optimizer's moments, and above 0 until the last one."""
        warm, decayed = self._progress(step)
        match self.kind:
            case "constant":
                return warm
            case "cosine":
                return warm * (1 + math.cos(math.pi * decayed)) / 2
        return warm * (1 - decayed)

    def _before(self, step: int) -> list[Decision]:
        return self.decisions[: max(1, bisect_right([decision.step for decision in self.decisions], step))]

    def _progress(self, step: int) -> tuple[float, float]:
        """The progress of warm-up and decay at step `step`, 0 to 1 each.

        Each is linear from its value at a decision to the end of its phase, so a moved end causes no jump.
        """
        warm = decayed = 0.0
        known = self._before(step)
        for number, decision in enumerate(known):
            upto = known[number + 1].step if number + 1 < len(known) else step
            length = warmup_steps(self.warmup, decision.end)
            warm = _ramp(warm, decision.step, max(length, decision.step + length // 4), upto)
            planned = decision.end - round(DECAY_SHARE * decision.end) if self.kind == "wsd" else length
            begin = decision.step if decayed else max(decision.step, planned)
            decayed = _ramp(decayed, begin, decision.end + 1, upto + (number + 1 == len(known)))
        return warm, decayed


def warmup_steps(share: float, total: int) -> int:
    """The steps of the warm-up: `share` of all, but at least 100 (or a quarter of a shorter run) unless `share` is 0.

    Measured on 3 M parameters from scratch, 132 steps at 2e-3: validation loss 6.44 with 7 steps of warm-up, where the
    model learns word frequencies only, and 5.76 with 33.
    """
    return max(round(share * total), min(100, total // 4)) if share > 0 else 0


def patient_end(step: int) -> int:
    """The end of a run whose decay begins after `step` steps, with the usual share of all steps."""
    return step + max(1, round(step * DECAY_SHARE / (1 - DECAY_SHARE)))


def _ramp(progress: float, begin: int, end: int, upto: int) -> float:
    """`progress` at `upto`, linear from its value at `begin` to 1 at `end`; 1 if `end` is not after `begin`."""
    if end <= begin:
        return 1.0
    return progress + (1 - progress) * min(max((upto - begin) / (end - begin), 0.0), 1.0)
