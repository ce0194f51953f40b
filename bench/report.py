"""The report of a bench run: rows, `report.json`, `report.md`, and the table in the terminal.

`report.json` (format 1):

    format       1
    rows         one object a model, in the order given; the first is the yardstick
        name, spec, kind, runtime, device
        parameters (numbers), weight_mb, file_mb (all that ships), load_s (imports not included)
        ttft_ms_p50, ttft_ms_p95   prompt ids in -> first new id out, sampling included
        tpot_ms_p50, tpot_ms_p95   from a new token to the next, over all samples
        tokens_per_s               new tokens / (prompt + decode time), median over the samples
        ratio                      speed against the first row: median over rounds of the ratio within a round
        peak_rss_mb                of the model's process after generating, before scoring
        perplexity, bits_per_byte, token_accuracy, eval_tokens   on held-out conversations; null without data
        kl, kl_p99, top1, kl_tokens     against the first row's predictions (see bench/divergence.py)
        distinct_1, distinct_2, repetition_4, empty_replies, unfinished_replies, reply_tokens, replies
                                        of replies to the same held-out prompts (see bench/health.py)
        perplexity_ratio, distinct_2_ratio, repetition_4_difference   against the first row, paired by conversation
        NAME_interval                   [low, high], 95 % over conversations, of most of these figures
        error                      last words of a worker that was lost, else null; its figures are null then
    samples      {name: [{ttft_ms, token_ms, ids}]}: every timed sample, by round
    quality      {name: bench.quality.Quality}: sums by conversation, replies as texts
    candidates   {name: [{shape, parameters, perplexity, kl, ms_per_token, chosen, steps}]}: the shapes that were tried
                 when a row's model, or one that it was made from, was pruned; each search stands once
    settings     prompt_tokens, new_tokens, repetitions, warmups, seed, data (sha256 or null), context (tokens of a
                 scoring window, the same for all), max_eval_tokens
    environment  see bench/environment.py; load_average_after beside it

MB are 10^6 bytes. Nothing is measured and nothing plotted here.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.candidates import candidate_table, table_line
from bench.latency import Measurement, latency_figures, speed_ratio
from bench.measured import MeasuredModel
from bench.quality import Quality

MB = 1_000_000
FORMAT = 1
# Figures of `Quality.figures` that a row holds; those of _BOUNDED have an interval.
_BOUNDED = (
    *("perplexity", "bits_per_byte", "token_accuracy", "kl", "top1", "distinct_1", "distinct_2", "repetition_4"),
    *("empty_replies", "reply_tokens", "perplexity_ratio", "distinct_2_ratio", "repetition_4_difference"),
)
_QUALITY = (
    *_BOUNDED,
    *(f"{name}_interval" for name in _BOUNDED),
    *("kl_p99", "kl_tokens", "unfinished_replies", "replies"),
)
_FIGURES = ("ttft_ms_p50", "ttft_ms_p95", "tpot_ms_p50", "tpot_ms_p95", "tokens_per_s", "ratio")

# Column: head, key of the row, how the value is written.
_COLUMNS: list[tuple[str, str, Callable[[Any], str]]] = [
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
    ("peak MB", "peak_rss_mb", lambda value: f"{value:.0f}"),
    ("load s", "load_s", lambda value: f"{value:.2f}"),
]
_WORDS = {"name", "runtime"}


def build_rows(
    names: Sequence[str], models: Sequence[MeasuredModel], measured: Sequence[Measurement], device: str
) -> list[dict[str, Any]]:
    """One row a model. The first model that is a plain checkpoint at the top is the full-precision generator."""
    rows = []
    for place, (name, model, result) in enumerate(zip(names, models, measured, strict=True)):
        runtime = model.runtime
        if place == 0 and model.kind == "checkpoint":
            runtime += " (full-precision generator)"
        lost = result.error is not None
        quality = {} if lost else _quality_figures(result, measured[0] if place else None)
        row = {
            "name": name,
            "spec": model.spec,
            "kind": model.kind,
            "runtime": runtime,
            "device": device,
            "parameters": model.parameters,
            "weight_mb": model.weight_bytes / MB,
            "file_mb": model.file_bytes / MB,
            "load_s": None if lost else result.load_s,
            **dict.fromkeys(_FIGURES),
            "peak_rss_mb": None if lost else result.peak_rss_mb,
            **{name: quality.get(name) for name in _QUALITY},
            "eval_tokens": quality.get("tokens"),
            "error": result.error,
        }
        if not lost:
            row.update(latency_figures(result.samples))
            if measured[0].error is None:
                row["ratio"] = speed_ratio(measured[0].samples, result.samples)
        rows.append(row)
    return rows


def _quality_figures(result: Measurement, first: Measurement | None) -> dict[str, Any]:
    """The figures of one row, and its ratios to the first row where that has any; {} without quality."""
    if not result.quality:
        return {}
    compared = first if first is not None and first.quality and first.error is None else None
    teacher = None if compared is None else Quality.from_json(compared.quality or {})
    return Quality.from_json(result.quality).figures(teacher)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.md and report.png, then report.json, into `folder`."""
    from bench.plots import draw_report

    (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")
    draw_report(report["rows"], folder / "report.png", report.get("candidates"))
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown page: table, what was lost, settings, machine."""
    columns = _columns(report["rows"])
    head = [title for title, _, _ in columns]
    lines = ["# Bench", "", table_line(head), table_line("---" if key in _WORDS else "---:" for _, key, _ in columns)]
    lines += [table_line(_cells(row, columns)) for row in report["rows"]]
    lines += ["", *[f"- {line}" for line in notes(report)], "", "![quality against size and speed](report.png)", ""]
    lines += _against_first(report["rows"])
    for name, tried in (report.get("candidates") or {}).items():
        lines += [f"## Shapes that were tried for {name}", "", *candidate_table(tried), ""]
    return "\n".join(lines)


def _against_first(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table of what each row costs against the first one, paired by conversation; none without quality."""
    compared = [row for row in rows[1:] if row["perplexity_ratio"] is not None]
    if not compared:
        return []
    whole = rows[0]["parameters"]
    head = ["model", "parameters", "perplexity", "KL", "distinct-2", "repeated 4-grams"]
    lines = [f"## Against {rows[0]['name']}", "", table_line(head), table_line(["---", *["---:"] * 5])]
    for row in compared:
        kl = "-" if row["kl"] is None else f"{row['kl']:.2g}"
        ratios = [_with_interval(row, name, "x {:.3f}", "{:.3f}") for name in ("perplexity_ratio", "distinct_2_ratio")]
        repeated = _with_interval(row, "repetition_4_difference", "{:+.2%}", "{:+.2%}")
        cells = [row["name"], f"{row['parameters'] / whole:.3f}", ratios[0], kl, ratios[1], repeated]
        lines.append(table_line(cells))
    return [*lines, "", "In brackets: 95 % intervals over conversations.", ""]


def _with_interval(row: dict[str, Any], name: str, form: str, end: str) -> str:
    if row[name] is None:
        return "-"
    interval = row[f"{name}_interval"]
    said = form.format(row[name])
    return said if interval is None else f"{said} ({end.format(interval[0])} to {end.format(interval[1])})"


def notes(report: dict[str, Any]) -> list[str]:
    """What must be known to read the table, a line each: lost rows first."""
    settings, machine = report["settings"], report["environment"]
    lines = [f"{row['name']} was lost: {row['error']}" for row in report["rows"] if row["error"]]
    lines.append(
        f"prompt {settings['prompt_tokens']} tokens, {settings['new_tokens']} new tokens, batch 1, greedy, "
        f"{settings['repetitions']} rounds in turn, medians; speed is against the first row, round by round"
    )
    scored = [row["eval_tokens"] for row in report["rows"] if row["eval_tokens"]]
    if scored:
        lines.append(
            f"quality on {max(scored):,} held-out tokens in windows of {settings['context']}, "
            "through the runtime of the row"
        )
    lines += _health_notes(report["rows"])
    versions = machine["versions"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "onnxruntime") if name in versions)
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    lines.append(f"{hardware}, {shown}, {machine['date']}")
    load = machine["load_average_after"]  # ours is one busy model at a time
    if load and load[0] > 1.5 * machine["cores"]:
        lines.append(f"other work ran on the machine (load {load[0]} at the end); run it again when it is idle")
    return lines


def _health_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What KL and the figures of replies were taken on."""
    lines = []
    compared = max((row["kl_tokens"] or 0 for row in rows), default=0)
    if compared:
        lines.append(f"KL and top-1 against the predictions of {rows[0]['name']}, on {compared:,} held-out tokens")
    said = max((row["replies"] or 0 for row in rows), default=0)
    if said:
        spread = [
            f"{row['name']} {row['distinct_2']:.3f} ({low:.3f} to {high:.3f})"
            for row in rows
            if row["distinct_2"] is not None and row["distinct_2_interval"]
            for low, high in [row["distinct_2_interval"]]
        ]
        lines.append(
            f"distinct-2 and repeated 4-grams of {said} replies to the same held-out prompts, sampled with fixed seeds"
            + (f"; distinct-2 with 95 % intervals: {', '.join(spread)}" if spread else "")
        )
    return lines


def print_table(report: dict[str, Any]) -> None:
    """Print the table and its notes to stdout: a model a line, or a model a column where the terminal is narrow."""
    import shutil
    import sys

    from rich.console import Console

    # A pipe has no width: rich would take 80 columns and break every cell.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 400
    console = Console(width=width, highlight=False)
    table = _wide_table(report["rows"])
    if console.measure(table, options=console.options.update(width=1000)).maximum > width:
        table = _narrow_table(report["rows"])
    console.print(table)
    for line in notes(report):
        console.print(line, markup=False, style="dim")


def _wide_table(rows: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    columns = _columns(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, key, _ in columns:
        table.add_column(title, justify="left" if key in _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, columns))
    return table


def _narrow_table(rows: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    (title, *titles), *cells = [
        [column[0] for column in _columns(rows)],
        *(_cells(row, _columns(rows)) for row in rows),
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True)
    for name, *_ in cells:
        table.add_column(name, justify="right", overflow="fold")
    for place, figure in enumerate(titles, start=1):
        table.add_row(figure, *(row[place] for row in cells))
    return table


def read_report(folder: Path) -> dict[str, Any]:
    """The `report.json` in `folder`."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def _columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, Callable[[Any], str]]]:
    """The columns that hold anything: without data there is no quality."""
    return [column for column in _COLUMNS if any(row[column[1]] is not None for row in rows)]


def _cells(row: dict[str, Any], columns: Sequence[tuple[str, str, Callable[[Any], str]]]) -> list[str]:
    return ["-" if row[key] is None else write(row[key]) for _, key, write in columns]
