"""Choosing the next token from logits, in numpy.

The processors run in the order of transformers' `generate` (repetition penalty, minimum length, banned ids,
temperature, top-k, top-p) and give the same distribution; only the random numbers differ. The sampler is a closure
with a random generator of its own, so a request with a seed gives the same tokens whatever else runs. It knows nothing
of text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.errors import BadRequest, ServeError

Sampler = Callable[[npt.NDArray[np.float32], Sequence[int]], int]

# option: (lowest, highest, what the remedy says)
_LIMITS: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "give a number from 0 (greedy) to 100"),
    "top_k": (0, 2**31 - 1, "give a whole number, 0 for no limit"),
    "top_p": (0.0, 1.0, "give a number above 0, up to 1 (no limit)"),
    "repetition_penalty": (0.01, 100.0, "give a number from 0.01 to 100, 1 for no penalty"),
    "max_new_tokens": (1, 2**31 - 1, "give a whole number of at least 1"),
    "min_new_tokens": (0, 2**31 - 1, "give a whole number of at least 0"),
    "seed": (0, 2**63 - 1, "give a whole number from 0 to 2^63 - 1"),
}
_WHOLE = {"top_k", "max_new_tokens", "min_new_tokens", "seed"}
_NUCLEUS_GUESS = 256  # most nuclei of a chat model are smaller, and then the vocabulary is not sorted


@dataclass(frozen=True)
class SamplingOptions:
    """How replies are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off; no `seed` is a random one.

    `max_new_tokens` counts tokens of one reply, its end of turn not included; `min_new_tokens` tokens come before an
    end of turn may. Raises BadRequest (a ValueError) that names the option, the value and the remedy.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    repetition_penalty: float = 1.1
    max_new_tokens: int = 64
    min_new_tokens: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (field.name == "seed" and value is None):
                check_option(field.name, value)


def check_option(name: str, value: Any, shown: str | None = None) -> None:
    """Raise BadRequest unless `value` is allowed for the option; `shown` is the name that the user knows it by."""
    lowest, highest, remedy = _LIMITS[name]
    good = isinstance(value, int if name in _WHOLE else int | float) and not isinstance(value, bool)
    if not good or not lowest <= value <= highest or (name == "top_p" and value <= 0):  # NaN is in no range
        raise BadRequest(f"{shown or name} {_short(value)}: {remedy}")


def _short(value: Any) -> str:
    """Show a value in an error: bounded, since it may come from the network and be of any size."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "(a huge number)"  # str() of an int above 4,300 digits raises
    if isinstance(value, int | float | bool) or value is None:
        return str(value)
    return f"({type(value).__name__})"


def build_sampler(options: SamplingOptions, banned_ids: Sequence[int], end_of_turn_id: int) -> Sampler:
    """Build the sampler of one reply: `sample(logits float32 [vocab], bot_ids) -> id`; the logits are not changed.

    `bot_ids` are the ids whose repetition is penalised: those of the reply so far, and of the bot's earlier turns if
    the caller wants that. The end of turn is never penalised: it is no word, and replies would grow with the talk.
    Each call counts as one new token for `min_new_tokens`, so a sampler serves one reply. Raises ServeError when the
    logits leave nothing to choose (NaN, or every id banned).
    """
    banned = np.asarray(sorted(set(banned_ids)), dtype=np.intp)
    random = np.random.Generator(np.random.PCG64(options.seed))
    drawn = 0

    def sample(logits: npt.NDArray[np.float32], bot_ids: Sequence[int]) -> int:
        nonlocal drawn
        scores = np.array(logits, dtype=np.float32)  # a copy
        if options.repetition_penalty != 1.0:
            penalise(scores, set(bot_ids) - {end_of_turn_id}, options.repetition_penalty)
        if drawn < options.min_new_tokens:
            scores[end_of_turn_id] = -np.inf
        scores[banned] = -np.inf
        drawn += 1
        best = int(scores.argmax())
        if not math.isfinite(scores[best]):  # argmax stops at a NaN
            raise ServeError("the model gave logits that are not numbers; the bundle or the runtime is damaged")
        if options.temperature == 0:
            return best
        ids, probabilities = candidates(scores, options)
        edges = np.cumsum(probabilities)
        place = int(np.searchsorted(edges, random.random() * edges[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])

    return sample


def penalise(scores: npt.NDArray[np.float32], seen: set[int], penalty: float) -> None:
    """Make the seen ids less likely, in place: positive scores are divided, negative ones multiplied (CTRL)."""
    if not seen:
        return
    ids = np.fromiter(seen, dtype=np.intp, count=len(seen))
    chosen = scores[ids]
    scores[ids] = np.where(chosen < 0, chosen * np.float32(penalty), chosen / np.float32(penalty))


def candidates(
    scores: npt.NDArray[np.float32], options: SamplingOptions
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Apply temperature, top-k and top-p: the ids that may be drawn and their probabilities, [n] each, sum 1.

    Ties with the k-th score stay, as in transformers' TopKLogitsWarper. `options.temperature` is above 0.
    """
    size = len(scores)
    if 0 < options.top_k < size:
        floor = np.partition(scores, size - options.top_k)[size - options.top_k]
        ids = np.flatnonzero((scores >= floor) & (scores > -np.inf))
    else:
        ids = np.flatnonzero(scores > -np.inf)
    logits = scores[ids].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: -inf is right, its probability is 0
        probabilities = np.exp((logits - logits.max()) / options.temperature)
    probabilities /= probabilities.sum()
    if options.top_p < 1.0:
        kept = _nucleus(probabilities, options.top_p)
        ids, probabilities = ids[kept], probabilities[kept]
        probabilities /= probabilities.sum()
    return ids, probabilities


def _nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.intp]:
    """Give the places of the fewest largest probabilities that reach `top_p`, largest first, at least one."""
    size, guess = len(probabilities), _NUCLEUS_GUESS
    head = np.arange(size)
    while 2 * guess < size:
        largest = np.argpartition(probabilities, size - guess)[size - guess :]
        if probabilities[largest].sum() >= top_p:
            head = largest
            break
        guess *= 4
    head = head[np.argsort(-probabilities[head])]
    before = np.cumsum(probabilities[head]) - probabilities[head]  # what larger ones already cover
    kept = before < top_p
    kept[0] = True
    return head[kept]
