"""Choosing the next token from logits, in numpy.

The processors run in the order of transformers' `generate` (repetition penalty, no-repeat n-gram, minimum length,
banned ids, temperature, top-k, top-p, min-p) and give the same distribution; only the random numbers differ. The
sampler is a closure with a random generator of its own, so a request with a seed gives the same tokens whatever else
runs. It knows nothing of text.

Choosing a token takes a few percent of a decode step. After a step none of these arrays is in the CPU's caches, so the
number of numpy calls is what counts: the vocabulary is copied once and read a few times, and the few ids that can still
be drawn are weighed in plain Python.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.errors import BadRequest, ServeError
from serve.options import SamplingOptions
from serve.scored import ScoredToken

Sampler = Callable[[npt.NDArray[np.float32], Sequence[int]], int]
Ids = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float32]

_NUCLEUS_GUESS = 256  # most nuclei of a chat model are smaller, and then the vocabulary is not sorted
_FEW = 128  # up to so many candidates, Python is faster than numpy
_WIDE = 1024  # above so many, exp is computed in float32, which is four times as fast
_LOWEST = float(np.finfo(np.float32).min)
_MIN_TEMPERATURE = 1e-200  # below, nothing changes any more, and a division by it could overflow


def build_sampler(options: SamplingOptions, banned_ids: Sequence[int], end_of_turn_id: int) -> Sampler:
    """Build the sampler of one reply: `sample(logits float32 [vocab], bot_ids) -> id`; the logits are not changed.

    `bot_ids` are the ids of the reply so far. They are penalised together with the `earlier_ids` of ReplyOptions; the
    no-repeat n-gram looks at the reply alone, or a bot could say nothing twice in a conversation. The end of turn is
    never penalised: replies would grow longer with the conversation. Each call counts as one new token for
    `min_new_tokens`, so a sampler serves one reply. With `logprobs` the id is a ScoredToken. Greedy search takes the
    smallest id of equals. Raises ServeError for logits that are not numbers, BadRequest when the options ban every id.
    """
    process = _build_processors(options, banned_ids, end_of_turn_id)
    random = Random(options.seed)
    greedy, penalty, logprobs = options.temperature == 0, options.repetition_penalty, options.logprobs
    # Where no processor makes an id likelier, the likeliest one is the choice if none of them is about it.
    lowers_only = greedy and penalty >= 1.0 and not options.no_repeat_ngram
    special = {*banned_ids, end_of_turn_id, *getattr(options, "earlier_ids", ())}
    drawn = 0

    def choose(logits: Floats, bot_ids: Sequence[int], count: int) -> int:
        if lowers_only:
            token = int(logits.argmax())
            if token not in special and (penalty == 1.0 or token not in bot_ids) and math.isfinite(logits[token]):
                return token
        scores = process(logits, bot_ids, count)
        token = int(scores.argmax())
        if not math.isfinite(scores[token]):  # argmax stops at a NaN
            raise _nothing_to_choose(logits, token)
        if greedy:
            return token
        choice, edges = candidates(scores, options)
        index = bisect_right(edges, random.random() * edges[-1])
        return int(choice[min(index, len(choice) - 1)])

    def sample(logits: Floats, bot_ids: Sequence[int]) -> int:
        nonlocal drawn
        token = choose(logits, bot_ids, drawn)
        drawn += 1
        return token if logprobs is None else score(logits, token, logprobs)

    return sample


def draw(
    sample: Sampler, end_of_turn_id: int, most: int, logits: Floats, step: Callable[[int], Floats]
) -> Iterator[int]:
    """Yield the ids of one reply, `most` at the most; the end of turn ends it and is not yielded.

    `logits` float32 [vocab] are those after the prompt, `step(id)` gives those after one more id.
    """
    reply: list[int] = []
    while True:
        token = sample(logits, reply)
        if token == end_of_turn_id:
            return
        reply.append(token)
        yield token
        if len(reply) == most:
            return
        logits = step(token)


def _nothing_to_choose(logits: Floats, token: int) -> ServeError:
    if math.isfinite(logits[token]) or math.isfinite(logits.max()):
        return BadRequest("no_repeat_ngram, min_new_tokens: they leave no token to choose; lower min_new_tokens")
    return ServeError("the model gave logits that are not numbers; the bundle or the runtime is damaged")


def _build_processors(
    options: SamplingOptions, banned_ids: Sequence[int], end_of_turn_id: int
) -> Callable[[Floats, Sequence[int], int], Floats]:
    """Build the processors before the warpers: `process(logits, bot_ids, tokens so far) -> scores`, one buffer."""
    banned = np.unique(np.fromiter(banned_ids, dtype=np.intp))
    unfinished = np.append(banned, end_of_turn_id)
    earlier = np.unique(np.asarray(getattr(options, "earlier_ids", ()), dtype=np.intp))
    penalty, ngram, least = options.repetition_penalty, options.no_repeat_ngram, options.min_new_tokens
    scores: Floats = np.empty(0, dtype=np.float32)

    def process(logits: Floats, bot_ids: Sequence[int], count: int) -> Floats:
        nonlocal scores
        if len(scores) != len(logits):
            scores = np.empty(len(logits), dtype=np.float32)
        scores[:] = logits
        if penalty != 1.0:
            if len(earlier):
                penalise(scores, logits, earlier, penalty)
            penalise(scores, logits, bot_ids, penalty)
            scores[end_of_turn_id] = logits[end_of_turn_id]
        if ngram:
            scores[repeating(np.array(bot_ids, dtype=np.intp), ngram)] = -np.inf
        scores[unfinished if count < least else banned] = -np.inf
        return scores

    return process


def penalise(scores: Floats, logits: Floats, ids: Sequence[int] | Ids, penalty: float) -> None:
    """Make ids less likely: positive logits are divided, negative ones multiplied (CTRL, arXiv 1909.05858).

    Reads `logits` [vocab] and writes `scores` [vocab], so an id that occurs twice is penalised once.
    """
    by = np.float32(penalty)
    if len(ids) > _FEW:
        chosen = logits[ids]
        scores[ids] = (np.minimum if penalty >= 1 else np.maximum)(chosen * by, chosen / by)
        return
    factor = float(by)  # the double result, rounded to float32, is that of float32 arithmetic
    for i in ids:
        value = logits.item(i)
        scores[i] = value * factor if value < 0 else value / factor


def repeating(ids: Ids, size: int) -> Ids:
    """The ids that would repeat, after `ids`, an n-gram of `size` ids that occurs in them."""
    count = len(ids) - size + 1  # n-grams in `ids`; the last size - 1 ids begin the next one
    if count < 1:
        return ids[:0]
    same = np.ones(count, dtype=np.bool_)
    for index in range(size - 1):
        same &= ids[index : index + count] == ids[count + index]
    return ids[size - 1 :][same]


def candidates(scores: Floats, options: SamplingOptions) -> tuple[Sequence[int], Sequence[float]]:
    """Apply temperature, top-k, top-p and min-p: the ids that may be drawn, and their cumulated weights, [n] each.

    A weight is the probability over that of the likeliest id. Ties with the k-th score stay, as in transformers'
    TopKLogitsWarper; where the nucleus of top-p ends among ties, the smaller ids are in it. The ids come in any order.
    `options.temperature` is above 0, and some score is finite.
    """
    ids = _at_least(scores, _bound(scores, options.top_k))
    if len(ids) <= _FEW:
        return _weigh_few(ids.tolist(), scores[ids].tolist(), options)
    if options.top_k:
        ids = largest(scores, options.top_k)
    chosen = scores[ids].astype(np.float64)
    chosen -= chosen.max()
    chosen /= max(options.temperature, _MIN_TEMPERATURE)
    weights: npt.NDArray[np.floating[Any]]
    if len(ids) > _WIDE:
        with np.errstate(over="ignore"):  # -inf is right
            weights = np.exp(chosen.astype(np.float32))
    else:
        weights = np.exp(chosen)
    if options.top_p < 1.0:
        kept = _nucleus(weights, options.top_p)
        ids, weights = ids[kept], weights[kept]
    if options.min_p > 0.0:
        likely = weights >= options.min_p
        ids, weights = ids[likely], weights[likely]
    return ids, weights.cumsum(dtype=np.float64)  # type: ignore[return-value]


def _weigh_few(ids: list[int], scores: list[float], options: SamplingOptions) -> tuple[list[int], list[float]]:
    """`candidates` for a few ids, which hold at least the `top_k` largest; from the likeliest on, so all are cuts."""
    order = sorted(range(len(ids)), key=scores.__getitem__, reverse=True)  # stable: of equals the smaller id first
    falling = [scores[index] for index in order]
    count = len(falling)
    if 0 < options.top_k < count:
        count = options.top_k
        while count < len(falling) and falling[count] == falling[options.top_k - 1]:
            count += 1
    best, temperature = falling[0], max(options.temperature, _MIN_TEMPERATURE)
    edges = list(accumulate([math.exp((score - best) / temperature) for score in falling[:count]]))
    if options.top_p < 1.0:
        count = min(bisect_left(edges, options.top_p * edges[-1]) + 1, count)
    if options.min_p > 0.0:
        least = best + temperature * math.log(options.min_p)
        while falling[count - 1] < least:
            count -= 1
    return [ids[index] for index in order[:count]], edges[:count]


def _nucleus(weights: npt.NDArray[np.floating[Any]], top_p: float) -> Ids:
    """The indices of the fewest largest weights that hold the share `top_p`, in rising order, at least one."""
    wanted = top_p * weights.sum(dtype=np.float64)
    head = weights
    if len(weights) > _WIDE:
        head = weights[largest(weights, _NUCLEUS_GUESS)]
        if head.sum(dtype=np.float64) < wanted:
            head = weights
    falling = np.sort(head)[::-1]
    # A weight stays when the larger ones do not reach the share: all up to the first that does.
    count = min(int(falling.cumsum(dtype=np.float64).searchsorted(wanted)) + 1, len(falling))
    indices = (weights >= falling[count - 1]).nonzero()[0]
    if len(indices) > count:
        ties = (weights[indices] == falling[count - 1]).nonzero()[0]
        indices = np.delete(indices, ties[count - len(indices) :])
    return indices


def largest(values: npt.NDArray[np.floating[Any]], count: int) -> Ids:
    """The indices of the `count` (above 0) largest values and of ties with the last, rising; none of -inf."""
    indices = _at_least(values, _bound(values, count))
    if len(indices) <= count:
        return indices
    chosen = values[indices]
    floor = np.partition(chosen, len(chosen) - count)[len(chosen) - count]
    return indices[chosen >= floor]


def _bound(values: npt.NDArray[np.floating[Any]], count: int) -> float:
    """A value that the `count` largest (0: all) reach, few others do, and -inf does not.

    The `count`-th largest of the maxima of groups is no larger than the `count`-th largest of all.
    """
    groups = max(128, 4 * count)
    if not count or len(values) < 4 * groups:
        return _LOWEST
    whole = len(values) // groups * groups
    maxima = values[:whole].reshape(-1, groups).max(axis=0)
    maxima.partition(groups - count)
    return max(float(maxima[groups - count]), _LOWEST)


def _at_least(values: npt.NDArray[np.floating[Any]], bound: float) -> Ids:
    return (values >= bound).nonzero()[0]


def score(logits: Floats, token: int, count: int) -> ScoredToken:
    """The token with its log-probability and those of the `count` likeliest ids; the smaller id first among equals."""
    best = logits.max()
    norm = float(best) + math.log(np.exp(logits - best).sum(dtype=np.float64))
    scored = ScoredToken(token)
    scored.logprob = float(logits[token]) - norm
    indices = largest(logits, count) if count else np.empty(0, dtype=np.intp)
    order = (-logits[indices]).argsort(kind="stable")[:count]
    scored.likeliest = tuple((int(i), float(logits[i]) - norm) for i in indices[order])
    return scored
