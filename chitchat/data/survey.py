"""The first pass over the corpora: which conversations there are, which are held out, what a tokenizer learns from.

A conversation is known by a 64-bit hash of its text (case and white space aside), so a million of them need 8 MB.
The split ranks these hashes: it does not depend on the order of the corpora, and a conversation that appears twice
lies on one side only. The hash is keyed by the seed, so another seed holds out others.
"""

import hashlib
import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from chitchat.data.corpora import Corpus
from chitchat.data.readers import Conversation, Tally
from chitchat.errors import BadInput

SAMPLE_BYTES = 1 << 24


@dataclass(frozen=True)
class Survey:
    """What the first pass found.

    `keys` uint64, sorted, distinct; the first `held_out` of them are the validation split. `sample` are texts of
    training conversations, at most `SAMPLE_BYTES` of them.
    """

    keys: np.ndarray
    held_out: int
    tally: Tally
    sample: list[str]

    @property
    def duplicates(self) -> int:
        """Conversations that repeat another one."""
        return self.tally.conversations - len(self.keys)


class Sample:
    """A bounded random sample of conversations: those with the greatest keys, whatever order they come in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._heap: list[tuple[int, int, tuple[str, ...]]] = []
        self._keys: set[int] = set()

    def add(self, key: int, conversation: Conversation) -> None:
        """Offer a conversation; the ones with the least keys make room."""
        full = self._size >= self._limit
        if key in self._keys or (full and key < self._heap[0][0]):
            return
        texts = tuple(turn.text for turn in conversation)
        size = sum(len(text.encode()) for text in texts)
        heapq.heappush(self._heap, (key, size, texts))
        self._keys.add(key)
        self._size += size
        while len(self._heap) > 1 and self._size - self._heap[0][1] >= self._limit:
            least, size, _ = heapq.heappop(self._heap)
            self._keys.remove(least)
            self._size -= size

    def texts(self, above: int) -> list[str]:
        """Turn texts of the sampled conversations whose key is greater than `above`, in the order of the keys."""
        return [text for key, _, texts in sorted(self._heap) if key > above for text in texts]


def survey(corpora: Sequence[Corpus], validation: float, seed: int, sample_bytes: int = SAMPLE_BYTES) -> Survey:
    """Read all corpora once. Raises `BadInput` for a corpus without a conversation, and for fewer than two in all."""
    tally = Tally()
    keys = array("Q")
    sample = Sample(sample_bytes)
    for corpus in corpora:
        before = Tally(**vars(tally))
        for conversation in _progress(corpus.conversations(tally), f"reading {corpus.name}"):
            key = conversation_key(conversation, seed)
            keys.append(key)
            if sample_bytes:
                sample.add(key, conversation)
        _check_not_empty(corpus, before, tally)
    distinct = np.unique(np.frombuffer(keys, dtype=np.uint64))
    if len(distinct) < 2:
        raise BadInput(
            f"corpus {corpora[0].name}: only one distinct conversation; give at least two, so that one can be held out"
        )
    held_out = min(max(round(validation * len(distinct)), 1), len(distinct) - 1)
    return Survey(distinct, held_out, tally, sample.texts(above=int(distinct[held_out - 1])))


def conversation_key(conversation: Conversation, seed: int) -> int:
    """A 64-bit hash of the turns' texts that does not see case and white space."""
    text = "\x1f".join(" ".join(turn.text.casefold().split()) for turn in conversation)
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big")


def _progress(conversations: Iterator[Conversation], title: str) -> Iterator[Conversation]:
    progress: Iterator[Conversation] = tqdm(conversations, desc=title, unit=" conversations", disable=None)
    return progress


def _check_not_empty(corpus: Corpus, before: Tally, after: Tally) -> None:
    if after.conversations > before.conversations:
        return
    where = corpus.files[0] if len(corpus.files) == 1 else corpus.name
    if after.short_conversations > before.short_conversations:
        raise BadInput(
            f"{where}: one-sided, every conversation has fewer than two turns; a chat needs both sides "
            "(in a .txt, a turn a line and a blank line between conversations)"
        )
    raise BadInput(f"{where}: is empty, there is no conversation in it; give a corpus with text")
