"""What must be known to read a report, in sentences: who was lost or wrong, how it was measured, and on what."""

from collections.abc import Sequence
from typing import Any

SCENARIO_NOTES = (
    "replies: sampled answers to held-out turns, from text in to text out; the same sampler and seeds for every row "
    "(CTranslate2: its own sampler, with the same options)",
    "4 turns: a prompt that grows by the reply and the next turn; our engine and llama.cpp keep what they computed",
    "N at once: new tokens of all conversations over the time until the last of them; - where a runtime has no call; "
    "each N is measured by itself, so compare the rows of a column",
)


def notes(report: dict[str, Any]) -> list[str]:
    """What must be known to read the table, a line each: lost rows first."""
    settings, machine = report["settings"], report["environment"]
    lines = ["partial: the run was stopped before its end"] if report.get("partial") else []
    lines += [f"{row['name']} has no figures: {row['error']}" for row in report["rows"] if row["error"]]
    lines += _agreement_notes(report["rows"])
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


def _agreement_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who says what the first row says, and who does not."""
    checked = [row for row in rows if row.get("agreement")]
    lines = []
    for row in checked:
        said = {False: "gives wrong answers", None: "could not be checked"}.get(row["agreement"]["agrees"])
        if said:
            lines.append(f"{row['name']} {said} at full precision: {row['agreement']['why']}")
    right = {row["kind"]: row["agreement"] for row in checked if row["agreement"]["agrees"]}
    if right:
        compared, ties = (sum(each[name] for each in right.values()) for name in ("compared", "ties"))
        lines.append(
            f"peers were asked at full precision first: {compared} greedy ids, all those of {rows[0]['name']}"
            + (f", but for {ties} ties" if ties else "")
        )
    busy = [row["name"] for row in rows if row.get("busy")]
    if busy:
        lines.append(f"the machine was busy with other work while these were measured: {', '.join(busy)}; run it again")
    own = [row["name"] for row in rows[1:] if row["bits_per_byte"] and row["perplexity"] is None]
    if own:
        lines.append(
            f"{', '.join(own)}: another tokenizer than {rows[0]['name']}'s, so KL, top-1, perplexity and accuracy "
            "do not compare; bits per byte do"
        )
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
