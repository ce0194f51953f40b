"""`.csv` and `.tsv`: conversations in tables, by the columns that `--columns` names.

Python's csv module reads them. The delimiter of a .csv (comma, semicolon, tab) is the one that gives the named columns;
Excel's line `sep=;` is followed. In a .tsv, quotes are ordinary characters unless reading them as quotes gives every
row the same number of columns. A row with another number of columns than the first is refused: it holds a delimiter
that is not quoted.
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
        raise BadInput(f"{path}: is a table; say which columns are the turns, {_example(head, delimiters)}")
    if not "".join(head).strip():
        return
    delimiter = _delimiter(head, delimiters, columns, path)
    quoting = _quoting(head, delimiter, form_of(path)[0])
    rows = _rows(chain(head, lines), delimiter, quoting, str(path), skipped)
    yield from columns.conversations(_cells(rows, columns, path), stats)


def _cells(rows: Iterator[tuple[int, list[str]]], columns: Columns, path: Path) -> Iterator[Row]:
    """Each row as `(place, cells by column name)`; without a header the first row is data as well."""
    first = next(rows, None)
    if first is None:
        return
    header = (
        [str(index + 1) for index in range(len(first[1]))] if columns.numbered else [name.strip() for name in first[1]]
    )
    _check_columns(columns, header, path)
    for number, row in chain([first] if columns.numbered else [], rows):
        if len(row) != len(header):
            raise BadInput(
                f"{path}, line {number}: has {len(row)} columns, the first row has {len(header)}; "
                "quote texts that hold a delimiter or a line end"
            )
        yield f"{path}, line {number}", dict(zip(header, row, strict=True))


def _check_columns(columns: Columns, header: list[str], path: Path) -> None:
    for name in columns.names:
        if name not in header:
            known = f"numbers 1 to {len(header)}" if columns.numbered else _shown(header)
            raise BadInput(f"--columns {name}: {path} has no such column; it has {known}")
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
                f"{name}, line {begins}: is not a row of a table ({error}); "
                'close every quote, and double a quote within a text: ""'
            ) from error
        if any(cell.strip() for cell in row):
            yield begins, row


def _delimiter(head: list[str], delimiters: tuple[str, ...], columns: Columns, path: Path) -> str:
    """The delimiter that gives the named columns in the first row, else the one that gives most columns."""
    rows = {delimiter: _lenient(head, delimiter) for delimiter in delimiters}
    fitting = [sign for sign in delimiters if set(columns.names) <= set(rows[sign][0])]
    if fitting and not columns.numbered:
        return fitting[0]
    return max(delimiters, key=lambda each: (len({len(row) for row in rows[each]}) == 1, len(rows[each][0])))


def _lenient(head: list[str], delimiter: str) -> list[list[str]]:
    """The rows of the head, malformed ones too; at least one."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(head, delimiter=delimiter)]
    except csv.Error:
        rows = [line.strip().split(delimiter) for line in head]
    return [row for row in rows if any(row)][: _HEAD_LINES - 1] or [[""]]


def _quoting(head: list[str], delimiter: str, form: str) -> Quoting:
    """Whether quotes are read as such: in a .csv always, in a .tsv if all rows then have as many columns."""
    if form == ".csv":
        return csv.QUOTE_MINIMAL
    try:
        widths = {len(row) for _, row in _rows(head, delimiter, csv.QUOTE_MINIMAL, "")}
    except BadInput:  # ordinary characters, or a row that the end of the head cuts
        widths = set()
    plain = {len(line.split(delimiter)) for line in head if line.strip()}
    return csv.QUOTE_MINIMAL if len(widths) == 1 or len(plain) > 1 else csv.QUOTE_NONE


def _example(head: list[str], delimiters: tuple[str, ...]) -> str:
    """An example of `--columns` for this table, with its first row."""
    if not head:
        return "for example --columns question,answer"
    row = max((_lenient(head, sign)[0] for sign in delimiters), key=len)
    return f"by name or number, for example --columns 1,2; its first row is {_shown(row)}"


def _shown(names: list[str]) -> str:
    text = " ".join(", ".join(names).split())
    return text if len(text) <= 160 else text[:160] + "…"
