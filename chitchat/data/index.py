"""The first pass over the corpora: which conversations are held out, and text to train a tokenizer on.

A conversation is represented by a 64-bit hash of its text (without case and white space), so a million need 8 MB. The
split ranks these hashes: it does not depend on the order of the corpora, and duplicates are in the same split. The hash
is keyed by the seed, so another seed holds out others. In place of a share, a whole corpus can be held out; its
duplicates in the other corpora are left out of the training split.
"""

import hashlib
import heapq
from array import array
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from chitchat.data.conversation import Conversation, ReadStats
from chitchat.data.corpora import Corpus, open_corpus
from chitchat.errors import BadInput

SAMPLE_BYTES = 1 << 24


@dataclass(frozen=True)
class CorpusIndex:
    """The result of the first pass.

    `keys` uint64, sorted, distinct; `held_out` bool, which of them are the validation split. `held_out_repeats` counts
    the conversations of a held-out corpus that the others repeat. `sample` are at most `SAMPLE_BYTES` of text of
    training conversations.
    """

    keys: NDArray[np.uint64]
    held_out: NDArray[np.bool_]
    held_out_repeats: int
    stats: ReadStats
    sample: list[str]

    @property
    def duplicates(self) -> int:
        """Conversations that repeat another one of their split."""
        return self.stats.conversations - len(self.keys) - self.held_out_repeats


class TextSample:
    """A bounded random sample of conversations: those with the greatest keys, independent of their order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # bytes; 0 keeps nothing
        self._size = 0
        self._heap: list[tuple[int, int, tuple[str, ...]]] = []
        self._keys: set[int] = set()

    def add(self, key: int, conversation: Conversation) -> None:
        """Offer a conversation; those with the smallest keys are dropped."""
        if not self._limit:
            return
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


def open_validation(validation: float | str) -> float | Corpus:
    """The share that is held out, or the corpus that is: what reads as a number is a share. Raises `BadInput`."""
    try:
        share = float(validation)
    except ValueError:
        try:
            return open_corpus(str(validation))
        except BadInput as error:
            raise BadInput(f"--validation {validation}: neither a share, as 0.05 is, nor a corpus; {error}") from error
    if not 0 < share < 1:
        raise BadInput(f"--validation {validation}: must lie between 0 and 1, as 0.05 does")
    return share


def index_corpora(
    corpora: Sequence[Corpus], validation: float | Corpus, seed: int, sample_bytes: int = SAMPLE_BYTES
) -> CorpusIndex:
    """Read all corpora once; `validation` is the share that is held out, or the corpus that is.

    Raises `BadInput` for a corpus without a conversation, for fewer than two in all, and when nothing is left to train
    on beside a corpus that is held out.
    """
    stats = ReadStats()
    apart = _read([validation], stats, seed, None) if isinstance(validation, Corpus) else array("Q")
    withheld = np.unique(np.array(apart, dtype=np.uint64))
    sample = TextSample(sample_bytes)
    read = np.frombuffer(_read(corpora, stats, seed, sample, frozenset(withheld.tolist())), dtype=np.uint64)
    repeats = int(np.count_nonzero(np.isin(read, withheld)))
    if isinstance(validation, Corpus):
        if repeats == len(read):
            raise BadInput(
                f"--validation {validation.name}: holds every conversation of {corpora[0].name}, so none is left to "
                "train on; hold out fewer, or give another corpus"
            )
        keys = np.union1d(read, withheld)
        return CorpusIndex(keys, np.isin(keys, withheld), repeats, stats, sample.texts(above=-1))
    keys = np.unique(read)
    if len(keys) < 2:
        raise BadInput(
            f"corpus {corpora[0].name}: only one distinct conversation; give at least two, so that one can be held out"
        )
    count = min(max(round(validation * len(keys)), 1), len(keys) - 1)
    return CorpusIndex(keys, np.arange(len(keys)) < count, 0, stats, sample.texts(above=int(keys[count - 1])))


def _read(
    corpora: Sequence[Corpus], stats: ReadStats, seed: int, sample: TextSample | None, withheld: Container[int] = ()
) -> "array[int]":
    """The key of every conversation in order; the sample is offered all but the withheld ones."""
    keys = array("Q")
    for corpus in corpora:
        before = ReadStats(**vars(stats))
        title = f"reading {corpus.name}"
        for conversation in tqdm(corpus.conversations(stats), desc=title, unit=" conversations", disable=None):
            key = conversation_key(conversation, seed)
            keys.append(key)
            if sample is not None and key not in withheld:
                sample.add(key, conversation)
        _check_not_empty(corpus, before, stats)
    return keys


def conversation_key(conversation: Conversation, seed: int) -> int:
    """A 64-bit hash of the turns' texts without case and white space."""
    text = "\x1f".join(" ".join(turn.text.casefold().split()) for turn in conversation)
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big")


def _check_not_empty(corpus: Corpus, before: ReadStats, after: ReadStats) -> None:
    if after.conversations > before.conversations:
        return
    where = corpus.files[0] if len(corpus.files) == 1 else corpus.name
    if after.short_conversations > before.short_conversations:
        raise BadInput(
            f"{where}: every conversation has fewer than two turns; give conversations of a user and a bot "
            "(in a .txt: a turn a line, a blank line between conversations)"
        )
    raise BadInput(f"{where}: is empty; give a corpus with conversations")
