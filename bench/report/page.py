"""report.html: the whole report in one file that opens without a network, for people who decide by it.

Table first, then the pictures, then how each number was made and on what machine. Nothing is loaded from anywhere:
styles and pictures stand inside, and the report's own numbers too, so that the page can be checked against them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from bench.report.charts import curves, distribution, tradeoff
from bench.report.notes import SCENARIO_NOTES, notes
from bench.report.plots import LOSS, SIZE, SPEED
from bench.report.row import FIGURES, ReportRow, read_rows
from bench.report.tables import TEXT, Table, main_table, scenario_table
from bench.run.timing import latency_figures

_PLAIN = {"name", "runtime", "parameters"}  # columns that need no explanation
_LITTLE = "what computes the same stands at 10⁻⁷"
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1400px;margin:2.2rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.2rem;margin:2.4rem 0 .6rem}
.scroll{overflow-x:auto}table{font-size:13px;border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:.3rem .55rem;text-align:right;border-bottom:1px solid #e4e4e4}th{font-weight:600;cursor:help}
td.text,th.text{text-align:left}
td:first-child,th:first-child{position:sticky;left:0;background:#fff}tbody tr:hover{background:#f5f8fb}
.marked td:first-child{color:#B34700}.lost{color:#999}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:1.2rem}
figure{margin:0}figure.wide{grid-column:1/-1}
svg{max-width:100%;height:auto}figcaption{color:#555;font-size:.9em}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.2rem}dt{font-weight:600}dd{margin:0}
.faint{color:#555}
"""


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def as_html(report: Mapping[str, Any]) -> str:
    """The page of a report (the object of report.json)."""
    rows = read_rows(report["rows"])
    tables = [table for table in (main_table(rows), scenario_table(rows)) if table is not None]
    shown = dict.fromkeys(key for table in tables for key in table.columns if key not in _PLAIN)
    parts = [
        f"<h1>Bench of {len(rows)} {'model' if len(rows) == 1 else 'models'}</h1>",
        f'<p class="faint">{escape(_headline(report))}</p>',
        *(["<p><strong>Partial: the run was stopped before its end.</strong></p>"] if report.get("partial") else []),
        _table(tables[0], rows),
        _list(notes(report)),
        _pictures([row for row in rows if not row.error and not row.answers_wrong], report["samples"]),
        *(_scenarios(table, rows, report["scenarios"]) for table in tables[1:]),
        "<h2>How each number was made</h2>",
        _definitions((FIGURES[key].title, FIGURES[key].meaning) for key in shown),
        "<h2>The machine</h2>",
        _definitions(_machine(report["environment"])),
        f'<script type="application/json" id="report">{_embedded(report)}</script>',
    ]
    title = "Bench: " + ", ".join(row.name for row in rows)
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, parts)))


def _headline(report: Mapping[str, Any]) -> str:
    settings, machine = report["settings"], report["environment"]
    return (
        f"prompts of {settings['prompt_tokens']} tokens, {settings['new_tokens']} new ones, one conversation, greedy; "
        f"{settings['repetitions']} rounds in turn; {machine['cpu']}, {machine['threads']} threads; {machine['date']}"
    )


def _table(table: Table, rows: Sequence[ReportRow]) -> str:
    kinds = [' class="text"' if key in TEXT else "" for key in table.columns]
    head = "".join(
        f'<th{kind} title="{escape("" if key in _PLAIN else FIGURES[key].meaning)}">{escape(FIGURES[key].title)}</th>'
        for key, kind in zip(table.columns, kinds, strict=True)
    )
    lines = []
    for row, line in zip(rows, table.lines, strict=True):
        kind = ' class="lost"' if row.error else ' class="marked"' if row.mark else ""
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(line, kinds, strict=True))
        lines.append(f"<tr{kind}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _pictures(rows: Sequence[ReportRow], samples: Mapping[str, Any]) -> str:
    drawn = [
        (tradeoff(rows, SPEED), "Quality against speed: right and below is better."),
        (tradeoff(rows, SIZE), "Quality against size: left and below is better."),
        (tradeoff(rows, SPEED, LOSS), f"What is lost against speed; {_LITTLE}."),
        (tradeoff(rows, SIZE, LOSS), f"What is lost against size; {_LITTLE}."),
    ]
    wide = (distribution(rows, samples), "Every token's time, all rounds.")
    figures = _figures(drawn) + _figures([wide], ' class="wide"')
    return f'<h2>Pictures</h2><div class="pictures">{figures}</div>' if figures else ""


def _figures(drawn: Iterable[tuple[str | None, str]], kind: str = "") -> str:
    return "".join(f"<figure{kind}>{svg}<figcaption>{text}</figcaption></figure>" for svg, text in drawn if svg)


def _scenarios(table: Table, rows: Sequence[ReportRow], scenarios: Mapping[str, Any]) -> str:
    """The second table and the curves of a full run."""
    alive = [row for row in rows if not row.error]

    def points(scenario: str, value: Callable[[ReportRow, str, Any], Any]) -> dict[str, list[tuple[float, float]]]:
        """(x, y) by row, of what a sweep varied."""
        return {
            row.name: [
                (float(at), float(value(row, at, samples)))
                for at, samples in scenarios.get(row.name, {}).get(scenario, {}).items()
            ]
            for row in alive
        }

    prompts = points("prompts", lambda row, at, times: np.median(times))
    threads = points("threads", lambda row, at, samples: latency_figures(samples)["tokens_per_s"])
    together = points("together", lambda row, at, samples: getattr(row, f"together_{at}_tokens_per_s"))
    drawn = [
        (
            curves(alive, prompts, "tokens of the prompt", "ms to the first token"),
            "Time to first token over the prompt's length.",
        ),
        (curves(alive, threads, "threads", "new tokens per second"), "One conversation over the number of threads."),
        (
            curves(alive, together, "conversations at once", "new tokens per second, all"),
            "Conversations at the same moment.",
        ),
    ]
    figures = f'<div class="pictures">{_figures(drawn)}</div>'
    return f"<h2>Scenarios</h2>{_table(table, rows)}{_list(SCENARIO_NOTES)}{figures}"


def _machine(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = {name: value for name, value in environment.items() if name != "versions" and value not in (None, [], "")}
    pairs = [
        (name.replace("_", " "), ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for name, v in facts.items()
    ]
    return [*pairs, ("versions", ", ".join(f"{name} {found}" for name, found in environment["versions"].items()))]


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _embedded(report: Mapping[str, Any]) -> str:
    """The report without replies and raw quality, as JSON that no text in it can end the element of."""
    kept = {name: value for name, value in report.items() if name != "quality"}
    return json.dumps(kept, ensure_ascii=False).replace("<", "\\u003c")
