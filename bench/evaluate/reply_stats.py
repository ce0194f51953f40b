"""Statistics of replies: how varied they are, how much they repeat themselves, how many say nothing.

Figures of texts; how replies are drawn stands in `bench.evaluate.replies`. Words are what stands between
white space; scripts that are written without spaces (Chinese, Japanese, Thai, …) count character by character.

distinct-n is the number of different n-grams over the number of n-grams of all replies (Li et al. 2016, arXiv
1510.03055). It falls as replies are added, so it compares models on the same prompts only. Ent-4 is the entropy of the
4-grams of all replies in nats, -sum(p log p) over their frequencies (Zhang et al. 2018, arXiv 1809.05972; a figure of
DSTC-7): unlike distinct-n it tells even frequencies from uneven ones. It grows as replies are added. repetition-4 is
the share of 4-grams that a reply has already said: 1 - different / all, each reply's counted apart (Welleck et al.
2020, arXiv 1908.04319, call it seq-rep-4).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.evaluate.bootstrap import Floats, Interval, jackknife_interval, percentiles, resampled, share, with_interval

# Han with its extensions, kana, bopomofo, the signs and full-width forms written among them; Thai, Lao, Tibetan,
# Burmese, Khmer. Hangul is written with spaces.
_UNSPACED = (
    "\u2e80-\u2fdf\u3000-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
)
_WORD = re.compile(f"(?=\\S)[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
REPEATED = 4
_ROUNDING = 1e-9  # nats; an entropy below it is 0

Counts = npt.NDArray[np.int64]  # of each conversation


@dataclass(frozen=True)
class TextReply:
    """A reply as text: the number of the conversation it answers, how many ids it took, whether it came to its end."""

    conversation: int
    text: str
    tokens: int
    ended: bool


def words(text: str) -> list[str]:
    """The words of a text, in order; a character of an unspaced script is a word."""
    return _WORD.findall(text)


def ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    """The n-grams of a text's words, in order."""
    found = words(text)
    return [tuple(found[start : start + size]) for start in range(len(found) - size + 1)]


class ReplyStats:
    """Replies, at least one, and what they tell. Two models are compared on replies to the same prompts."""

    def __init__(self, replies: Sequence[TextReply]) -> None:
        self.replies = replies
        numbers = sorted({reply.conversation for reply in replies})
        index_of = {number: index for index, number in enumerate(numbers)}
        self._conversations = len(numbers)
        self._of = [index_of[reply.conversation] for reply in replies]

    def figures(self) -> dict[str, Any]:
        """Shares, `entropy_4` (nats), `reply_tokens` (mean ids of a reply), each with its interval.

        None where no reply has the words for it.
        """
        one, two, entropy = self.distinct(1), self.distinct(2), self.entropy(REPEATED)
        empty = self._per_conversation([not reply.text.strip() for reply in self.replies])
        tokens = self._per_conversation([reply.tokens for reply in self.replies])
        count = self._per_conversation([1] * len(self.replies))
        return {
            "distinct_1": one.figure,
            "distinct_1_interval": one.interval,
            "distinct_2": two.figure,
            "distinct_2_interval": two.interval,
            "entropy_4": entropy.figure,
            "entropy_4_interval": entropy.interval,
            **with_interval("repetition_4", *self.repeated),
            **with_interval("empty_replies", empty, count),
            "unfinished_replies": share([not reply.ended for reply in self.replies], count),
            **with_interval("reply_tokens", tokens, count),
            "replies": len(self.replies),
        }

    def against(self, teacher: "ReplyStats") -> dict[str, Any]:
        """`distinct_2_ratio` and `repetition_4_difference` (model - teacher), paired by conversation.

        Raises ValueError unless both answer the same conversations.
        """
        if [reply.conversation for reply in self.replies] != [reply.conversation for reply in teacher.replies]:
            raise ValueError("replies to other prompts cannot be compared")
        mine, theirs = self.distinct(2), teacher.distinct(2)
        ratio = mine.figure / theirs.figure if mine.figure is not None and theirs.figure else None
        with np.errstate(invalid="ignore", divide="ignore"):
            interval = None if ratio is None else jackknife_interval(ratio, mine.left_out / theirs.left_out)
        return {
            "distinct_2_ratio": ratio,
            "distinct_2_ratio_interval": interval,
            "repetition_4_difference": share(*self.repeated) - share(*teacher.repeated),
            "repetition_4_difference_interval": self._repetition_interval(teacher),
        }

    def distinct(self, size: int) -> "Distinct":
        """distinct-n of the replies, and what it would be without each conversation."""
        grams = self._grams(size)
        homes = Counter(gram for counts in grams for gram in counts)  # in how many conversations it stands
        total = sum(counts.total() for counts in grams)
        alone = np.array([sum(homes[gram] == 1 for gram in counts) for counts in grams])
        with np.errstate(invalid="ignore", divide="ignore"):
            left_out = (len(homes) - alone) / (total - np.array([counts.total() for counts in grams]))
        figure = len(homes) / total if total else None
        return Distinct(figure, left_out)

    def entropy(self, size: int) -> "Entropy":
        """Ent-n of the replies, and what it would be without each conversation."""
        grams = self._grams(size)
        everywhere: Counter[tuple[str, ...]] = Counter()
        for counts in grams:
            everywhere.update(counts)
        total = everywhere.total()
        own = np.array([counts.total() for counts in grams])
        # Of counts F with the sum N the entropy is log N - sum(F log F) / N.
        weighed = sum(map(_weigh, everywhere.values()))
        taken = [
            sum(_weigh(everywhere[gram]) - _weigh(everywhere[gram] - count) for gram, count in counts.items())
            for counts in grams
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            left_out = np.log(total - own) - (weighed - np.array(taken)) / (total - own)
        left_out[left_out < _ROUNDING] = 0.0
        figure = math.log(total) - weighed / total if total else None
        return Entropy(figure if figure is None or figure >= _ROUNDING else 0.0, left_out)

    @cached_property
    def repeated(self) -> tuple[Counts, Counts]:
        """4-grams that their reply has said before, and all 4-grams: int64 [conversations] each."""
        grams = [ngrams(reply.text, REPEATED) for reply in self.replies]
        again = self._per_conversation([len(of) - len(set(of)) for of in grams])
        return again, self._per_conversation([len(of) for of in grams])

    def _grams(self, size: int) -> list[Counter[tuple[str, ...]]]:
        """How often each n-gram stands in the replies of each conversation, [conversations]."""
        grams: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(self._conversations)]
        for reply, index in zip(self.replies, self._of, strict=True):
            grams[index].update(ngrams(reply.text, size))
        return grams

    def _repetition_interval(self, teacher: "ReplyStats") -> Interval | None:
        if self._conversations < 2:
            return None
        again, grams, their_again, their_grams = resampled([*self.repeated, *teacher.repeated])
        return percentiles(again / np.maximum(grams, 1) - their_again / np.maximum(their_grams, 1))

    def _per_conversation(self, values: Sequence[int]) -> Counts:
        """Sums of a value of each reply, int64 [conversations]."""
        return np.bincount(self._of, weights=values, minlength=self._conversations).astype(np.int64)


@dataclass(frozen=True)
class Distinct:
    """distinct-n, None without any n-gram; `left_out` float64 [conversations]: without each conversation."""

    figure: float | None
    left_out: Floats

    @property
    def interval(self) -> Interval | None:
        """The interval of the figure, which is at most 1."""
        found = None if self.figure is None else jackknife_interval(self.figure, self.left_out)
        return None if found is None else [found[0], min(found[1], 1.0)]


@dataclass(frozen=True)
class Entropy:
    """Ent-n in nats, None without any n-gram; `left_out` float64 [conversations]: without each conversation."""

    figure: float | None
    left_out: Floats

    @property
    def interval(self) -> Interval | None:
        """The interval of the figure; None where some are 0, a single n-gram."""
        return None if self.figure is None else jackknife_interval(self.figure, self.left_out)


def _weigh(count: int) -> float:
    """count x log(count), 0 of none."""
    return count * math.log(count) if count else 0.0
