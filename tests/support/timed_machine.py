"""A machine whose clock is moved by the work itself, and an objective that takes its time on it."""


class Machine:
    """A clock that stands still but for the work that is done: `pace(now)` times two seconds for 1,000 ids.

    At each of `stalls` (from when on, for how many seconds) it stops once.
    """

    def __init__(self, pace=lambda now: 1.0, stalls=()):
        self.pace, self.stalls, self.now = pace, list(stalls), 0.0

    def clock(self):
        return self.now

    def work(self, ids):
        self.now += ids / 500 * self.pace(self.now)
        while self.stalls and self.now >= self.stalls[0][0]:
            self.now += self.stalls.pop(0)[1]


class Timed:
    """An objective whose steps and evaluations take their time on a machine."""

    def __init__(self, objective, machine):
        self.objective, self.machine = objective, machine

    def loss_sum(self, model, input_ids, labels):
        self.machine.work(input_ids.numel())
        return self.objective.loss_sum(model, input_ids, labels)

    def evaluate(self, model, max_tokens):
        self.machine.work(max_tokens / 3)
        return self.objective.evaluate(model, max_tokens)


def slower(since, times):
    return lambda now: times if now >= since else 1.0
