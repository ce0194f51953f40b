"""The learning rate of every step: warm-up, stable, decay, with an end that can be moved while the run goes on.

A cosine is only right where it ends when it was planned to. Here the rate stays at its peak until the decay begins,
which is planned from the end backwards (warm-up, stable, decay: MiniCPM, arXiv 2404.06395; Hägele et al., arXiv
2405.18392). Those papers decay over a tenth or a fifth of the steps, by 1 - sqrt; in runs as short as ours a third of
the steps in a straight line came out best, and better than a cosine of the same length (LOG.md). Where the end lies is
a list of decisions: the planned one, and every one by which a machine that got slower, or a patience that was spent,
moved it. The rate of a step is a function of the decisions that were taken before it, and nothing else, so a resumed
run that finds them takes the same steps.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

DECAY_SHARE = 0.35  # of the steps
Cause = Literal["plan", "clock", "patience"]


@dataclass(frozen=True)
class Decision:
    """After `step` steps it was decided that the run has `end` steps in all."""

    step: int
    end: int
    cause: Cause


class RateSchedule:
    """The share of the peak rate, step by step; `warmup` is a share of the steps, see `warmup_steps`."""

    def __init__(self, decisions: list[Decision], warmup: float) -> None:
        self.decisions, self.warmup = decisions, warmup

    def end(self, step: int) -> int:
        """How many steps the run has, as it stands after `step` steps."""
        return self._before(step)[-1].end

    def decays(self, step: int) -> bool:
        """Whether the rate of step `step` (0-based) is below the peak for good."""
        return self._progress(step)[1] > 0

    def factor(self, step: int) -> float:
        """The share of the peak rate in step `step` (0-based): 0 in the first step of a warm-up, which fills the
        optimizer's moments alone, and above 0 up to the last one."""
        warm, decayed = self._progress(step)
        return warm * (1 - decayed)

    def _before(self, step: int) -> list[Decision]:
        return self.decisions[: max(1, bisect_right([decision.step for decision in self.decisions], step))]

    def _progress(self, step: int) -> tuple[float, float]:
        """How far warm-up and decay have come in step `step`, 0 to 1 each.

        Each goes evenly from where it stood at a decision to the end of its phase: a moved end bends both, and makes
        neither jump.
        """
        warm = decayed = 0.0
        known = self._before(step)
        for number, decision in enumerate(known):
            upto = known[number + 1].step if number + 1 < len(known) else step
            length = warmup_steps(self.warmup, decision.end)
            warm = _ramp(warm, decision.step, max(length, decision.step + length // 4), upto)
            begin = decision.step if decayed else max(decision.step, decision.end - round(DECAY_SHARE * decision.end))
            decayed = _ramp(decayed, begin, decision.end + 1, upto + (number + 1 == len(known)))
        return warm, decayed


def warmup_steps(share: float, total: int) -> int:
    """The steps of the warm-up: `share` of all, but 100 (or a quarter of a shorter run) at least, if there is one.

    Measured on 3 M parameters from scratch, 132 steps at 2e-3: validation loss 6.44 after 7 steps of warm-up, where
    the model stays at the frequencies of words, and 5.76 after 33.
    """
    return max(round(share * total), min(100, total // 4)) if share > 0 else 0


def patient_end(step: int) -> int:
    """The end of a run whose decay begins now, after `step` steps, with the usual share of all."""
    return step + max(1, round(step * DECAY_SHARE / (1 - DECAY_SHARE)))


def _ramp(progress: float, begin: int, end: int, upto: int) -> float:
    """`progress` at `upto` where it goes evenly to 1 from `begin` to `end`; at once where that is no way."""
    if end <= begin:
        return 1.0
    return progress + (1 - progress) * min(max((upto - begin) / (end - begin), 0.0), 1.0)
