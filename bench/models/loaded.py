"""One interface to a loaded model, whatever computes it: torch, our engine, or a peer's runtime.

A `LoadedModel` speaks token ids only. It gives timed greedy replies (for speed), token scores and logits (for quality),
and replies that are drawn token by token. What every model is measured by is the same code for all of them
(`bench.evaluate`, `bench.run`). What not every runtime can do is declared by a class attribute, `supports_concurrency`.
Methods of the runtimes' classes are documented here, unless there is more to say of one.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from chitchat.score import TokenScorer
    from serve.dialogue import Dialogue
    from serve.options import SamplingOptions

Floats = npt.NDArray[np.floating[Any]]
Ids = Sequence[int]


@dataclass(frozen=True)
class TimedReply:
    """One reply: `ttft_ms` to the first new token, `token_ms[i]` from new token i to i + 1, and the new `ids`."""

    ttft_ms: float
    token_ms: list[float]
    ids: list[int]


class LoadedModel(ABC):
    """A model in memory. `context` is the number of ids that it sees at most."""

    context: int
    supports_concurrency: ClassVar[bool] = False  # whether it has `generate_concurrent`

    @classmethod
    @abstractmethod
    def open(cls, spec: str, threads: int, device: str, slots: int = 1) -> Self:
        """Load the model of `spec` (a path or hub id) on `device` ("cpu", "cuda").

        `slots` is the number of conversations that will run at once.
        """

    @abstractmethod
    def generate(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, *, reuse: bool = False) -> TimedReply:
        """Give exactly `new_tokens` greedy tokens after `prompt`: the end of turn is suppressed.

        With `reuse` a runtime may keep what it computed of the prompt's beginning in the call before; without it,
        everything is computed anew.
        """

    def generate_concurrent(self, prompts: Sequence[Ids], new_tokens: int, end_of_turn_id: int) -> list[TimedReply]:
        """Give exactly `new_tokens` greedy tokens after each prompt, all asked for at the same moment.

        Only where `supports_concurrency`; raises NotImplementedError elsewhere.
        """
        raise NotImplementedError(f"{type(self).__name__} runs one conversation at a time")

    @abstractmethod
    def scorer(self) -> "TokenScorer":
        """A `chitchat.score.TokenScorer`."""

    @abstractmethod
    def logits(self, ids: Ids) -> Floats:
        """Logits after every one of `ids`, float32 [n, vocab]. Conversations are forgotten."""

    def batch_size(self, tokens: int) -> int:
        """How many conversations of at most `tokens` ids `start` takes at once."""
        return 1

    @abstractmethod
    def start(self, prompts: Sequence[Ids]) -> Floats:
        """Forget all conversations and start one with each prompt; the logits after them, float32 [prompts, vocab]."""

    @abstractmethod
    def step(self, rows: Sequence[int], tokens: Ids) -> Floats:
        """Add one of `tokens` to each of the conversations `rows` of the call before; the others are forgotten.

        The logits after the new ids, float32 [rows, vocab], hold until the next call.
        """

    def reply(self, prompt: Ids, options: "SamplingOptions", dialogue: "Dialogue") -> Iterator[int]:
        """Yield the ids of a sampled reply as they come, without its end of turn.

        This is `serve.sampler` around `start` and `step`; a runtime that ships its own loop overrides it.
        """
        from serve.sampler import build_sampler, draw

        end = dialogue.end_of_turn_id
        sample = build_sampler(options, dialogue.banned_ids, end)
        most = min(options.max_new_tokens, self.context - len(prompt))
        return draw(sample, end, most, self.start([prompt])[0], lambda token: self.step([0], [token])[0])


def time_tokens(begin: Callable[[], Iterable[int]], new_tokens: int) -> TimedReply:
    """The reply of a runtime that gives its `new_tokens` ids one by one, timed from the call of `begin` on."""
    stamps: list[float] = []
    ids: list[int] = []
    started = time.perf_counter()
    for token in begin():
        stamps.append(time.perf_counter())
        ids.append(int(token))
    return as_timed_reply(started, stamps, ids, new_tokens)


def as_timed_reply(started: float, stamps: Sequence[float], ids: Ids, new_tokens: int) -> TimedReply:
    """Turn `perf_counter` stamps, one at each new id, into a `TimedReply`.

    Raises RuntimeError for fewer or more ids than were asked for.
    """
    if not len(stamps) == len(ids) == new_tokens:
        raise RuntimeError(f"the runtime gave {len(ids)} new tokens in place of {new_tokens}")
    token_ms = [(after - before) * 1000 for before, after in pairwise(stamps)]
    return TimedReply((stamps[0] - started) * 1000, token_ms, list(ids))
