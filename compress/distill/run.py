"""One healing: student, teacher, data and clock, as its parts share them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from chitchat.data.dataset import ChatData, Windows
from chitchat.training.batches import TrainingWindows
from chitchat.training.distributed import Distributed
from chitchat.training.objective import Objective
from chitchat.training.options import FitOptions, FitResult
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.train import scratch_rate
from chitchat.training.trainer import fit
from chitchat.training.workfolder import WorkFolder
from compress.distill.objective import Distillation, next_token
from compress.distill.options import HealOptions
from compress.distill.samples import SampledWindows

# Shares of the rate of training, by the share of removed parameters; between the two they grow evenly. A refitted start
# is good already, and higher rates first make it worse (LOG.md).
SMALL_CUT, SMALL_CUT_RATE = 0.3, 0.08
BIG_CUT, BIG_CUT_RATE = 0.5, 0.25


@dataclass(frozen=True)
class HealRun:
    """One healing. `windows` and `held_out` are the splits of the data set in windows of `context` ids; `key` is what a
    resumed run must share. By minutes, it has the seconds from `begins` to `ends` on its `stopwatch`."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    data: ChatData
    windows: Windows
    held_out: Windows
    context: int
    options: HealOptions
    folder: WorkFolder
    key: Mapping[str, Any]
    resume: bool
    stopwatch: Stopwatch
    begins: float = 0.0
    ends: float | None = None

    @property
    def distributed(self) -> Distributed:
        """The processes of the run."""
        return self.folder.distributed

    @property
    def minutes(self) -> float:
        """The minutes that the healing has taken."""
        return (self.stopwatch.seconds - self.begins) / 60

    def time_limit(self, share: float) -> Callable[[], bool]:
        """A function that returns whether `share` of the time left now is over; always False without a limit."""
        until = None if self.ends is None else self.stopwatch.part(self.ends, share)
        return lambda: until is not None and self.stopwatch.seconds >= until

    def objective(self, skew: float = 0.0) -> Objective:
        """What is minimised; `skew` as `skewed_kl` takes it."""
        if self.options.heal_loss == "ce":
            return next_token(self.teacher, self.held_out)
        ours, theirs = self.student.config, self.teacher.config
        dropped = ours.num_hidden_layers < theirs.num_hidden_layers and ours.hidden_size == theirs.hidden_size
        return Distillation(self.teacher, self.held_out, dropped, skew, self.options.heal_labels)

    def fit_options(self, rate: float = 1.0, **budget: Any) -> FitOptions:
        """Options of one part with a share `rate` of the learning rate; `budget` are more fields of `FitOptions`."""
        options = self.options
        peak = options.learning_rate or default_rate(self.student, self.teacher)
        return FitOptions(
            learning_rate=rate * peak,
            batch_size=options.batch_size,
            grad_accumulation=options.grad_accumulation,
            seed=options.seed,
            **budget,
        )

    def fit(
        self, windows: TrainingWindows, objective: Objective, options: FitOptions, part: str, ends: float | None,
        key: Mapping[str, Any] | None = None,
    ) -> FitResult:  # fmt: skip
        """Train the student in the work folder `part`, until `ends` seconds on the stopwatch."""
        return fit(
            self.student, windows, objective, options, self.folder.path / part, key or self.key, resume=self.resume,
            stopwatch=self.stopwatch, ends=ends,
        )  # fmt: skip

    def stored_windows(self, name: str, write: Callable[[], SampledWindows]) -> SampledWindows:
        """The windows in the file `name` of the work folder, which the main process writes if it is not there."""
        file = self.folder.path / name

        def ensure() -> None:
            if not file.is_file():
                write().save(file)

        self.distributed.run_on_main(ensure)
        return SampledWindows.load(file)


def default_rate(student: PreTrainedModel, teacher: PreTrainedModel) -> float:
    """The peak learning rate: a share of that of training at the student's width, the larger the more was cut."""
    removed = 1 - student.num_parameters() / teacher.num_parameters()
    position = min(max((removed - SMALL_CUT) / (BIG_CUT - SMALL_CUT), 0.0), 1.0)
    return SMALL_CUT_RATE * (BIG_CUT_RATE / SMALL_CUT_RATE) ** position * scratch_rate(student.config.hidden_size)


@contextmanager
def dropout(model: PreTrainedModel, share: float | None) -> Iterator[None]:
    """Within, `model` drops `share` of its activations in training (None: what its layers say); the config stays."""
    layers = [] if share is None else [layer for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    own = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = share
        yield
    finally:
        for layer, p in zip(layers, own, strict=True):
            layer.p = p
