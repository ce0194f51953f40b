"""The report of a bench run: `report.json`, `report.md`, and the table in the terminal.

`report.json` (format 2):

    format       2
    partial      whether the run was stopped before its end; complete rounds are kept
    rows         one object a model, in the order given; the first is the yardstick. Its fields, with units and meaning,
                 are those of `bench.report.row.ReportRow`
    samples      {name: [{ttft_ms, token_ms, ids, cpu_s}]}: every timed sample, by round
    scenarios    {name: {scenario: raw samples}}: see bench/run/scenarios.py
    bandwidth_gb_per_s   [round]: what all threads read from memory together
    quality      {name: bench.evaluate.measure.Quality}: sums by conversation, replies as texts
    candidates   {name: [{shape, parameters, perplexity, kl, ms_per_token, chosen, steps}]}: the shapes that were tried
                 when a row's model, or one that it was made from, was pruned; each search stands once
    settings     prompt_tokens, new_tokens, repetitions, warmups, seed, data (sha256 or null), context (tokens of a
                 scoring window, the same for all), max_eval_tokens, scenarios
    environment  see bench/machine/environment.py; load_average_after beside it

MB are 10^6 bytes. Nothing is measured and nothing plotted here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report.notes import SCENARIO_NOTES, notes
from bench.report.row import FIGURES, ReportRow, read_rows
from bench.report.tables import main_table, print_tables, scenario_table

FORMAT = 2
WORDS = {"model", "runtime", "shape", ""}  # heads of columns of words, not of figures


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.md, report.html and report.png, then report.json, into `folder`."""
    from bench.report.page import as_html
    from bench.report.plots import draw_report

    (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(as_html(report), encoding="utf-8")
    draw_report(read_rows(report["rows"]), folder / "report.png", report.get("candidates"))
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown page: table, what was lost, settings, machine."""
    rows = read_rows(report["rows"])
    main, scenarios = main_table(rows), scenario_table(rows)
    lines = ["# Bench", "", *_table(main.heads, main.lines)]
    lines += ["", *[f"- {line}" for line in notes(report)], "", "![quality against size and speed](report.png)", ""]
    lines += _against_first(rows)
    if scenarios:
        table = _table(scenarios.heads, scenarios.lines)
        lines += ["## Scenarios", "", *table, "", *[f"- {line}" for line in SCENARIO_NOTES], ""]
    for name, tried in (report.get("candidates") or {}).items():
        lines += [f"## Shapes that were tried for {name}", "", *_candidates(tried), ""]
    return "\n".join(lines)


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; columns of words stand on the left."""
    rule = ["---" if head in WORDS else "---:" for head in heads]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (heads, rule, *lines)]


def _against_first(rows: Sequence[ReportRow]) -> list[str]:
    """A table of what each row costs against the first one, paired by conversation; none without quality."""
    first, *others = rows
    lines = [
        [
            row.name,
            f"{(row.parameters or 0) / (first.parameters or 1):.3f}",
            _with_interval(row, "perplexity_ratio", "x {:.3f}", "{:.3f}"),
            FIGURES["kl"].write(row.kl),
            _with_interval(row, "distinct_2_ratio", "x {:.3f}", "{:.3f}"),
            _with_interval(row, "repetition_4_difference", "{:+.2%}", "{:+.2%}"),
        ]
        for row in others
        if row.perplexity_ratio is not None
    ]
    if not lines:
        return []
    table = _table(["model", "parameters", "perplexity", "KL", "distinct-2", "repeated 4-grams"], lines)
    return [f"## Against {first.name}", "", *table, "", "In brackets: 95 % intervals over conversations.", ""]


def _candidates(tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of shapes, the largest first; figures are those of the choice, before the chosen one was healed in full,
    and perplexity is that against the uncut model."""
    lines = [
        [
            str(candidate["shape"]),
            f"{candidate['parameters'] / 1e6:.2f} M",
            f"x {candidate['perplexity_ratio']:.3f}",
            f"{candidate['kl']:.3f}",
            "-" if candidate.get("ms_per_token") is None else f"{candidate['ms_per_token']:.2f}",
            str(candidate["steps"]),
            "chosen" if candidate["chosen"] else "",
        ]
        for candidate in sorted(tried, key=lambda candidate: -candidate["parameters"])
    ]
    return _table(["shape", "parameters", "perplexity", "KL", "ms/token", "healing steps", ""], lines)


def _with_interval(row: ReportRow, key: str, form: str, end: str) -> str:
    value, interval = getattr(row, key), getattr(row, f"{key}_interval")
    if value is None:
        return "-"
    text = form.format(value)
    return text if interval is None else f"{text} ({end.format(interval[0])} to {end.format(interval[1])})"


def print_table(report: dict[str, Any]) -> None:
    """Print the tables and what must be known to read them to stdout."""
    rows = read_rows(report["rows"])
    print_tables([table for table in (main_table(rows), scenario_table(rows)) if table], notes(report))
