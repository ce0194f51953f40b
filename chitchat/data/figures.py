"""The figures of data.json: counts and lengths, what was left out or cleaned, turns that are not in the loss."""

import sys
from typing import Any

import numpy as np
import pyarrow as pa

from chitchat.data.index import CorpusIndex
from chitchat.dialogue import Dialogue
from chitchat.text.cleaning import Cleaned

_UNKNOWN_LIMIT = 0.01
_LEFT_OUT = ("empty_turns", "other_parts", "cut_turns", "special_ids", "repeated_lists")


class Counter:
    """Figures of one split as histograms over lengths, whose size does not grow with the split."""

    def __init__(self) -> None:
        self.turn_tokens = np.zeros(1, dtype=np.int64)
        self.conversation_tokens = np.zeros(1, dtype=np.int64)
        self.unknown = 0
        self.uncounted_turns = 0

    def add(self, rows: pa.Table, dialogue: Dialogue) -> None:
        """Count the rows of one batch."""
        ids = rows.column("input_ids").combine_chunks()
        of_rows = rows.column("turn_lengths").to_pylist()
        text_lengths = [length for of_row in of_rows for length in dialogue.text_lengths(of_row)]
        lengths = ids.value_lengths().to_numpy(zero_copy_only=False)
        self.turn_tokens = _added(self.turn_tokens, np.bincount(np.asarray(text_lengths, dtype=np.int64)))
        self.conversation_tokens = _added(self.conversation_tokens, np.bincount(lengths))
        counts = rows.column("counts").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self.uncounted_turns += int(np.count_nonzero(~counts))
        if dialogue.unk_id is not None:
            self.unknown += int(np.count_nonzero(ids.flatten().to_numpy(zero_copy_only=False) == dialogue.unk_id))

    def as_json(self) -> dict[str, int]:
        lengths = np.arange(len(self.conversation_tokens))
        return {
            "conversations": int(self.conversation_tokens.sum()),
            "turns": int(self.turn_tokens.sum()),
            "uncounted_turns": self.uncounted_turns,
            "tokens": int(self.conversation_tokens @ lengths),
        }


def report_figures(found: CorpusIndex, train: Counter, validation: Counter) -> dict[str, Any]:
    """The figures of a data set that was made of corpora."""
    repeats = {"held_out_conversations": found.held_out_repeats} if found.held_out_repeats else {}
    return {
        **split_figures(train, validation),
        "duplicates": found.duplicates,
        "left_out": {
            "short_conversations": found.stats.short_conversations,
            "system_messages": found.stats.system_messages,
            **{name: getattr(found.stats, name) for name in _LEFT_OUT},
            **repeats,
        },
        "cleaned": {name: getattr(found.stats, name) for name in vars(Cleaned())},
    }


def split_figures(train: Counter, validation: Counter) -> dict[str, Any]:
    """The figures of both splits together and of each."""
    turn_tokens = _added(train.turn_tokens, validation.turn_tokens)
    conversation_tokens = _added(train.conversation_tokens, validation.conversation_tokens)
    sides = {"train": train.as_json(), "validation": validation.as_json()}
    text_tokens = int(turn_tokens @ np.arange(len(turn_tokens)))
    unknown = train.unknown + validation.unknown
    return {
        **{name: sides["train"][name] + sides["validation"][name] for name in sides["train"]},
        **sides,
        "turn_tokens": percentiles(turn_tokens),
        "conversation_tokens": percentiles(conversation_tokens),
        "unknown_tokens": unknown,
        "unknown_share": unknown / max(text_tokens, 1),
    }


def percentiles(histogram: np.ndarray) -> dict[str, float]:
    """Mean, percentiles (nearest rank) and maximum of lengths, from a histogram."""
    total = int(histogram.sum())
    reached = np.cumsum(histogram)
    ranks = {f"p{share}": int(np.searchsorted(reached, share / 100 * total)) for share in (5, 50, 90, 95, 99)}
    mean = float(histogram @ np.arange(len(histogram))) / max(total, 1)
    return {"mean": round(mean, 3), **ranks, "max": int(np.flatnonzero(histogram).max(initial=0))}


def _added(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The sum of two histograms of different lengths."""
    total = np.zeros(max(len(left), len(right)), dtype=np.int64)
    total[: len(left)] += left
    total[: len(right)] += right
    return total


def announce(report: dict[str, Any]) -> None:
    """Print on stderr what was left out, cleaned and is not in the loss, and warn of an unsuitable tokenizer."""
    cleaned = dict(report["cleaned"])
    lost, share = cleaned.pop("replacement_characters"), report["unknown_share"]
    left_out, removed = _listed({**report["left_out"], "duplicates": report["duplicates"]}), _listed(cleaned)
    unknown = f"warning: {share:.1%} of the tokens are unknown to --tokenizer {report['tokenizer']}; "
    lines = (
        (left_out, f"left out: {left_out}"),
        (removed, f"cleaned: {removed} (removed; half surrogates became U+FFFD)"),
        (lost, f"warning: {lost} U+FFFD in the text: characters that an earlier conversion lost"),
        (
            report["uncounted_turns"],
            f"not in the loss: {report['uncounted_turns']} of {report['turns']} turns (weight 0)",
        ),
        (share > _UNKNOWN_LIMIT, f"{unknown}give one for this language, or leave the option out to train one"),
    )
    for shown, line in lines:
        if shown:
            print(line, file=sys.stderr)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
