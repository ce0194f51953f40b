"""report.html: the whole report in one file that opens without a network, for people who decide by it.

Table first, then the pictures, then how each number was made and on what machine. Nothing is loaded from anywhere:
styles and pictures stand inside, and the report's own numbers too, so that the page can be checked against them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from bench.report.charts import curves, distribution, tradeoff
from bench.report.notes import SCENARIO_NOTES, notes
from bench.report.plots import LOSS, SIZE, SPEED
from bench.report.tables import TEXT, Table, is_wrong, main_table, mark, scenario_table
from bench.run.timing import latency_figures

# What a column of the table is, and how it was taken.
MEANING = {
    "file MB": "all files that must be copied to run it elsewhere, 10^6 bytes",
    "perplexity": "e to the mean negative log-likelihood of held-out tokens, through the runtime of the row",
    "bits/byte": "the same per byte of text: the one that compares across tokenizers",
    "accuracy": "how often the likeliest next token is the one that came",
    "KL": "mean divergence of its next-token distribution from the first row's, nats a token",
    "top-1": "how often its likeliest token is the first row's",
    "distinct-2": "different word pairs over all word pairs of replies to the same held-out prompts",
    "repeated": "share of 4-grams that a reply had said already",
    "TTFT ms": "from the prompt's ids in to the first new id out, sampling included; median",
    "ms/token": "from a new token to the next; median over all tokens of all rounds",
    "p95": "the same, 95th percentile",
    "tokens/s": "new tokens over prompt and decode time of a reply; median over rounds",
    "speed": "a reply's time of the first row over this row's, round by round; median",
    "of ceiling": "share of the memory ceiling: reading every weight once a token, as fast as memory was in that round",
    "CPU ms/token": "CPU time of all threads over new tokens, prompt included",
    "peak MB": "the most memory that the model's own processes held, 10^6 bytes, before quality was measured",
    "GPU MB": "GPU memory of the model's process by the driver's count",
    "cold start s": "from the start of a new process to its first token, imports included; file caches as they were; "
    "one start, with --full the median of three",
    "load s": "opening the model, imports not included",
    "reply ms": "a whole sampled reply, from text in to its last text; median",
    "reply p95": "the same, 95th percentile",
    "reply tokens/s": "tokens of all those replies over their time",
    "4 turns ms": "a conversation of four turns, all prompts and replies; median",
    "last TTFT ms": "time to first token of its last turn, whose prompt is the whole conversation; median",
    **{
        f"{width} at once tokens/s": f"new tokens of {width} conversations over the time until the last; median"
        for width in (1, 2, 4, 8)
    },
    "of 4, p99 ms": "with four conversations, the 99th percentile of the time between two tokens of one of them",
}

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
    rows = report["rows"]
    alive = [row for row in rows if not row["error"]]
    parts = [
        f"<h1>Bench of {len(rows)} {'model' if len(rows) == 1 else 'models'}</h1>",
        f'<p class="faint">{escape(_headline(report))}</p>',
        *(["<p><strong>Partial: the run was stopped before its end.</strong></p>"] if report.get("partial") else []),
        _table(main_table(rows), rows),
        _list(notes(dict(report))),
        _pictures([row for row in alive if not is_wrong(row)], report["samples"]),
        _scenarios(report),
        "<h2>How each number was made</h2>",
        _definitions((title, MEANING[title]) for title in _titles(rows) if title in MEANING),
        "<h2>The machine</h2>",
        _definitions(_machine(report["environment"])),
        f'<script type="application/json" id="report">{_embedded(report)}</script>',
    ]
    title = "Bench: " + ", ".join(row["name"] for row in rows)
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, parts)))


def _headline(report: Mapping[str, Any]) -> str:
    settings, machine = report["settings"], report["environment"]
    return (
        f"prompts of {settings['prompt_tokens']} tokens, {settings['new_tokens']} new ones, one conversation, greedy; "
        f"{settings['repetitions']} rounds in turn; {machine['cpu']}, {machine['threads']} threads; {machine['date']}"
    )


def _titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    scenarios = scenario_table(rows)
    return main_table(rows).heads + (scenarios.heads[1:] if scenarios else [])


def _table(table: Table, rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = [' class="text"' if key in TEXT else "" for _, key, _ in table.columns]
    heads = zip(table.heads, kinds, strict=True)
    head = "".join(f'<th{kind} title="{escape(MEANING.get(title, ""))}">{escape(title)}</th>' for title, kind in heads)
    lines = []
    for row, line in zip(rows, table.lines, strict=True):
        kind = "lost" if row["error"] else "marked" if mark(row) else ""
        body = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(line, kinds, strict=True))
        lines.append(f'<tr class="{kind}">{body}</tr>' if kind else f"<tr>{body}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _pictures(rows: Sequence[Mapping[str, Any]], samples: Mapping[str, Any]) -> str:
    drawn = [
        (tradeoff(rows, SPEED), "Quality against speed: right and below is better.", ""),
        (tradeoff(rows, SIZE), "Quality against size: left and below is better.", ""),
        (tradeoff(rows, SPEED, LOSS), f"What is lost against speed; {_LITTLE}.", ""),
        (tradeoff(rows, SIZE, LOSS), f"What is lost against size; {_LITTLE}.", ""),
        (distribution(rows, samples), "Every token's time, all rounds.", ' class="wide"'),
    ]
    figures = [f"<figure{kind}>{svg}<figcaption>{text}</figcaption></figure>" for svg, text, kind in drawn if svg]
    return f'<h2>Pictures</h2><div class="pictures">{"".join(figures)}</div>' if figures else ""


def _scenarios(report: Mapping[str, Any]) -> str:
    """The second table and the curves of a full run; nothing of a cheap one."""
    rows = report["rows"]
    table = scenario_table(rows)
    if table is None:
        return ""
    alive = [row for row in rows if not row["error"]]
    drawn = [
        (curves(alive, points, across, up), text) for points, across, up, text in _sweeps(alive, report["scenarios"])
    ]
    figures = "".join(f"<figure>{svg}<figcaption>{text}</figcaption></figure>" for svg, text in drawn if svg)
    return f'<h2>Scenarios</h2>{_table(table, rows)}{_list(SCENARIO_NOTES)}<div class="pictures">{figures}</div>'


def _sweeps(rows: Sequence[Mapping[str, Any]], scenarios: Mapping[str, Any]) -> list[tuple[Any, str, str, str]]:
    """Points by row of each curve, with its axes and what it shows."""
    prompts, threads, together = {}, {}, {}
    for row in rows:
        extra = scenarios.get(row["name"], {})
        prompts[row["name"]] = [(float(at), float(np.median(ms))) for at, ms in extra.get("prompts", {}).items()]
        threads[row["name"]] = [
            (float(at), latency_figures(samples)["tokens_per_s"]) for at, samples in extra.get("threads", {}).items()
        ]
        together[row["name"]] = [(float(n), row[f"together_{n}_tokens_per_s"]) for n in extra.get("together", {})]
    return [
        (prompts, "tokens of the prompt", "ms to the first token", "Time to first token over the prompt's length."),
        (threads, "threads", "new tokens per second", "One conversation over the number of threads."),
        (together, "conversations at once", "new tokens per second, all", "Conversations at the same moment."),
    ]


def _machine(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = {name: value for name, value in environment.items() if name != "versions" and value not in (None, [], "")}
    told = [
        (name.replace("_", " "), ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for name, v in facts.items()
    ]
    return [*told, ("versions", ", ".join(f"{name} {found}" for name, found in environment["versions"].items()))]


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _embedded(report: Mapping[str, Any]) -> str:
    """The report without replies and raw quality, as JSON that no text in it can end the element of."""
    kept = {name: value for name, value in report.items() if name != "quality"}
    return json.dumps(kept, ensure_ascii=False).replace("<", "\\u003c")
