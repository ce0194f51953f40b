"""The held-out conversations in the ids of a model that has another tokenizer than the data set.

The texts are the same, so bits per byte compare; ids, perplexity, accuracy and predictions do not.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bench.measured import MeasuredModel
from chitchat.data.builder import build_dataset
from serve.text import TextCodec

_TRAIN = 8  # a data set has a training split; nobody reads this one


def retokenized(data: Any, model: MeasuredModel, out: Path) -> Path:
    """Write `data` (a `chitchat.data.dataset.ChatData`) as the data set `out` in the ids of `model`; give `out`.

    Raises `BadInput` for a tokenizer that has no dialogue format.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    held, train = (out.with_name(f"{out.name}-{split}.jsonl") for split in ("validation", "train"))
    _write(_texts(data, data.validation), held)
    _write(islice(_texts(data, data.train), _TRAIN), train)
    build_dataset([str(train)], out, tokenizer=str(model.folder), validation=str(held))
    return out


def _texts(data: Any, rows: Any) -> Iterator[list[str]]:
    """The turns of each conversation as text."""
    codec = codec_of(data)
    for row in rows:
        yield [codec.decode(turn) for turn in turns_of(row, data.dialogue.end_of_turn_id)]


def codec_of(data: Any) -> TextCodec:
    """Ids to text by the data set's own tokenizer."""
    from tokenizers import Tokenizer

    return TextCodec(Tokenizer.from_str(data.tokenizer.backend_tokenizer.to_str()))


def turns_of(row: Any, end_of_turn_id: int) -> list[list[int]]:
    """The ids of each turn of a row of a data set, without those that mark its borders."""
    turns, begin = [], 0
    for length in row["turn_lengths"]:
        turns.append([token for token in row["input_ids"][begin : begin + length] if token != end_of_turn_id])
        begin += length
    return turns


def _write(conversations: Iterator[Sequence[str]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for turns in conversations:
            file.write(json.dumps(list(turns), ensure_ascii=False) + "\n")
