"""The tables of a report: which columns, how a value is written, and the terminal. Markdown and HTML use the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Column = tuple[str, str, Callable[[Any], str]]  # head, key of the row, how the value is written
Row = Mapping[str, Any]
_COLUMNS: list[Column] = [
    ("model", "name", str),
    ("runtime", "runtime", str),
    ("parameters", "parameters", lambda value: f"{value / 1e6:.2f} M"),
    ("file MB", "file_mb", lambda value: f"{value:.1f}"),
    ("perplexity", "perplexity", lambda value: f"{value:.1f}"),
    ("bits/byte", "bits_per_byte", lambda value: f"{value:.3f}"),
    ("accuracy", "token_accuracy", lambda value: f"{value:.1%}"),
    ("KL", "kl", lambda value: f"{value:.2g}"),
    ("top-1", "top1", lambda value: f"{value:.1%}"),
    ("distinct-2", "distinct_2", lambda value: f"{value:.3f}"),
    ("repeated", "repetition_4", lambda value: f"{value:.1%}"),
    ("TTFT ms", "ttft_ms_p50", lambda value: f"{value:.1f}"),
    ("ms/token", "tpot_ms_p50", lambda value: f"{value:.2f}"),
    ("p95", "tpot_ms_p95", lambda value: f"{value:.2f}"),
    ("tokens/s", "tokens_per_s", lambda value: f"{value:.0f}"),
    ("speed", "ratio", lambda value: f"{value:.2f} x"),
    ("of ceiling", "ceiling", lambda value: f"{value:.0%}"),
    ("CPU ms/token", "cpu_s_per_token", lambda value: f"{value * 1000:.2f}"),
    ("peak MB", "peak_rss_mb", lambda value: f"{value:.0f}"),
    ("GPU MB", "device_mb", lambda value: f"{value:.0f}"),
    ("cold start s", "cold_start_s", lambda value: f"{value:.2f}"),
    ("load s", "load_s", lambda value: f"{value:.2f}"),
]
TEXT = {"name", "runtime"}  # columns of words, not of figures
# The second table: what the scenarios of a full run say.
_SCENARIO_COLUMNS: list[Column] = [
    ("model", "name", str),
    ("reply ms", "reply_ms_p50", lambda value: f"{value:.0f}"),
    ("reply p95", "reply_ms_p95", lambda value: f"{value:.0f}"),
    ("reply tokens/s", "reply_tokens_per_s", lambda value: f"{value:.0f}"),
    ("4 turns ms", "turns_ms", lambda value: f"{value:.0f}"),
    ("last TTFT ms", "turns_last_ttft_ms", lambda value: f"{value:.1f}"),
    *(
        (f"{width} at once tokens/s", f"together_{width}_tokens_per_s", lambda value: f"{value:.0f}")
        for width in (1, 2, 4, 8)
    ),
    ("of 4, p99 ms", "together_4_tpot_ms_p99", lambda value: f"{value:.1f}"),
]


@dataclass(frozen=True)
class Table:
    """What is shown: the columns that hold anything, and a line of cells a row; "-" where there is nothing."""

    columns: list[Column]
    lines: list[list[str]]

    @property
    def heads(self) -> list[str]:
        """The titles of the columns."""
        return [title for title, _, _ in self.columns]


def main_table(rows: Sequence[Row]) -> Table:
    """One conversation, memory and quality."""
    return _table(rows, _COLUMNS)


def scenario_table(rows: Sequence[Row]) -> Table | None:
    """The scenarios of a full run; None where no row has any of them."""
    table = _table(rows, _SCENARIO_COLUMNS)
    return table if len(table.columns) > 1 else None


def _table(rows: Sequence[Row], known: Sequence[Column]) -> Table:
    shown = [column for column in known if any(row.get(column[1]) is not None for row in rows)]
    return Table(shown, [[_cell(row, key, write) for _, key, write in shown] for row in rows])


def _cell(row: Row, key: str, write: Callable[[Any], str]) -> str:
    if row.get(key) is None:
        return "-"
    said = write(row[key])
    return f"{said}{mark(row)}" if key == "name" else said


def is_wrong(row: Row) -> bool:
    """Whether the row's runtime computes something else than the first one."""
    return (row.get("agreement") or {}).get("agrees") is False


def mark(row: Row) -> str:
    """What stands behind a row's name: that its answers are wrong, or that the machine was busy."""
    if is_wrong(row):
        return " (answers wrong)"
    return " (busy)" if row.get("busy") else ""


def print_tables(tables: Sequence[Table], lines: Sequence[str]) -> None:
    """Print to stdout: a model a line, or a model a column where the terminal is narrow; then `lines`."""
    import shutil
    import sys

    from rich.console import Console

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


def _wide(table: Table) -> Any:
    from rich.table import Table as Drawn

    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    for title, key, _ in table.columns:
        drawn.add_column(title, justify="left" if key in TEXT else "right", no_wrap=True)
    for line in table.lines:
        drawn.add_row(*line)
    return drawn


def _narrow(table: Table) -> Any:
    from rich.table import Table as Drawn

    title, *titles = table.heads
    drawn = Drawn(box=None, pad_edge=False, header_style="bold")
    drawn.add_column(title, no_wrap=True)
    for name, *_ in table.lines:
        drawn.add_column(name, justify="right", overflow="fold")
    for place, figure in enumerate(titles, start=1):
        drawn.add_row(figure, *(line[place] for line in table.lines))
    return drawn
