"""A runtime that is asked for logits step by step: the loop around it is ours, and the same for all such peers."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from bench.models.loaded import Floats, Ids, LoadedModel, TimedReply, time_tokens

if TYPE_CHECKING:
    from chitchat.score import TokenScorer


class SteppingModel(LoadedModel):
    """One conversation at a time; a peer's class adds `__init__` and `run`."""

    @abstractmethod
    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        """See `LoadedModel.open`."""

    @classmethod
    def open(cls, spec: str, threads: int, device: str, slots: int = 1) -> Self:
        return cls(spec, threads, device, slots)

    @abstractmethod
    def run(self, ids: Ids, *, fresh: bool) -> Floats:
        """Add `ids` to the conversation, or to an empty one (`fresh`); the logits after each, float32 [n, vocab].

        A class with a `logits` of its own may give those after the last id alone, [1, vocab]. The array may be written
        to, and holds until the next call.
        """

    def feed(self, ids: Ids, *, fresh: bool) -> Floats:
        """The last row of `run`, [vocab]."""
        return self.run(ids, fresh=fresh)[-1]

    def logits(self, ids: Ids) -> Floats:
        return self.run(ids, fresh=True).copy()

    def begin(self, prompt: Ids, *, reuse: bool) -> Floats:
        """Start a conversation with `prompt`; a peer that can keep the beginning of the last one overrides this."""
        return self.feed(prompt, fresh=True)

    def generate(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, *, reuse: bool = False) -> TimedReply:
        return time_tokens(lambda: self.greedy(prompt, new_tokens, end_of_turn_id, reuse=reuse), new_tokens)

    def greedy(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, *, reuse: bool) -> Iterator[int]:
        """Yield what `generate` times, id by id; a peer that ships its own loop overrides this."""
        logits = self.begin(prompt, reuse=reuse)
        for left in reversed(range(new_tokens)):
            logits[end_of_turn_id] = -np.inf
            token = int(logits.argmax())
            yield token
            if left:
                logits = self.feed([token], fresh=False)

    def scorer(self) -> "TokenScorer":
        from serve.engine import score_rows

        def score(sequences: Sequence[Ids]) -> list[tuple[Floats, npt.NDArray[np.bool_]]]:
            return [score_rows(self.logits(ids[:-1]), ids[1:]) for ids in sequences]

        return score

    def start(self, prompts: Sequence[Ids]) -> Floats:
        (prompt,) = prompts
        return self.feed(prompt, fresh=True)[None]

    def step(self, rows: Sequence[int], tokens: Ids) -> Floats:
        return self.feed(tokens, fresh=False)[None]
