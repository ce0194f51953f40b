"""A runtime that is asked for logits step by step: the loop around it is ours, and the same for all such peers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.models.backend import TimedReply, as_timed_reply

Floats = npt.NDArray[np.floating[Any]]


class SteppingBackend(ABC):
    """What a peer's class adds is `feed` and `logits`; `context` is how many ids its model sees at most."""

    context: int

    @abstractmethod
    def feed(self, ids: Sequence[int], *, fresh: bool) -> Floats:
        """Add `ids` to the conversation, or to an empty one (`fresh`); the logits after the last, float32 [vocab].

        The array may be written to, and holds until the next call.
        """

    @abstractmethod
    def logits(self, ids: Sequence[int]) -> Floats:
        """Logits after every one of `ids`, float32 [n, vocab]. The conversation is forgotten."""

    def begin(self, prompt: Sequence[int], *, reuse: bool) -> Floats:
        """Start a conversation with `prompt`; a peer that can keep the beginning of the last one overrides this."""
        return self.feed(prompt, fresh=True)

    def generate(
        self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int, *, reuse: bool = False
    ) -> TimedReply:
        """See `bench.models.backend.Backend.generate`."""
        times: list[float] = []
        ids: list[int] = []
        started = time.perf_counter()
        logits = self.begin(prompt, reuse=reuse)
        while True:
            logits[end_of_turn_id] = -np.inf
            ids.append(int(logits.argmax()))
            times.append(time.perf_counter())
            if len(ids) == new_tokens:
                return as_timed_reply(started, times, ids, new_tokens)
            logits = self.feed(ids[-1:], fresh=False)

    def runtime(self) -> Any:
        """See `bench.models.backend.Backend.runtime`."""
        return SteppingRuntime(self)


class SteppingRuntime:
    """Such a backend as quality is measured on it (`bench.models.runtime.Runtime`), one conversation at a time."""

    def __init__(self, backend: SteppingBackend) -> None:
        self._backend = backend
        self.context: int = backend.context

    def scorer(self) -> Any:
        """See `Runtime.scorer`."""
        from serve.engine import score_rows

        def score(sequences: Sequence[Sequence[int]]) -> list[tuple[Floats, npt.NDArray[np.bool_]]]:
            return [score_rows(self._backend.logits(ids[:-1]), ids[1:]) for ids in sequences]

        return score

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Runtime.logits`."""
        return self._backend.logits(ids)

    def rows(self, tokens: int) -> int:
        """See `Runtime.rows`."""
        return 1

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """See `Runtime.start`."""
        (prompt,) = prompts
        return self._backend.feed(prompt, fresh=True)[None]

    def step(self, going: Sequence[int], tokens: Sequence[int]) -> Floats:
        """See `Runtime.step`."""
        return self._backend.feed(tokens, fresh=False)[None]
