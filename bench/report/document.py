"""The report of a bench run: rows, `report.json`, `report.md`, and the table in the terminal.

`report.json` (format 2):

    format       2
    partial      whether the run was stopped before its end; complete rounds are kept
    rows         one object a model, in the order given; the first is the yardstick
        name, spec, kind, runtime, device
        runtime_version            of the runtime's package
        parameters (numbers), weight_mb, file_mb (all that ships), load_s (imports not included)
        ttft_ms_p50, _p95, _p99    prompt ids in -> first new id out, sampling included
        tpot_ms_p50, _p95, _p99    from a new token to the next, over all samples
        tokens_per_s               new tokens / (prompt + decode time), median over the samples
        ratio                      speed against the first row: median over rounds of the ratio within a round;
                                   ratio_interval, [low, high], 95 % over rounds
        spread, busy               the middle half of the replies' times over their median; whether other work shows
        cpu_s_per_token            CPU seconds of all threads over new tokens, prompt included
        ceiling                    share of the memory ceiling that decoding reaches: reading every weight once a token
                                   at the speed that memory had in the same round; median over rounds
        peak_rss_mb                of the model's processes after generating, before scoring
        device_mb                  GPU memory by the driver's count; null on the CPU
        agreement                  {agrees, compared, ties, why}: the greedy ids of the row's runtime at full precision
                                   against the first row's (bench/run/agreement.py); null where nobody was asked
        cold_start_s               a new process until its first token: one start, with --full the median of three
        reply_ms_p50, _p95, reply_first_ms_p50, reply_tokens_per_s      whole replies, text to text, sampled
        turns_ms, turns_last_ttft_ms    a conversation of several turns: all of it, and the last one's first token
        together_N_tokens_per_s, together_N_tpot_ms_p99   N conversations at once: in sum, and each one's tail
        perplexity, bits_per_byte, token_accuracy, eval_tokens   on held-out conversations; null without data
        kl, kl_p99, top1, kl_tokens     against the first row's predictions (see bench/evaluate/divergence.py)
        distinct_1, distinct_2, repetition_4, empty_replies, unfinished_replies, reply_tokens, replies
                                        of replies to the same held-out prompts (see bench/evaluate/reply_stats.py)
        perplexity_ratio, distinct_2_ratio, repetition_4_difference   against the first row, paired by conversation
        NAME_interval                   [low, high], 95 % over conversations, of most of these figures
        error                      last words of a worker that was lost, else null; its figures are null then
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report.candidates import candidate_table, table_line
from bench.report.notes import SCENARIO_NOTES, notes
from bench.report.tables import TEXT, Table, main_table, print_tables, scenario_table

FORMAT = 2


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.md, report.html and report.png, then report.json, into `folder`."""
    from bench.report.page import as_html
    from bench.report.plots import draw_report

    (folder / "report.md").write_text(as_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(as_html(report), encoding="utf-8")
    draw_report(report["rows"], folder / "report.png", report.get("candidates"))
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown page: table, what was lost, settings, machine."""
    lines = ["# Bench", "", *_as_markdown(main_table(report["rows"]))]
    lines += ["", *[f"- {line}" for line in notes(report)], "", "![quality against size and speed](report.png)", ""]
    lines += _against_first(report["rows"])
    if scenarios := scenario_table(report["rows"]):
        lines += ["## Scenarios", "", *_as_markdown(scenarios), "", *[f"- {line}" for line in SCENARIO_NOTES], ""]
    for name, tried in (report.get("candidates") or {}).items():
        lines += [f"## Shapes that were tried for {name}", "", *candidate_table(tried), ""]
    return "\n".join(lines)


def _as_markdown(table: Table) -> list[str]:
    rule = ["---" if key in TEXT else "---:" for _, key, _ in table.columns]
    return [table_line(table.heads), table_line(rule), *map(table_line, table.lines)]


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
        line = [row["name"], f"{row['parameters'] / whole:.3f}", ratios[0], kl, ratios[1], repeated]
        lines.append(table_line(line))
    return [*lines, "", "In brackets: 95 % intervals over conversations.", ""]


def _with_interval(row: dict[str, Any], name: str, form: str, end: str) -> str:
    if row[name] is None:
        return "-"
    interval = row[f"{name}_interval"]
    said = form.format(row[name])
    return said if interval is None else f"{said} ({end.format(interval[0])} to {end.format(interval[1])})"


def print_table(report: dict[str, Any]) -> None:
    """Print the tables and what must be known to read them to stdout."""
    tables = [main_table(report["rows"])]
    if scenarios := scenario_table(report["rows"]):
        tables.append(scenarios)
    print_tables(tables, notes(report))


def read_report(folder: Path) -> dict[str, Any]:
    """The `report.json` in `folder`."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report
