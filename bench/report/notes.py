"""What must be known to read a report, in sentences: who was lost or wrong, how it was measured, and on what."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.row import ReportRow, read_rows

SCENARIO_NOTES = (
    "replies: sampled answers to held-out turns, from text in to text out; the same sampler and seeds for every row "
    "(CTranslate2: its own sampler, with the same options)",
    "4 turns: a prompt that grows by the reply and the next turn; our engine and llama.cpp keep what they computed",
    "N at once: new tokens of all conversations over the time until the last of them; - where a runtime has no call; "
    "each N is measured by itself, so compare the rows of a column",
)


def notes(report: Mapping[str, Any]) -> list[str]:
    """What must be known to read the table, a line each: lost rows first."""
    settings, machine, rows = report["settings"], report["environment"], read_rows(report["rows"])
    lines = ["partial: the run was stopped before its end"] if report.get("partial") else []
    lines += [f"{row.name} has no figures: {row.error}" for row in rows if row.error]
    lines += _agreement_notes(rows)
    lines.append(
        f"prompt {settings['prompt_tokens']} tokens, {settings['new_tokens']} new tokens, batch 1, greedy, "
        f"{settings['repetitions']} rounds in turn, medians; speed is against the first row, round by round"
    )
    if scored := max(row.eval_tokens or 0 for row in rows):
        lines.append(
            f"quality on {scored:,} held-out tokens in windows of {settings['context']}, through the runtime of the row"
        )
    lines += _quality_notes(rows)
    versions = machine["versions"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "onnxruntime") if name in versions)
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    lines.append(f"{hardware}, {shown}, {machine['date']}")
    load = machine["load_average_after"]  # ours is one busy model at a time
    if load and load[0] > 1.5 * machine["cores"]:
        lines.append(f"other work ran on the machine (load {load[0]} at the end); run it again when it is idle")
    return lines


def _agreement_notes(rows: Sequence[ReportRow]) -> list[str]:
    """Which rows give the first row's answers, and which do not."""
    lines, right = [], {}
    for row in rows:
        if not row.agreement:
            continue
        if row.agreement["agrees"]:
            right[row.kind] = row.agreement
        else:
            verdict = "gives wrong answers" if row.answers_wrong else "could not be checked"
            lines.append(f"{row.name} {verdict} at full precision: {row.agreement['why']}")
    if right:
        compared, ties = (sum(agreement[name] for agreement in right.values()) for name in ("compared", "ties"))
        lines.append(
            f"peers were asked at full precision first: {compared} greedy ids, all those of {rows[0].name}"
            + (f", but for {ties} ties" if ties else "")
        )
    if busy := [row.name for row in rows if row.busy]:
        lines.append(f"the machine was busy with other work while these were measured: {', '.join(busy)}; run it again")
    if own := [row.name for row in rows[1:] if row.bits_per_byte and row.perplexity is None]:
        lines.append(
            f"{', '.join(own)}: another tokenizer than {rows[0].name}'s, so KL, top-1, perplexity and accuracy "
            "do not compare; bits per byte do"
        )
    return lines


def _quality_notes(rows: Sequence[ReportRow]) -> list[str]:
    """What KL and the figures of replies were taken on."""
    lines = []
    if compared := max((row.kl_tokens or 0 for row in rows), default=0):
        lines.append(f"KL and top-1 against the predictions of {rows[0].name}, on {compared:,} held-out tokens")
    if replies := max((row.replies or 0 for row in rows), default=0):
        intervals = [
            f"{row.name} {row.distinct_2:.3f} ({row.distinct_2_interval[0]:.3f} to {row.distinct_2_interval[1]:.3f})"
            for row in rows
            if row.distinct_2 is not None and row.distinct_2_interval
        ]
        lines.append(
            f"distinct-2 and repeated 4-grams of {replies} replies to the same held-out prompts, sampled with fixed "
            "seeds" + (f"; distinct-2 with 95 % intervals: {', '.join(intervals)}" if intervals else "")
        )
    return lines
