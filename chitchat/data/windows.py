"""Windows: conversations cut into pieces that fit a model's context, in whole turns where these fit.

Packing is numpy arithmetic on turn lengths; token ids stay in the memory-mapped Arrow file until a window is read.
Every turn token is in exactly one window, and no window has turns of two conversations. Only `collate` pads.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from chitchat.dialogue import Dialogue
from chitchat.errors import BadInput

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100


class RaggedColumn:
    """One list column of a data set as numpy views of the memory-mapped Arrow file.

    `lengths` int64 [rows]; `slice(row, begin, end)` gives a view of a row's values.
    """

    def __init__(self, rows: "Dataset", name: str) -> None:
        chunks = rows.data.column(name).chunks
        offsets = [np.asarray(chunk.offsets, dtype=np.int64) for chunk in chunks]
        self._values = [chunk.values.to_numpy(zero_copy_only=False) for chunk in chunks]
        self._offsets = offsets
        self._first_row = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        empty = np.zeros(0, dtype=np.int64)
        self.lengths = np.concatenate([empty, *(np.diff(offset) for offset in offsets)])

    def slice(self, row: int, begin: int, end: int) -> np.ndarray:
        """Values `begin:end` of a row."""
        chunk = int(np.searchsorted(self._first_row, row, side="right")) - 1
        start = self._offsets[chunk][row - self._first_row[chunk]]
        return self._values[chunk][start + begin : start + end]

    def flat(self) -> np.ndarray:
        """All values, row after row."""
        pieces = [values[offset[0] : offset[-1]] for values, offset in zip(self._values, self._offsets, strict=True)]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


class Windows(TorchDataset[dict[str, Any]]):
    """The windows of one split at one context length.

    `lengths` int64 [windows]: ids of each window, start ids included. `conversation` int64 [windows]: its row,
    ascending. `text_bytes` int64 [windows]: UTF-8 bytes of the turn text with labels; the bytes of a turn that is cut
    are divided by tokens, so the sum is exact.

    If the format has no start ids (dialogpt), the shifted loss ignores the label of a window's first token. A turn that
    does not count has no labels; with `replies_only` only replies have. A window without labels is left out.
    """

    def __init__(self, rows: "Dataset", dialogue: Dialogue, context: int, replies_only: bool = False) -> None:
        """Raises `BadInput` when the context cannot hold the start ids and two tokens."""
        self._start = np.asarray(dialogue.start_ids, dtype=np.int64)
        max_tokens = context - len(self._start)
        if max_tokens < 2:
            raise BadInput(f"--context {context}: too small; give at least {len(self._start) + 2}")
        self.context = context
        self.replies_only = replies_only
        self._ids = RaggedColumn(rows, "input_ids")
        turns = RaggedColumn(rows, "turn_lengths")
        self._pieces = _Pieces(turns, rows, max_tokens, replies_only)
        first, last = pack(self._pieces.lengths, self._pieces.per_row, max_tokens)
        if self._pieces.counted is not None:
            labelled = np.concatenate([[0], np.cumsum(self._pieces.counted)])
            kept = labelled[last] > labelled[first]
            first, last = first[kept], last[kept]
        self._first, self._last = first, last  # pieces of each window: first <= piece < last
        ends = np.concatenate([[0], np.cumsum(self._pieces.lengths)])
        byte_ends = np.concatenate([[0], np.cumsum(self._pieces.text_bytes)])
        self.conversation = np.repeat(np.arange(len(turns.lengths)), self._pieces.per_row)[first]
        self.lengths = ends[last] - ends[first] + len(self._start)
        self.text_bytes = byte_ends[last] - byte_ends[first]
        row_starts = ends[np.cumsum(self._pieces.per_row) - self._pieces.per_row]
        self._begin = ends[first] - row_starts[self.conversation] + len(self._start)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` and `labels` (lists of `length` ints; labels not shifted, as Hugging Face models take them)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        index = int(index) % len(self)
        begin = int(self._begin[index])
        turn_tokens = int(self.lengths[index]) - len(self._start)
        body = self._ids.slice(int(self.conversation[index]), begin, begin + turn_tokens)
        labels = np.concatenate([np.full(len(self._start), IGNORED), body])
        if self._pieces.counted is not None:
            pieces = slice(self._first[index], self._last[index])
            counted = np.repeat(self._pieces.counted[pieces], self._pieces.lengths[pieces])
            labels[len(self._start) :][~counted] = IGNORED
        ids = np.concatenate([self._start, body])
        return {"input_ids": ids.tolist(), "labels": labels.tolist(), "length": len(ids)}


class _Pieces:
    """Turns cut to at most `max_tokens` tokens: int64 arrays over pieces, and how many pieces each row has."""

    def __init__(self, turns: RaggedColumn, rows: "Dataset", max_tokens: int, replies_only: bool) -> None:
        turn_lengths = turns.flat().astype(np.int64)
        turn_bytes = RaggedColumn(rows, "turn_bytes").flat().astype(np.int64)
        count = -(-turn_lengths // max_tokens)
        turn = np.repeat(np.arange(len(count)), count)  # the turn of each piece
        begin = (np.arange(len(turn)) - np.repeat(np.cumsum(count) - count, count)) * max_tokens
        end = np.minimum(begin + max_tokens, turn_lengths[turn])
        self.lengths = end - begin
        # Rounding the running share, not each share, keeps the sum of a turn's pieces equal to the turn.
        self.text_bytes = turn_bytes[turn] * end // turn_lengths[turn] - turn_bytes[turn] * begin // turn_lengths[turn]
        turn_ends = np.concatenate([[0], np.cumsum(turns.lengths)])
        self.per_row = np.diff(np.concatenate([[0], np.cumsum(count)])[turn_ends])
        counted = counted_turns(rows)
        if replies_only:
            counted &= RaggedColumn(rows, "replies").flat().astype(bool)
        self.counted: np.ndarray | None = None  # bool [pieces]; None where all count
        if not counted.all():
            self.counted = counted[turn]
            self.text_bytes = np.where(self.counted, self.text_bytes, 0)


def counted_turns(rows: "Dataset") -> np.ndarray:
    """Which turns count in the loss, bool, row after row. In a data set without a mask all do."""
    if "counts" not in rows.column_names:
        return np.ones(int(RaggedColumn(rows, "turn_lengths").lengths.sum()), dtype=bool)
    return RaggedColumn(rows, "counts").flat().astype(bool)


def pack(lengths: np.ndarray, per_row: np.ndarray, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack successive pieces of a row into windows of at most `max_tokens` tokens, first fit in order.

    `lengths` int64 [pieces], each at most `max_tokens`; `per_row` int64 [rows]. Returns `(first, last)`, int64
    [windows]: window w holds the pieces `first[w]:last[w]`.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    row_ends = np.cumsum(per_row)
    limit = np.repeat(row_ends, per_row)  # where the row of each piece ends
    # The window that begins at piece p ends at after[p]: computed for all p at once, then only visited ones are kept.
    after = np.minimum(np.searchsorted(ends, ends[:-1] + max_tokens, side="right") - 1, limit)
    found = []
    piece = (row_ends - per_row)[per_row > 0]
    while piece.size:
        found.append(piece)
        piece = after[piece][after[piece] < limit[piece]]
    first = np.sort(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
    return first, after[first] if len(first) else first


def collate(windows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """A right-padded batch: int64 [batch, longest] `input_ids`, `attention_mask` and `labels` (padding is -100)."""
    longest = max(len(window["input_ids"]) for window in windows)
    ids = torch.full((len(windows), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, window in enumerate(windows):
        length = len(window["input_ids"])
        ids[row, :length] = torch.tensor(window["input_ids"], dtype=torch.int64)
        labels[row, :length] = torch.tensor(window["labels"], dtype=torch.int64)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
