"""`--columns`: which columns of a table, or of a data set, are the conversation.

`question,answer`: each row is a conversation, its turns in these columns, alternately the user's and the bot's; a
single column holds a whole conversation (a list, or its JSON). `conversation=id,speaker=who,text=said`: each row is a
turn, and the rows of a conversation are consecutive; without `speaker` user and bot alternate, and `weight=column` says
which turns count in the loss. Columns are given by name, or by number from 1 where a table has no header.
"""

import csv
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np

from chitchat.data.conversation import Conversation, Message, ReadStats, merged
from chitchat.data.json_stream import reason_of
from chitchat.data.messages import conversation_of, counts_of, is_bot, is_role
from chitchat.errors import BadInput

# A row: its place, for errors, and its cells by column name.
Row = tuple[str, Mapping[str, Any]]
_PARTS = ("conversation", "speaker", "text", "weight")
_MAX_TURNS = 1 << 16  # of one conversation, which is held in memory
_EXAMPLES = "--columns question,answer or --columns conversation=id,speaker=who,text=said"


@dataclass(frozen=True)
class Columns:
    """Either `turns`, where each row is a conversation, or `parts` (part, column), where each row is a turn."""

    turns: tuple[str, ...] = ()
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        return self.turns or tuple(column for _, column in self.parts)

    @property
    def numbered(self) -> bool:
        """Whether the columns are given by number, since the table has no header."""
        return all(name.isdecimal() and name.isascii() for name in self.names)

    def conversations(self, rows: Iterable[Row], stats: ReadStats) -> Iterator[Conversation]:
        """The conversations of a table. Raises `BadInput` for a row that cannot be read."""
        if self.turns:
            for where, cells in rows:
                yield self._of_row(where, cells, stats)
        else:
            yield from self._of_rows(rows, stats)

    def _of_row(self, where: str, cells: Mapping[str, Any], stats: ReadStats) -> Conversation:
        if len(self.turns) == 1:
            return conversation_of(_unpacked(cells[self.turns[0]], self.turns[0], where), where, stats)
        texts = [_cell(cells, name, where) for name in self.turns]
        while texts and not texts[-1].strip():
            texts.pop()  # the conversation has fewer turns than the table columns
        sides = (("bot", True) if index % 2 else ("user", False) for index in range(len(texts)))
        return merged([Message(*side, text) for side, text in zip(sides, texts, strict=True)], stats)

    def _of_rows(self, rows: Iterable[Row], stats: ReadStats) -> Iterator[Conversation]:
        columns = dict(self.parts)
        seen, begins = array("Q"), array("Q")  # of each conversation: its hash, and the number of its first row
        where, number = "", 1
        for key, group in groupby(rows, lambda row: _cell(row[1], columns["conversation"], row[0])):
            turns = list(islice(group, _MAX_TURNS + 1))
            where = turns[0][0]
            if len(turns) > _MAX_TURNS:
                raise BadInput(
                    f"{where}: more than {_MAX_TURNS} rows have the same {columns['conversation']}; "
                    "name the column that identifies conversations"
                )
            seen.append(int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "big"))
            begins.append(number)
            number += len(turns)
            yield self._of_turns(columns, turns, stats)
        _check_consecutive(seen, begins, columns["conversation"], where)

    def _of_turns(self, columns: Mapping[str, str], turns: list[Row], stats: ReadStats) -> Conversation:
        speaker = columns.get("speaker")
        names = [_cell(cells, speaker, where) if speaker else str(n % 2) for n, (where, cells) in enumerate(turns)]
        first = next((name for name in names if not is_role(name)), None)
        found = []
        for name, (where, cells) in zip(names, turns, strict=True):
            reply = is_bot(name, first)
            if reply is None:
                stats.system_messages += 1
                continue
            weight = columns.get("weight")
            counts = counts_of(cells[weight], where) if weight else True
            found.append(Message(name, reply, _cell(cells, columns["text"], where), counts))
        return merged(found, stats)


def parse_columns(spec: str) -> Columns:
    """Parse `--columns`. Raises `BadInput` for a value that cannot be parsed."""
    try:
        [fields] = csv.reader([spec], strict=True, skipinitialspace=True)
    except (csv.Error, ValueError) as error:
        raise BadInput(f"--columns {spec!r}: cannot be read; write {_EXAMPLES}") from error
    fields = [field.strip() for field in fields]
    if not all(fields) or not fields or len(set(fields)) < len(fields):
        raise BadInput(f"--columns {spec!r}: a column is empty or named twice; write {_EXAMPLES}")
    split = (field.partition("=") for field in fields)
    parts = [(key, column) for key, equals, column in split if key in _PARTS and equals]
    if not parts:
        return Columns(turns=tuple(fields))
    named = dict(parts)
    if len(parts) < len(fields) or len(named) < len(parts) or not all(named.values()):
        raise BadInput(f"--columns {spec!r}: mixes two forms; write {_EXAMPLES}")
    if "conversation" not in named or "text" not in named:
        raise BadInput(f"--columns {spec!r}: needs conversation= and text=; write {_EXAMPLES}")
    return Columns(parts=tuple(parts))


def _cell(cells: Mapping[str, Any], name: str, where: str) -> str:
    """A cell as text, "" for null. Raises `BadInput` for anything but a text or a number."""
    value = cells[name]
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise BadInput(
        f"{where}: column {name} holds {type(value).__name__}, not text; name it alone if it is a conversation"
    )


def _unpacked(value: Any, name: str, where: str) -> Any:
    """A conversation in one cell: as it is, or decoded from JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{where}: column {name} is not a conversation in JSON ({reason_of(error)}); "
            "for turns in several columns name them all, as in --columns question,answer"
        ) from error


def _check_consecutive(seen: "array[int]", begins: "array[int]", column: str, where: str) -> None:
    """Raise `BadInput` if the rows of a conversation are not consecutive: it would be split into several."""
    _, first, numbers = np.unique(np.asarray(seen, dtype=np.uint64), return_index=True, return_inverse=True)
    again = np.flatnonzero(first[numbers] != np.arange(len(numbers)))
    if again.size:
        raise BadInput(
            f"{where.rpartition(', ')[0]}, row {begins[int(again[0])]}: continues a conversation that other rows "
            f"interrupt (as do {again.size - 1} other rows); sort the table by column {column}"
        )
