"""The shapes that were tried when a model was pruned, as its lineage tells them.

A prune record's `metrics["candidates"]` is a list of {shape, parameters, perplexity, kl, ms_per_token (null: not
measured), chosen, steps}. Figures are those that the choice was made on: on fewer tokens, after `steps` of healing.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from bench.models.handle import ModelHandle


def pruning_candidates(names: Sequence[str], models: Sequence[ModelHandle]) -> dict[str, list[dict[str, Any]]]:
    """The shapes that were tried for each row, from the prune stages of its lineage; a search is told at one row."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, model in zip(names, models, strict=True):
        tried = [
            dict(candidate)
            for record in model.lineage()
            if record["stage"] == "prune"
            for candidate in record["metrics"].get("candidates") or ()
            if candidate["kl"] is not None  # the only one of a search is not tried
        ]
        if tried and tried not in found.values():
            found[name] = tried
    return found


def candidate_table(tried: Sequence[dict[str, Any]]) -> list[str]:
    """A line a shape, the largest first; figures are those of the choice, before the chosen one was healed in full, and
    perplexity is that against the uncut model."""
    titles = ["shape", "parameters", "perplexity", "KL", "ms/token", "healing steps", ""]
    lines = [table_line(titles), table_line(["---", *["---:"] * 5, "---"])]
    for candidate in sorted(tried, key=lambda candidate: -candidate["parameters"]):
        time = candidate.get("ms_per_token")
        cells = [
            str(candidate["shape"]),
            f"{candidate['parameters'] / 1e6:.2f} M",
            f"x {candidate['perplexity_ratio']:.3f}",
            f"{candidate['kl']:.3f}",
            "-" if time is None else f"{time:.2f}",
            str(candidate["steps"]),
            "chosen" if candidate["chosen"] else "",
        ]
        lines.append(table_line(cells))
    return lines


def table_line(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
