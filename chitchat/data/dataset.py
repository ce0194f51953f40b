"""A data set folder as training and measuring read it.

The folder holds `train/` and `validation/` (Arrow, as `datasets` saves it), the tokenizer's files, `data.json` (the
report) and `lineage.json`. A row is one conversation: `input_ids`, `turn_lengths`, `replies`, `counts` (the loss mask;
absent in older ones, where all turns count), `turn_bytes`. It is made by `chitchat.data.builder`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerFast

from chitchat.checkpoint import load_tokenizer
from chitchat.data.builder import SPLITS, build_dataset
from chitchat.data.windows import RaggedColumn, Windows, collate
from chitchat.dialogue import Dialogue, unassigned_ids, with_banned
from chitchat.errors import BadInput
from chitchat.formats.same_tokenizer import tokenizer_differences
from chitchat.lineage import LINEAGE, identity, verify_lineage
from chitchat.system.folder import OUR_FILES

__all__ = ["ChatData", "Windows", "build_dataset", "collate", "held_out_prompts", "numbered_prompts", "open_dataset"]


@dataclass(frozen=True)
class ChatData:
    """An open data set. `identity` is the sha256 that lineages of its readers record; `report` is data.json."""

    path: Path
    tokenizer: PreTrainedTokenizerFast
    dialogue: Dialogue
    report: dict[str, Any]
    identity: str
    train: Dataset = field(repr=False)
    validation: Dataset = field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Rows that a model's table needs for this tokenizer."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def banned_ids(self, rows: int) -> tuple[int, ...]:
        """The ids that a model with a table of `rows` may never generate: special tokens, and rows without a token."""
        return with_banned(self.dialogue, unassigned_ids(self.tokenizer, rows)).banned_ids

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerFast, checkpoint: str) -> None:
        """Raise `BadInput`, which names the difference, unless the data set's tokenizer is that of `checkpoint`."""
        one, other = (known.backend_tokenizer.to_str() for known in (self.tokenizer, tokenizer))
        if found := tokenizer_differences(one, other):
            raise BadInput(
                f"--data {self.path}: tokenised by another tokenizer ({len(self.tokenizer)} tokens) than "
                f"{checkpoint}'s ({len(tokenizer)}), with another {', '.join(found)}; "
                f"make it with `compress data --tokenizer {checkpoint}`"
            )

    def windows(self, split: str, context: int, replies_only: bool = False) -> Windows:
        """Windows of `train` or `validation` that fit `context`.

        Turns that do not count have no labels; with `replies_only` only replies have.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: there are {SPLITS}")
        return Windows(getattr(self, split), self.dialogue, context, replies_only)


def open_dataset(path: Path) -> ChatData:
    """Open a data set folder and verify its hashes. Raises `BadInput` for one that is none, or was altered."""
    path = Path(path)
    marker = OUR_FILES["data"]
    if not path.is_dir():
        raise BadInput(f"{path}: no such data set folder; make one with `compress data`")
    if not (path / marker).is_file() or not (path / LINEAGE).is_file():
        raise BadInput(f"{path}: is not a data set (no {marker} and {LINEAGE}); make one with `compress data`")
    verify_lineage(path)
    report = json.loads((path / marker).read_text(encoding="utf-8"))
    return ChatData(
        path=path,
        tokenizer=load_tokenizer(path),
        dialogue=Dialogue.from_json(report["dialogue"]),
        report=report,
        identity=identity(path),
        train=load_from_disk(str(path / "train")),
        validation=load_from_disk(str(path / "validation")),
    )


def held_out_prompts(data: ChatData, count: int, max_tokens: int) -> list[list[int]]:
    """The first `count` of `numbered_prompts`, without their numbers. Raises `BadInput` if there are fewer."""
    numbered = numbered_prompts(data, count, max_tokens)
    if len(numbered) < count:
        raise BadInput(
            f"{data.path}: only {len(numbered)} held-out turns of at most {max_tokens} tokens for {count} prompts; "
            "hold out more with `compress data --validation`"
        )
    return [prompt for _, prompt in numbered]


def numbered_prompts(data: ChatData, most: int, max_tokens: int) -> list[tuple[int, list[int]]]:
    """Up to `most` prompts of at most `max_tokens` ids, each after the number of its held-out conversation.

    A prompt consists of whole turns and ends with one that has an answer in the conversation; older turns that do not
    fit are left out. If there are more prompts than conversations, a conversation is used again, cut after another
    turn. The prompts are the same every time, and fewer than `most` if the split has no more such turns.
    """
    lengths, ids = RaggedColumn(data.validation, "turn_lengths"), RaggedColumn(data.validation, "input_ids")
    random = np.random.default_rng(0)
    start = list(data.dialogue.start_ids)
    found = []  # (how often its conversation was used before, row, lengths of the turns up to its last one)
    for row in random.permutation(len(lengths.lengths)):
        turns = lengths.slice(int(row), 0, int(lengths.lengths[row])).astype(np.int64)
        fitting = np.flatnonzero(turns[:-1] + len(start) <= max_tokens)
        found += [(used, int(row), turns[: turn + 1]) for used, turn in enumerate(random.permutation(fitting))]
    found.sort(key=lambda entry: entry[0])  # stable: every conversation once before any of them twice
    prompts = []
    for _, row, turns in found[:most]:
        fits = np.cumsum(turns[::-1]) + len(start) <= max_tokens
        end = len(start) + int(turns.sum())
        begin = end - int(turns[::-1][fits].sum())
        prompts.append((row, start + ids.slice(row, begin, end).tolist()))
    return prompts
