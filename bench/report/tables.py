"""The tables of a report: which columns hold anything, and their cells; Markdown, HTML and the terminal use them."""

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as Drawn

from bench.report.row import FIGURES, MAIN_COLUMNS, SCENARIO_COLUMNS, ReportRow

TEXT = {"name", "runtime"}  # columns of words, not of figures


@dataclass(frozen=True)
class Table:
    """What is shown: the keys of the columns that hold anything, and a line of cells a row."""

    columns: list[str]
    lines: list[list[str]]

    @property
    def heads(self) -> list[str]:
        """The titles of the columns."""
        return [FIGURES[key].title for key in self.columns]


def main_table(rows: Sequence[ReportRow]) -> Table:
    """One conversation, memory and quality."""
    return _table(rows, MAIN_COLUMNS)


def scenario_table(rows: Sequence[ReportRow]) -> Table | None:
    """The scenarios of a full run; None where no row has any of them."""
    table = _table(rows, SCENARIO_COLUMNS)
    return table if len(table.columns) > 1 else None


def _table(rows: Sequence[ReportRow], known: Sequence[str]) -> Table:
    columns = [key for key in known if any(getattr(row, key) is not None for row in rows)]
    lines = [[FIGURES[key].write(getattr(row, key)) for key in columns] for row in rows]
    return Table(columns, [[f"{name}{row.mark}", *cells] for row, (name, *cells) in zip(rows, lines, strict=True)])


def print_tables(tables: Sequence[Table], lines: Sequence[str]) -> None:
    """Print to stdout: a model a line, or a model a column where the terminal is narrow; then `lines`."""
    # A pipe has no width: rich would take 80 columns and break every cell.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 400
    console = Console(width=width, highlight=False)
    for table in tables:
        words = [key in TEXT for key in table.columns]
        drawn = _draw(table.heads, table.lines, words)
        if console.measure(drawn, options=console.options.update(width=1000)).maximum > width:
            heads, *turned = zip(table.heads, *table.lines, strict=True)
            drawn = _draw(heads, turned, [True, *[False] * len(table.lines)], fold=True)
        console.print(drawn)
    for line in lines:
        console.print(line, markup=False, style="dim")


def _draw(heads: Sequence[str], lines: Iterable[Sequence[str]], words: Sequence[bool], fold: bool = False) -> Drawn:
    """A table whose columns of `words` stand on the left; with `fold` all but the first one may be too narrow."""
    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    for index, (head, left) in enumerate(zip(heads, words, strict=True)):
        no_wrap = not fold or index == 0
        drawn.add_column(head, justify="left" if left else "right", no_wrap=no_wrap, overflow="fold")
    for line in lines:
        drawn.add_row(*line)
    return drawn
