"""The common state of a training: model, windows, objective and options, processes and clock."""

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel

from chitchat.errors import BadInput
from chitchat.training.batches import GlobalBatches, TrainingWindows
from chitchat.training.distributed import Distributed
from chitchat.training.objective import Objective
from chitchat.training.options import FitOptions
from chitchat.training.stopwatch import Stopwatch


@dataclass(frozen=True)
class FitRun:
    """One training. By minutes it ends at `ends`, seconds on the `stopwatch`, of which the caller needs
    `closing_seconds` after the training. Raises `BadInput` if the batch cannot be divided evenly."""

    model: PreTrainedModel
    windows: TrainingWindows
    objective: Objective
    options: FitOptions
    distributed: Distributed
    stopwatch: Stopwatch
    ends: float | None = None
    closing_seconds: float = 0.0

    def __post_init__(self) -> None:
        size, accumulation = self.options.batch_size, self.options.grad_accumulation
        if size % self.parts:
            raise BadInput(
                f"--batch-size {size}: cannot be divided among {self.distributed.count} processes times "
                f"{accumulation} accumulation steps; give a multiple of {self.parts}"
            )

    @property
    def parts(self) -> int:
        """The number of micro-batches of an optimizer step, over all processes."""
        return self.distributed.count * self.options.grad_accumulation

    @cached_property
    def batches(self) -> GlobalBatches:
        """The windows of every optimizer step."""
        return GlobalBatches(self.windows.lengths, self.options.batch_size, self.options.seed)

    def padded_tokens(self, step: int) -> int:
        """The ids that step `step` (0-based) reads with padding, over all processes."""
        return self.batches.padded_tokens(step, self.parts)
