"""Keeps a run within its minutes: measures the steps, and moves the end if the run would be too early or too late.

The planned end stays as long as the run would take between 92 and 103 % of its minutes, so that a kill, whose lost work
and restart cost a few per cent, changes no step. Otherwise the end is moved to use 97 % of them, or all of them if the
machine got slow. A run that was stopped until after its end takes only the steps that it needs to decay.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable

from chitchat.training.rate import Decision, RateSchedule
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.workfolder import TrainingPlan

AIM, EARLY, LATE = 0.97, 0.92, 1.03  # shares of the minutes: the planned end, and the limits beyond which it is moved
LAST_DECAY = 0.03  # of the minutes, for a decay that begins after its time
MAX_CLOSING = 0.05  # of the minutes, for the work after the training; on a slow machine it suffers less than the steps
_STEPS_SEEN, _LAST_STEPS = 16, 5  # steps that the speed of the machine is estimated from


class Pacer:
    """Decides after every step, in the main process. Costs are measured in padded ids, `tokens(step)` of a step
    (0-based): batches differ in length, and evaluations and saves slow down with the machine as steps do."""

    def __init__(
        self, plan: TrainingPlan, schedule: RateSchedule, tokens: Callable[[int], int], stopwatch: Stopwatch
    ) -> None:
        self.plan, self.schedule, self.tokens, self.stopwatch = plan, schedule, tokens, stopwatch
        self._mean_tokens = statistics.fmean(tokens(step) for step in range(64))
        planned = plan.step_seconds / self._mean_tokens
        self._token_seconds: deque[float] = deque(maxlen=_STEPS_SEEN)
        self._planned_token_seconds = planned
        self._evaluations, self._saves = [plan.evaluation_seconds / planned], [plan.save_seconds / planned]
        self._lap, self._warm = stopwatch.seconds, False
        self._grace = 0.0  # the time until which a late decay may continue

    def begin(self) -> None:
        """Note that the steps begin now."""
        self._lap, self._warm = self.stopwatch.seconds, False

    def evaluated(self) -> None:
        """Note that an evaluation has just ended."""
        self._evaluations.append(self._seconds_since() / self._rate())

    def saved(self) -> None:
        """Note that a checkpoint has just been written."""
        self._saves.append(self._seconds_since() / self._rate())

    @property
    def evaluation_seconds(self) -> float:
        """Seconds of an evaluation at the current speed."""
        return self._rate() * statistics.median(self._evaluations)

    def stepped(self, step: int) -> Decision | None:
        """The decision after `step` steps, if one is due; None if an earlier process has taken it."""
        token_seconds = self._seconds_since() / self.tokens(step - 1)
        if self._warm:  # the first step of a process is slower
            self._token_seconds.append(token_seconds)
        self._warm = True
        if self.plan.ends is None or step <= self.schedule.decisions[-1].step:
            return None
        now, end = self.stopwatch.seconds, self.schedule.end(step)
        ready = now + (end - step) * self._step_seconds() + self._closing_seconds()
        window = self._window
        late = ready > max(self.plan.begins + LATE * window, self._grace)
        gave_up = any(decision.cause == "patience" for decision in self.schedule.decisions)
        early = ready < self.plan.begins + EARLY * window and step < end and self._knows() and not gave_up
        if not late and not early:
            return None
        moved = step + self._steps_left(step, now, 1.0 if late else AIM)
        if len(self._token_seconds) < _LAST_STEPS < moved - step:  # too few measurements, and no hurry
            return None
        return Decision(step, moved, "clock") if (moved < end if late else moved > end) else None

    def impatient(self, step: int) -> Decision | None:
        """The decision where patience is spent: the end begins now; a decay that has begun continues as planned."""
        end = self.schedule.patient_end(step)
        if end is None or step <= self.schedule.decisions[-1].step:
            return None
        return Decision(step, end, "patience")

    def _steps_left(self, step: int, now: float, aim: float) -> int:
        window = self._window
        left = self.plan.begins + aim * window - now - self._closing_seconds()
        if not self.schedule.decays(step) and left < LAST_DECAY * window:
            left = LAST_DECAY * window
            self._grace = now + 2 * left + self._closing_seconds()
        return max(0, math.floor(left / self._step_seconds()))

    def _rate(self) -> float:
        """Recent seconds per padded id: the mean of the last steps without the slowest eighth (a process that was
        stopped for a minute is not slow), or the median of the very last ones if that is more."""
        if not self._token_seconds:
            return self._planned_token_seconds
        last = statistics.median(list(self._token_seconds)[-_LAST_STEPS:])
        if not self._knows():
            return last
        return max(last, statistics.fmean(sorted(self._token_seconds)[: _STEPS_SEEN - _STEPS_SEEN // 8]))

    def _knows(self) -> bool:
        return len(self._token_seconds) == _STEPS_SEEN

    def _step_seconds(self) -> float:
        """Of a future step, with its share of evaluations and saves."""
        between = statistics.median(self._evaluations) / self.plan.eval_every
        between += statistics.median(self._saves) / self.plan.save_every
        return self._rate() * (self._mean_tokens + between)

    def _closing_seconds(self) -> float:
        """Of the work after the last step: an evaluation, a checkpoint, and what the caller does."""
        planned, slowness = self.plan.closing_seconds, self._rate() / self._planned_token_seconds
        closing = min(planned * slowness, max(planned, MAX_CLOSING * self._window))
        return self.evaluation_seconds + self._rate() * statistics.median(self._saves) + closing

    @property
    def _window(self) -> float:
        """Seconds of the run."""
        return 0.0 if self.plan.ends is None else self.plan.ends - self.plan.begins

    def _seconds_since(self) -> float:
        before, self._lap = self._lap, self.stopwatch.seconds
        return max(self._lap - before, 1e-9)
