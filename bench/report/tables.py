"""The tables of a report: which columns hold anything, and their cells; Markdown, HTML and the terminal use them."""

import shutil
import sys
from collections.abc import Sequence
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
        drawn = _wide(table)
        if console.measure(drawn, options=console.options.update(width=1000)).maximum > width:
            drawn = _narrow(table)
        console.print(drawn)
    for line in lines:
        console.print(line, markup=False, style="dim")


def _wide(table: Table) -> Drawn:
    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    for title, key in zip(table.heads, table.columns, strict=True):
        drawn.add_column(title, justify="left" if key in TEXT else "right", no_wrap=True)
    for line in table.lines:
        drawn.add_row(*line)
    return drawn


def _narrow(table: Table) -> Drawn:
    title, *titles = table.heads
    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    drawn.add_column(title, no_wrap=True)
    for name, *_ in table.lines:
        drawn.add_column(name, justify="right", overflow="fold")
    for index, figure in enumerate(titles, start=1):
        drawn.add_row(figure, *(line[index] for line in table.lines))
    return drawn
