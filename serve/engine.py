"""The engine: a bundle's graph on onnxruntime, with a slot of the KV cache for each conversation. Token ids only.

There are two kinds of runs. A *feed* prefills a chunk of one slot's tokens; a *decode* computes one token in each of
several slots, in one run over the range from the lowest to the highest of them. Slots in between are computed too, and
their keys and values written after their last token, where nothing reads. Which runs come when is the scheduler's
(serve/scheduler.py); for one conversation alone there are `prefill`, `step` and `stream`, on slot 0.

The engine is exact: a conversation's logits have the same bits alone, beside others, after others, and for any chunks
of its prompt. What changes bits, as measured for float32 and MatMulNBits graphs, is a matrix product with one row, for
which other kernels are used. Therefore:
- MatMulNBits: a decode runs at least two slots, and a chunk has at least two tokens.
- Attention over a chunk works on blocks of 2 * head_dim queries (fewer where the level-2 cache is small), and the last
  one can have one row: a chunk is padded to an even number of tokens, and is not longer than MAX_CHUNK.
- Attention of a decode multiplies one row: the keys and values of the layers above it have other bits than a chunk
  would give them. So of what a slot holds from an earlier turn, a new prompt takes only what was fed.
- With more threads than heads * slots, a decode in which all slots are equally long splits its sums among threads: no
  more than 2 * heads threads are started.
An engine with a single slot always decodes one row, with the faster kernel, and is exact in itself.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from serve.bundle import Bundle
from serve.cache import KVCache
from serve.cpu import physical_cores
from serve.errors import BadRequest, ContextExceeded
from serve.graph_selection import PROVIDERS, choose, find_providers
from serve.options import SamplingOptions
from serve.sampler import build_sampler, draw
from serve.session import Logits, Runs, kv_dtype, open_session

MAX_CHUNK = 64  # tokens of one run; more are no faster, and logits for all of them take 64 * 50,257 floats, 13 MB
MAX_SLOTS = 64

Scorer = Callable[[Sequence[Sequence[int]]], list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]]]


class Engine:
    """One model in memory and the conversations in its cache. Not for use by two threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        *,
        slots: int = 1,
        exact: bool = True,
        device: str | None = None,
    ) -> None:
        """Load the graph for `device`. `threads` None takes the physical cores that this process may use.

        `exact` False gives up the same bits for speed: a slot that decodes alone takes the one-row kernel, and all
        that a slot holds is used again. Raises BadBundle, and BadRequest for an option.
        """
        if threads is not None and threads < 1:
            raise BadRequest(f"threads {threads}: give a number of at least 1")
        if not 1 <= slots <= MAX_SLOTS:
            raise BadRequest(f"slots {slots}: give a number from 1 to {MAX_SLOTS}")
        self.choice = choose(bundle, device, find_providers())
        self.bundle = bundle
        self.geometry = bundle.geometry
        self.context = bundle.geometry.context
        self.dialogue = bundle.dialogue
        self.slots = slots
        self.exact = exact
        self.threads = threads or physical_cores()
        if self.exact and slots > 1:
            self.threads = min(self.threads, 2 * self.geometry.heads)
        session = open_session(self.choice, self.threads)
        device_type = "cuda" if self.choice.provider == PROVIDERS["cuda"] else "cpu"
        self._cache = KVCache(self.geometry, slots, kv_dtype(session), device_type)
        self._runs = Runs(session, self._cache, self.geometry.vocab, on_device=device_type != "cpu")

    # --- slots: for the scheduler

    def match(self, slot: int, ids: Sequence[int]) -> int:
        """How many leading tokens of `ids` a slot already holds and may be reused: at most all but the last."""
        return min(self._cache.match(ids, slot, prefilled=self.exact), len(ids) - 1)

    def held(self, slot: int) -> int:
        """How many tokens a slot holds that a later turn could use."""
        return self._cache.prefilled(slot) if self.exact else self._cache.length(slot)

    def begin(self, slot: int, ids: Sequence[int]) -> int:
        """Assign a slot to a conversation that starts with `ids`; returns how many of them it already holds."""
        kept = self.match(slot, ids)
        self._cache.trim(kept, slot)
        return kept

    def feed(self, slot: int, ids: Sequence[int]) -> Logits:
        """Add a chunk to a slot; give the logits [vocab] after its last token, overwritten by the next run.

        Raises BadRequest for ids that the model does not have, and ContextExceeded for more than the slot takes.
        """
        self._check_slot(slot)
        self.check(ids)
        if len(ids) > self._cache.room(slot):
            raise self._full(self._cache.length(slot) + len(ids))
        for start in range(0, len(ids), MAX_CHUNK):
            logits = self._feed(slot, ids[start : start + MAX_CHUNK], rows=1)
        return logits[0]

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> list[Logits]:
        """Add one token to each of `slots`, in one run; give the logits [vocab] after each, in the order of `slots`.

        They are overwritten by the next run. Raises as `feed` does, and then no slot has changed.
        """
        self.check(tokens)
        for slot in slots:
            self._check_slot(slot)
            if not self._cache.room(slot):
                raise self._full(self.context + 1)
        if len(set(slots)) != len(tokens) or len(slots) != len(tokens):
            raise BadRequest(f"{len(slots)} slots and {len(tokens)} tokens: give one token for each of different slots")
        first, count = self._range(min(slots), max(slots))
        run, past = self._runs.get(first, count, 1), self._cache.lengths[first : first + count]
        if count > len(slots):
            run.ids[:] = 0  # rows of slots in between need some token
        for slot, token in zip(slots, tokens, strict=True):
            run.ids[slot - first, 0] = token
        run.positions[:, 0] = past
        run.last[:] = past  # one more than before, minus one
        run.total[...] = max(past) + 1
        logits = run()
        for slot, token in zip(slots, tokens, strict=True):
            self._cache.append(token, slot)
        return [logits[slot - first, 0] for slot in slots]

    def forget(self, slot: int) -> None:
        """Forget what a slot holds."""
        self._cache.reset(slot)

    def check(self, ids: Sequence[int], room: int = 0) -> None:
        """Raise BadRequest unless the model has all `ids`, ContextExceeded unless they leave `room` in the context."""
        if not len(ids):
            raise BadRequest("the prompt has no tokens; give at least one")
        if len(ids) + room > self.context:
            raise ContextExceeded(
                f"the prompt has {len(ids)} tokens, the context holds {self.context - room}; shorten it",
                prompt_tokens=len(ids),
                limit=self.context - room,
            )
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.geometry.vocab:  # onnxruntime takes -1 for the last row of the table
            bad = low if low < 0 else high
            raise BadRequest(f"token id {bad}: the vocabulary has 0 to {self.geometry.vocab - 1}")

    # --- one conversation, on slot 0

    def reset(self) -> None:
        """Forget the conversations of all slots."""
        for slot in range(self.slots):
            self._cache.reset(slot)

    def prefill(self, ids: Sequence[int]) -> Logits:
        """Start a conversation with `ids`; give the logits [vocab] that follow the last one.

        The array is overwritten by the next call. Raises BadRequest for ids that the model does not have, and
        ContextExceeded for more of them than the context holds.
        """
        self.check(ids, room=self.context - self._cache.capacity)
        self._cache.reset()
        return self.feed(0, ids)

    def step(self, token: int) -> Logits:
        """Add one token to the conversation; give the logits [vocab] that follow it (overwritten by the next call)."""
        return self.decode([0], [token])[0]

    def stream(self, prompt_ids: Sequence[int], options: SamplingOptions) -> Iterator[int]:
        """Yield the ids of a reply: until its end of turn (not given), `max_new_tokens`, or a full context.

        What the cache still holds of an earlier turn of the conversation is not computed again (`reset` forgets it).
        Everything is checked when it is called, before the first id is asked for. Raises BadRequest (ContextExceeded)
        for a prompt that leaves no room in the context.
        """
        self.check(prompt_ids, room=1)
        return self._generate(list(prompt_ids), options)

    def logits(self, ids: Sequence[int]) -> Logits:
        """Logits after every one of `ids`, [n, vocab], a copy. The conversation in the cache is forgotten."""
        self.check(ids, room=self.context - self._cache.capacity)
        chunks = [chunk.copy() for chunk in self._score_chunks(ids)]
        return np.concatenate(chunks)

    def scorer(self) -> Scorer:
        """The function that scores held-out text through this runtime.

        For each sequence of n ids: the nats of ids[1:] (float64 [n - 1]), and whether each was the likeliest (bool
        [n - 1]).
        """

        def score(
            sequences: Sequence[Sequence[int]],
        ) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]]:
            return [self._score(sequence) for sequence in sequences]

        return score

    def _generate(self, prompt_ids: list[int], options: SamplingOptions) -> Iterator[int]:
        end = self.dialogue.end_of_turn_id
        sample = build_sampler(options, self.dialogue.banned_ids, end)
        most = min(options.max_new_tokens, self.context - len(prompt_ids))
        logits = self.feed(0, prompt_ids[self.begin(0, prompt_ids) :])
        yield from draw(sample, end, most, logits, self.step)

    def _score(self, ids: Sequence[int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        self.check(ids)
        nats, hits, done = [], [], 1
        for logits in self._score_chunks(ids[:-1]):
            scored = score_rows(logits, ids[done : done + len(logits)])
            nats.append(scored[0])
            hits.append(scored[1])
            done += len(logits)
        if not nats:
            return np.zeros(0), np.zeros(0, dtype=bool)
        return np.concatenate(nats), np.concatenate(hits)

    def _score_chunks(self, ids: Sequence[int]) -> Iterator[Logits]:
        """Yield the logits of all positions, chunk by chunk; each is overwritten by the next."""
        self._cache.reset()
        for start in range(0, len(ids), MAX_CHUNK):
            chunk = ids[start : start + MAX_CHUNK]
            yield self._feed(0, chunk, rows=len(chunk))

    def _feed(self, slot: int, ids: Sequence[int], rows: int) -> Logits:
        """Append ids, at most MAX_CHUNK, to a slot; give the logits of the last `rows` of them, [rows, vocab]."""
        past, count = self._cache.length(slot), len(ids)
        # The token that makes the number even is written after the slot's last one, where nothing reads.
        padded = count % 2 and self.exact and past + count < self.context
        tokens = count + 1 if padded else count
        run = self._runs.get(slot, 1, tokens, rows)
        run.ids[0, :count] = ids
        run.ids[0, count:] = ids[-1]
        run.positions[0] = np.arange(past, past + tokens)
        run.wanted[0] = np.arange(count - rows, count)
        run.last[0] = past + tokens - 1
        run.total[...] = past + tokens
        logits = run()
        self._cache.extend(ids, slot, prefill=True)
        return logits[0]

    def _range(self, low: int, high: int) -> tuple[int, int]:
        """First and number of the slots of a decode: `low` to `high`, and at least two where one has other bits."""
        if low < high or not self.exact or self.slots == 1:
            return low, high - low + 1
        below, above = max(low - 1, 0), min(high + 1, self.slots - 1)
        if below == low:
            return low, 2
        if above == high:
            return below, 2
        # The neighbour is computed as well, over what it holds: the shorter one costs less.
        return (below, 2) if self._cache.length(below) <= self._cache.length(above) else (low, 2)

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise BadRequest(f"slot {slot}: the engine has 0 to {self.slots - 1}")

    def _full(self, tokens: int) -> ContextExceeded:
        return ContextExceeded(
            f"the conversation has reached the context of {self.context} tokens; start a new one",
            prompt_tokens=tokens,
            limit=self.context,
        )


def score_rows(logits: Logits, targets: Sequence[int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Nats of `targets` float64 [n] under `logits` [n, vocab], and whether each was the likeliest, bool [n]."""
    chosen = np.asarray(targets)
    best = logits.max(axis=1, keepdims=True)
    norm = np.log(np.exp(logits - best).sum(axis=1, dtype=np.float64)) + best[:, 0]
    return norm - logits[np.arange(len(chosen)), chosen], logits.argmax(axis=1) == chosen
