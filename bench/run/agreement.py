"""Whether a runtime says what torch says: its greedy ids at full precision, before any of its rows counts.

Rounding differs between runtimes, so where the two likeliest ids are as good as equal either may come; what follows is
then another text and says nothing. Torch itself decides that: a first difference is a tie when its logits of the two
ids lie within `TIE` of their standard deviation. Anything else is a wrong answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.models.loaded import Ids
from bench.run.controller import Controller, Measurement, ask_sample
from bench.run.process import WorkerLost, WorkerProcess

PROMPTS = 3
TOKENS = 32
TIE = 1e-3


def check_agreement(controller: Controller) -> None:
    """Fill `Measurement.agreement` of the rows whose entry has a `BenchEntry.full_precision`.

    The first row is the reference. A model is asked once, however many rows it speaks for.
    """
    compared_rows = [row for row in controller.rows if row.entry.full_precision is not None and row.error is None]
    first = controller.rows[0]
    if not compared_rows or first.error is not None:
        return
    plan = controller.plan
    prompts = [[int(token) for token in prompt] for prompt in [*plan.prompts, *plan.warmups][:PROMPTS]]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with controller.worker(first) as reference:
        controller.attempt(reference, first, controller.load)
        if first.error is not None:
            return
        replies = [(prompt, _ids(reference, first, prompt, plan.new_tokens)) for prompt in prompts]
        for row in compared_rows:
            key = row.entry.kind.address, str(row.entry.full_precision)
            if key not in found:
                found[key] = _compare(controller, reference, row, replies)
            row.agreement = found[key]


def _compare(
    controller: Controller, reference: WorkerProcess, row: Measurement, replies: Sequence[tuple[Ids, Ids]]
) -> dict[str, Any]:
    """`agrees` (None where it cannot be run), the ids that were `compared`, `ties`, and `why` not.

    `replies` are prompts with what the reference says to them.
    """
    compared = ties = 0
    plan = controller.plan
    with controller.worker(row) as worker:
        try:
            controller.load(worker, row, spec=row.entry.full_precision, device="cpu")
            for prompt, ids in replies:
                found = _ids(worker, row, prompt, plan.new_tokens)
                same = next((index for index, token in enumerate(ids) if found[index] != token), len(ids))
                compared += same
                if same == len(ids):
                    continue
                request = {"op": "margin", "ids": [*prompt, *ids[:same]], "chosen": ids[same], "other": found[same]}
                if not is_tie(reference.ask(request)):
                    why = f"after {same} new ids it says {found[same]} where torch says {ids[same]}"
                    return {"agrees": False, "compared": compared + 1, "ties": ties, "why": why}
                ties += 1
        except WorkerLost as lost:
            return {"agrees": None, "compared": compared, "ties": ties, "why": str(lost)}
    return {"agrees": True, "compared": compared, "ties": ties, "why": None}


def is_tie(answer: Mapping[str, float]) -> bool:
    """Whether the reference finds the two ids as good as equal; the `margin` operation of `bench.run.worker`."""
    return abs(answer["margin"]) <= TIE * answer["spread"]


def _ids(worker: WorkerProcess, row: Measurement, prompt: Ids, new_tokens: int) -> list[int]:
    return list(ask_sample(worker, row, prompt, min(TOKENS, new_tokens))["ids"])
