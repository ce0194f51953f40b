"""The held-out conversations in the ids of a model that has another tokenizer than the data set.

The texts are the same, so bits per byte compare; ids, perplexity, accuracy and predictions do not. Who says a turn, and
whether it counts in the loss, stays too.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.models.handle import ModelHandle
from chitchat.data.builder import build_dataset
from chitchat.data.options import DataOptions
from serve.text import TextCodec

if TYPE_CHECKING:
    from chitchat.data.dataset import ChatData

Row = Mapping[str, Any]  # a conversation of a data set
_TRAIN = 8  # a data set has a training split; nobody reads this one


def retokenized(data: "ChatData", model: ModelHandle, out: Path) -> Path:
    """Write `data` (a `chitchat.data.dataset.ChatData`) as the data set `out` in the ids of `model`; give `out`.

    Raises `BadInput` for a tokenizer that has no dialogue format.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    held, train = (out.with_name(f"{out.name}-{split}.jsonl") for split in ("validation", "train"))
    _write(_conversations(data, data.validation), held)
    _write(islice(_conversations(data, _counted_first(data.train)), _TRAIN), train)
    build_dataset([str(train)], out, DataOptions(tokenizer=str(model.folder), validation=str(held)))
    return out


def _conversations(data: "ChatData", rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Each conversation as messages; a name apiece keeps turns apart that one side says in a row."""
    codec = codec_of(data)
    for row in rows:
        turns = turns_of(row, data.dialogue.end_of_turn_id)
        counts = row.get("counts") or [True] * len(turns)
        messages = [
            {"role": "assistant" if reply else "user", "name": str(number), "content": codec.decode(turn)}
            | ({} if counted else {"weight": 0})
            for number, (turn, reply, counted) in enumerate(zip(turns, row["replies"], counts, strict=True))
        ]
        yield {"messages": messages}


def _counted_first(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with a turn that counts: a data set without any in its training split is none."""
    return (row for row in rows if any(row.get("counts") or [True]))


def codec_of(data: "ChatData") -> TextCodec:
    """Ids to text by the data set's own tokenizer."""
    from tokenizers import Tokenizer

    return TextCodec(Tokenizer.from_str(data.tokenizer.backend_tokenizer.to_str()))


def turns_of(row: Row, end_of_turn_id: int) -> list[list[int]]:
    """The ids of each turn of a row of a data set, without those that mark its borders."""
    turns, begin = [], 0
    for length in row["turn_lengths"]:
        turns.append([token for token in row["input_ids"][begin : begin + length] if token != end_of_turn_id])
        begin += length
    return turns


def _write(conversations: Iterator[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for conversation in conversations:
            file.write(json.dumps(conversation, ensure_ascii=False) + "\n")
