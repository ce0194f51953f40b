"""What every measured runtime gives: one reply with the times of its tokens, or several replies made side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from serve.dialogue import Dialogue
    from serve.options import SamplingOptions


@dataclass(frozen=True)
class TimedReply:
    """One reply: `ttft_ms` to the first new token, `token_ms[i]` from new token i to i + 1, and the new `ids`."""

    ttft_ms: float
    token_ms: list[float]
    ids: list[int]


class Backend(Protocol):
    """A loaded model."""

    def generate(
        self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int, *, reuse: bool = False
    ) -> TimedReply:
        """Give exactly `new_tokens` greedy tokens after `prompt`.

        With `reuse` a runtime may keep what it has computed of the prompt's beginning in the call before; without it,
        everything is computed anew.
        """

    def runtime(self) -> Any:
        """The loaded model as a `bench.models.runtime.Runtime`, for its quality and for replies that are drawn."""


class ReplyBackend(Backend, Protocol):
    """A loaded model that draws whole replies by a loop of its own, in place of the one around its `runtime()`."""

    def reply(self, prompt: Sequence[int], options: "SamplingOptions", dialogue: "Dialogue") -> Iterator[int]:
        """The ids of a reply as they come, without its end of turn."""


class ConcurrentBackend(Backend, Protocol):
    """A loaded model that can answer several conversations at once."""

    def generate_concurrent(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, end_of_turn_id: int
    ) -> list[TimedReply]:
        """Give exactly `new_tokens` greedy tokens after each prompt, all asked for at the same moment."""


def as_timed_reply(started: float, stamps: Sequence[float], ids: Sequence[int], new_tokens: int) -> TimedReply:
    """Turn `perf_counter` stamps, one at each new id, into a sample; fewer or more ids than asked is an error."""
    if not len(stamps) == len(ids) == new_tokens:
        raise RuntimeError(f"the runtime gave {len(ids)} new tokens in place of {new_tokens}")
    token_ms = [(after - before) * 1000 for before, after in pairwise(stamps)]
    return TimedReply((stamps[0] - started) * 1000, token_ms, list(ids))
