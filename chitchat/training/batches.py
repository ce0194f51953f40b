"""The windows of every optimizer step: a pure function of lengths, seed and step, the same on every machine.

An optimizer step reads one *global* batch, divided among processes and accumulation steps. So the windows of a step do
not depend on the number of processes, and a resumed run only needs the number of its step.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from chitchat.data.windows import collate

# Windows are sorted by length within pools of this many batches: little padding, and a new order in every pass.
POOL_BATCHES = 32


class TrainingWindows(Protocol):
    """What a training reads: `chitchat.data.windows.Windows` or an equivalent."""

    lengths: np.ndarray

    def __len__(self) -> int:
        """The number of windows."""

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """`input_ids` and `labels` (not shifted), lists of `length` ints."""


class GlobalBatches:
    """The windows of every optimizer step.

    The passes over the data form an endless stream of windows, each pass in a new order. The stream is cut into pools;
    a pool is sorted by length, cut into batches, and its batches are shuffled.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        # If a pool had a window several times, the copies would be in one batch.
        most = max(1, len(self.lengths) // (2 * batch_size))
        self.pool_batches = min(POOL_BATCHES, most)
        self._pass = lru_cache(maxsize=2)(
            lambda number: np.random.default_rng([seed, 1, number]).permutation(len(lengths))
        )
        self._pool = lru_cache(maxsize=1)(self._sorted_pool)

    def __getitem__(self, step: int) -> np.ndarray:
        """The indices of the windows of optimizer step `step` (0-based), int64 [batch_size]."""
        pool, batch = divmod(step, self.pool_batches)
        return self._pool(pool)[batch]

    def tokens(self, steps: int) -> int:
        """The ids that the first `steps` steps read, without padding."""
        return int(sum(self.lengths[self[step]].sum() for step in range(steps)))

    def padded_tokens(self, step: int, parts: int = 1) -> int:
        """The ids that step `step` reads with padding, if the batch is divided into `parts`."""
        return sum(int(self.lengths[part].max()) * len(part) for part in share_out(self[step], parts))

    def _sorted_pool(self, pool: int) -> list[np.ndarray]:
        """The shuffled batches of a pool; within a batch the longest window is first."""
        size = self.pool_batches * self.batch_size
        positions = np.arange(pool * size, (pool + 1) * size)
        passes, indices = np.divmod(positions, len(self.lengths))
        windows = np.concatenate([self._pass(int(number))[indices[passes == number]] for number in np.unique(passes)])
        windows = windows[np.argsort(-self.lengths[windows], kind="stable")]
        batches = windows.reshape(self.pool_batches, self.batch_size)
        order = np.random.default_rng([self.seed, 2, pool]).permutation(self.pool_batches)
        return [batches[index] for index in order]


def share_out(batch: np.ndarray, parts: int) -> list[np.ndarray]:
    """Divide a global batch into `parts` of equal size and about equal numbers of tokens."""
    return [batch[part::parts] for part in range(parts)]


def training_batch(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Windows as a right-padded batch, `input_ids` and `labels` int64 [rows, longest].

    Padding is neither attended to nor scored, so its id does not matter.
    """
    batch = collate(rows, pad_id=0)
    batch["labels"][:, 0] = -100  # nothing predicts the first id, and the Trainer counts labels
    return {"input_ids": batch["input_ids"], "labels": batch["labels"]}


class ProcessBatches:
    """The batch sampler of one process for a `DataLoader`: one epoch of `steps` times `accumulation` batches, so that a
    resumed run skips the finished ones by number."""

    def __init__(self, batches: GlobalBatches, steps: int, accumulation: int, process: int, processes: int) -> None:
        self.batches = batches
        self.steps = steps
        self.accumulation = accumulation
        self.process = process
        self.processes = processes

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.steps):
            parts = share_out(self.batches[step], self.accumulation * self.processes)
            for number in range(self.accumulation):
                yield parts[number * self.processes + self.process].tolist()
