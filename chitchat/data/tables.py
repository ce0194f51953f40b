"""`.csv` and `.tsv`: conversations in tables, by the columns that `--columns` names.

Python's csv module reads them. The delimiter of a .csv (comma, semicolon, tab) is the one under which the columns are
there; Excel's line `sep=;` is heeded. In a .tsv quotes are ordinary characters where reading them as quotes does not
give every row as many columns. Every row must have as many columns as the first: one more is a text with a delimiter
that is not quoted, and would lose its end in silence.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from chitchat.data.columns import Columns, Row
from chitchat.data.conversation import Conversation, ReadStats
from chitchat.errors import BadInput
from chitchat.text.archive import form_of
from chitchat.text.lines import text_lines

_DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}
Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL, csv.QUOTE_NONE
_HEAD_LINES = 200
_SEP = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)


def read_table(path: Path, stats: ReadStats, columns: Columns | None = None) -> Iterator[Conversation]:
    """Conversations of a table. Raises `BadInput` where there are no `columns`, and for a damaged table."""
    lines = (line + "\n" for _, line in text_lines(path))
    head = list(islice(lines, _HEAD_LINES))
    skipped = 0
    delimiters = _DELIMITERS[form_of(path)[0]]
    if head and (named := _SEP.fullmatch(head[0])):
        delimiters, head, skipped = (named[1],), head[1:], 1
    if columns is None:
        raise BadInput(f"{path}: a table; say which columns are the turns, {_named(head, delimiters)}")
    if not "".join(head).strip():
        return
    delimiter = _delimiter(head, delimiters, columns, path)
    quoting = _quoting(head, delimiter, form_of(path)[0])
    rows = _rows(chain(head, lines), delimiter, quoting, str(path), skipped)
    yield from columns.conversations(_cells(rows, columns, path), stats)


def _cells(rows: Iterator[tuple[int, list[str]]], columns: Columns, path: Path) -> Iterator[Row]:
    """Each row as `(where, the cells by name)`; without names the first row is one like the others."""
    first, width, header = True, 0, [""]
    for number, row in rows:
        if first:
            first, width = False, len(row)
            header = [str(index + 1) for index in range(width)] if columns.numbered else [name.strip() for name in row]
            _check_there(columns, header, path)
            if not columns.numbered:
                continue
        if len(row) != width:
            raise BadInput(
                f"{path}, line {number}: has {len(row)} columns, the first row has {width}; a text with a delimiter or "
                "a line end in it must stand in quotes"
            )
        yield f"{path}, line {number}", dict(zip(header, row, strict=True))


def _check_there(columns: Columns, header: list[str], path: Path) -> None:
    for name in columns.names:
        if name not in header:
            there = f"numbers to {len(header)}" if columns.numbered else _list(header)
            raise BadInput(f"--columns {name}: {path} has no such column; it has {there}")
        if header.count(name) > 1:
            raise BadInput(f"--columns {name}: {path} has several columns of that name; rename one")


def _rows(
    lines: Iterable[str], delimiter: str, quoting: Quoting, name: str, skipped: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """`(line, cells)` of each row that is not blank; the line is that on which the row begins."""
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        begins = reader.line_num + skipped + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadInput(
                f"{name}, line {begins}: is no row of a table ({error}); a quote that begins a text must end it, "
                'and one within it is written twice, ""'
            ) from error
        if any(cell.strip() for cell in row):
            yield begins, row


def _delimiter(head: list[str], delimiters: tuple[str, ...], columns: Columns, path: Path) -> str:
    """The delimiter under which the first row has the columns that are asked for, else the one with most columns."""
    rows = {delimiter: _lenient(head, delimiter) for delimiter in delimiters}
    fitting = [sign for sign in delimiters if set(columns.names) <= set(rows[sign][0])]
    if fitting and not columns.numbered:
        return fitting[0]
    return max(delimiters, key=lambda each: (len({len(row) for row in rows[each]}) == 1, len(rows[each][0])))


def _lenient(head: list[str], delimiter: str) -> list[list[str]]:
    """The rows of the head, damaged ones too; at least one."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(head, delimiter=delimiter)]
    except csv.Error:
        rows = [line.strip().split(delimiter) for line in head]
    return [row for row in rows if any(row)][: _HEAD_LINES - 1] or [[""]]


def _quoting(head: list[str], delimiter: str, form: str) -> Quoting:
    """Whether quotes quote: in a .csv always, in a .tsv where every row then has as many columns as the first."""
    if form == ".csv":
        return csv.QUOTE_MINIMAL
    try:
        widths = {len(row) for _, row in _rows(head, delimiter, csv.QUOTE_MINIMAL, "")}
    except BadInput:  # the last row may be cut by the end of the head, and is then read in vain: ordinary quotes
        widths = set()
    plain = {len(line.split(delimiter)) for line in head if line.strip()}
    return csv.QUOTE_MINIMAL if len(widths) == 1 or len(plain) > 1 else csv.QUOTE_NONE


def _named(head: list[str], delimiters: tuple[str, ...]) -> str:
    """The remedy for a table without `--columns`: its own first row as an example."""
    if not head:
        return "for example --columns question,answer"
    row = max((_lenient(head, sign)[0] for sign in delimiters), key=len)
    return f"by name or number, for example --columns 1,2; its first row is {_list(row)}"


def _list(names: list[str]) -> str:
    text = " ".join(", ".join(names).split())
    return text if len(text) <= 160 else text[:160] + "…"
