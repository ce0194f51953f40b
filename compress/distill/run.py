"""One healing: who learns from whom, on what, and what the parts of it share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import GPT2LMHeadModel

from chitchat.data.dataset import ChatData, Windows
from chitchat.errors import ChitchatError
from chitchat.training.objective import Objective
from chitchat.training.options import FitOptions
from chitchat.training.processes import Distributed
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.train import scratch_rate
from compress.distill.objective import Distillation, next_token
from compress.distill.options import HealOptions
from compress.distill.samples import SampledWindows

# Shares of the rate of training, by the share of removed parameters; between the two they grow evenly. A refitted start
# is good already, and higher rates first make it worse (LOG.md).
SMALL_CUT, SMALL_CUT_RATE = 0.3, 0.08
BIG_CUT, BIG_CUT_RATE = 0.5, 0.25

T = TypeVar("T")


@dataclass(frozen=True)
class HealRun:
    """`windows` and `held_out` are those of the data set at `context`; `key` is what a resumed run must share.

    By minutes, the healing has the seconds from `begins` to `ends` on its `stopwatch`.
    """

    student: GPT2LMHeadModel
    teacher: GPT2LMHeadModel
    data: ChatData
    windows: Windows
    held_out: Windows
    context: int
    options: HealOptions
    work: Path
    key: Mapping[str, Any]
    resume: bool
    processes: Distributed
    stopwatch: Stopwatch
    begins: float = 0.0
    ends: float | None = None

    @property
    def minutes(self) -> float:
        """Those that the healing has taken."""
        return (self.stopwatch.seconds - self.begins) / 60

    def over(self, share: float) -> Callable[[], bool]:
        """Tells whether that share of the time that is left now has gone; it never has where there is no limit."""
        until = None if self.ends is None else self.stopwatch.part(self.ends, share)
        return lambda: until is not None and self.stopwatch.seconds >= until

    def objective(self, skew: float = 0.0) -> Objective:
        """What is minimised; `skew` as `skewed_kl` takes it."""
        if self.options.heal_loss == "ce":
            return next_token(self.teacher, self.held_out)
        ours, theirs = self.student.config, self.teacher.config
        dropped = ours.n_layer < theirs.n_layer and ours.n_embd == theirs.n_embd
        return Distillation(self.teacher, self.held_out, dropped, skew, self.options.heal_labels)

    def fit_options(self, rate: float = 1.0, **budget: Any) -> FitOptions:
        """Options of one part with that share of the learning rate; `budget` are more fields of `FitOptions`."""
        options = self.options
        peak = options.learning_rate or default_rate(self.student, self.teacher)
        return FitOptions(
            learning_rate=rate * peak,
            batch_size=options.batch_size,
            grad_accumulation=options.grad_accumulation,
            seed=options.seed,
            **budget,
        )

    def run_on_main(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, in every process; its error too."""

        def attempt() -> T | ChitchatError:
            try:
                return work()
            except ChitchatError as error:
                return error

        result = self.processes.broadcast(attempt() if self.processes.first else None)
        if isinstance(result, ChitchatError):
            raise result
        return result

    def stored_windows(self, file: Path, write: Callable[[], SampledWindows]) -> SampledWindows:
        """The windows in `file`, which the first process writes if they are not there."""

        def ensure() -> None:
            if not file.is_file():
                write().save(file)

        self.run_on_main(ensure)
        return SampledWindows.load(file)


def default_rate(student: GPT2LMHeadModel, teacher: GPT2LMHeadModel) -> float:
    """The peak rate: a share of that of training at the student's width, the larger the more was cut."""
    removed = 1 - student.num_parameters() / teacher.num_parameters()
    way = min(max((removed - SMALL_CUT) / (BIG_CUT - SMALL_CUT), 0.0), 1.0)
    return SMALL_CUT_RATE * (BIG_CUT_RATE / SMALL_CUT_RATE) ** way * scratch_rate(student.config.n_embd)


@contextmanager
def dropout(model: GPT2LMHeadModel, share: float | None) -> Iterator[None]:
    """Within, `model` drops `share` of its activations in training; its configuration and the rest after stay."""
    layers = [] if share is None else [layer for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    own = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = share
        yield
    finally:
        for layer, p in zip(layers, own, strict=True):
            layer.p = p
