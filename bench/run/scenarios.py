"""What models are asked to do beside the one conversation, and the figures of it. `compress bench --full` does it all.

    cold-start   a new process until its first token, twice more than the timed rounds began with one
    replies      whole replies to real held-out turns: text in, tokenizer, prompt, sampling, text out, as it comes
    turns        a conversation of several turns, whose prompt grows by the reply and the next turn: what is worth
                 keeping of the turn before is kept by those that can
    together     1, 2, 4 and 8 conversations at the same moment, each with its own prompt
    prompts      time to first token over the length of the prompt
    threads      one conversation over the number of threads

Everywhere the rows take turns, A B C A B C …. Raw samples go into `Measurement.extra` under the scenario's name; a row
whose runtime cannot do a thing has none. Several conversations at once are only asked of what has a call for it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench.machine.environment import cores
from bench.run.controller import BenchPlan, Controller, Measurement, Step, ask_sample
from bench.run.process import WorkerProcess
from bench.run.timing import total_ms

STARTS = 2  # beside the one of the timed rounds
ROUNDS = 5  # of each other scenario: a point of a curve needs fewer samples than the row itself
TURNS = 4
CONCURRENCY = (1, 2, 4, 8)
REPLY_TOKENS = 64


@dataclass(frozen=True)
class Scenario:
    """`steps` a row for the progress bar; `run` fills `extra`; `figures` are what a row says of its samples."""

    steps: Callable[[BenchPlan], int]
    run: Callable[[Controller], None]
    figures: Callable[[Any], dict[str, float]] = lambda raw: {}


def scenario_figures(extra: Mapping[str, Any]) -> dict[str, float]:
    """The figures of all scenarios that a row has samples of."""
    return {key: value for name, raw in extra.items() if raw for key, value in SCENARIOS[name].figures(raw).items()}


# --- cold start


def _cold_start(controller: Controller) -> None:
    for _ in range(STARTS):
        for row in controller.rows:
            with controller.worker(row) as worker:
                controller.attempt(worker, row, controller.first_token, settle_first=False)


def _cold_figures(seconds: Sequence[float]) -> dict[str, float]:
    return {"cold_start_s": float(np.median(seconds))}


# --- whole replies


def _replies(controller: Controller) -> None:
    with controller.loaded() as workers:
        for seed, text in enumerate(controller.plan.texts):
            controller.turn(workers, partial(_reply, text, seed))


def _reply(text: str, seed: int, worker: WorkerProcess, row: Measurement) -> None:
    if row.entry.text_pipeline is not None:
        request = {"op": "reply", "text": text, "seed": seed, "new_tokens": REPLY_TOKENS}
        answer = worker.ask(request | {"text_pipeline": dict(row.entry.text_pipeline)})
        row.extra.setdefault("replies", []).append(answer)


def _reply_figures(replies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Replies differ in length: the rate is over all tokens, the tails are of whole replies."""
    times = [reply["ms"] for reply in replies]
    return {
        "reply_first_ms_p50": float(np.median([reply["first_ms"] for reply in replies])),
        "reply_ms_p50": float(np.percentile(times, 50)),
        "reply_ms_p95": float(np.percentile(times, 95)),
        "reply_tokens_per_s": sum(reply["tokens"] for reply in replies) / sum(times) * 1000,
    }


# --- a conversation of several turns


def _turns(controller: Controller) -> None:
    with controller.loaded() as workers:
        for index in range(ROUNDS):
            history: dict[str, list[int]] = {row.entry.name: [] for row in controller.rows}
            for row in controller.rows:
                if row.error is None:
                    row.extra.setdefault("turns", []).append([])
            for turn in range(TURNS):
                controller.turn(workers, partial(_turn, controller, history, index * TURNS + turn))


def _turn_sizes(context: int) -> tuple[int, int]:
    """Ids that a turn adds, and new ones of a reply, so that all turns fit into the context."""
    share = context // TURNS
    return max(1, share * 2 // 5), max(2, min(32, share * 3 // 5))


def _turn(
    controller: Controller, history: Mapping[str, list[int]], number: int, worker: WorkerProcess, row: Measurement
) -> None:
    """The turn `number` of all, `TURNS` a conversation; `history` are the ids of each row's conversation."""
    fresh, new_tokens = _turn_sizes(controller.plan.context)
    prompts = controller.prompts_of(row)
    source = list(prompts[number % len(prompts)])
    ids = history[row.entry.name]
    ids += (source * (fresh // len(source) + 1))[:fresh]
    sample = ask_sample(worker, row, ids, new_tokens, reuse=number % TURNS > 0)
    ids += sample["ids"]
    row.extra["turns"][-1].append(sample)


def _turn_figures(conversations: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    complete = [samples for samples in conversations if len(samples) == TURNS]
    if not complete:
        return {}
    last = [samples[-1]["ttft_ms"] for samples in complete]
    all_ms = [sum(map(total_ms, samples)) for samples in complete]
    return {"turns_last_ttft_ms": float(np.median(last)), "turns_ms": float(np.median(all_ms))}


# --- several conversations at once


def _concurrent(controller: Controller) -> None:
    for width in CONCURRENCY:
        with ExitStack() as stack:
            rows = [row for row in controller.rows if row.entry.kind.model.supports_concurrency]
            workers = [stack.enter_context(controller.worker(row)) for row in rows]
            steps: list[Step] = [partial(controller.load, slots=width)]
            steps += [partial(_at_once, controller, width, index) for index in range(ROUNDS + 1)]
            for step in steps:
                for worker, row in zip(workers, rows, strict=True):
                    controller.attempt(worker, row, step)
        controller.pass_over((len(controller.rows) - len(rows)) * (ROUNDS + 2))


def _at_once(controller: Controller, width: int, index: int, worker: WorkerProcess, row: Measurement) -> None:
    """One round; the first one warms up."""
    prompts = controller.prompts_of(row)
    chosen = [prompts[(index * width + number) % len(prompts)] for number in range(width)]
    request = {"op": "concurrent", "prompts": chosen, "new_tokens": controller.plan.new_tokens}
    answer = worker.ask(request | {"end_of_turn_id": row.entry.end_of_turn_id})
    if index:
        _keep(row, "together", width, answer)


def _concurrent_figures(by_width: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for width, rounds in by_width.items():
        rates = [sum(len(sample["ids"]) for sample in answer["samples"]) / answer["ms"] * 1000 for answer in rounds]
        steps = [step for answer in rounds for sample in answer["samples"] for step in sample["token_ms"]]
        figures[f"together_{width}_tokens_per_s"] = float(np.median(rates))
        figures[f"together_{width}_tpot_ms_p99"] = float(np.percentile(steps, 99))
    return figures


# --- sweeps, each a curve without figures


def _prompt_sweep(controller: Controller) -> None:
    with controller.loaded() as workers:
        for index in range(ROUNDS):
            for length in prompt_lengths(controller.plan.context):
                controller.turn(workers, partial(_prompt_of, controller, length, index))


def prompt_lengths(context: int) -> list[int]:
    """16, 32, 64 … up to what leaves room for a reply of two tokens."""
    lengths = [16 << power for power in range(12) if 16 << power <= context - 2]
    return lengths or [max(1, context - 2)]


def _prompt_of(controller: Controller, length: int, index: int, worker: WorkerProcess, row: Measurement) -> None:
    prompts = controller.prompts_of(row)
    ids = [token for number in range(len(prompts)) for token in prompts[(index + number) % len(prompts)]]
    sample = ask_sample(worker, row, (ids * (length // len(ids) + 1))[:length], 2)
    _keep(row, "prompts", length, sample["ttft_ms"])


def _thread_sweep(controller: Controller) -> None:
    for threads in thread_counts():
        with controller.loaded(threads) as workers:
            for index in range(ROUNDS):
                controller.turn(workers, partial(_with_threads, controller, threads, index))


def thread_counts() -> list[int]:
    """1, 2, 4 … up to the cores."""
    return sorted({*(1 << power for power in range(10) if 1 << power <= cores()), cores()})


def _with_threads(controller: Controller, threads: int, index: int, worker: WorkerProcess, row: Measurement) -> None:
    prompts = controller.prompts_of(row)
    sample = ask_sample(worker, row, prompts[index % len(prompts)], controller.plan.new_tokens)
    _keep(row, "threads", threads, sample)


def _keep(row: Measurement, scenario: str, at: int, raw: Any) -> None:
    """Add a raw sample to those of a row at one point of what is varied."""
    row.extra.setdefault(scenario, {}).setdefault(str(at), []).append(raw)


SCENARIOS = {
    "cold-start": Scenario(lambda plan: STARTS, _cold_start, _cold_figures),
    "replies": Scenario(lambda plan: 1 + len(plan.texts), _replies, _reply_figures),
    "turns": Scenario(lambda plan: 1 + ROUNDS * TURNS, _turns, _turn_figures),
    "together": Scenario(lambda plan: len(CONCURRENCY) * (ROUNDS + 2), _concurrent, _concurrent_figures),
    "prompts": Scenario(lambda plan: 1 + ROUNDS * len(prompt_lengths(plan.context)), _prompt_sweep),
    "threads": Scenario(lambda plan: len(thread_counts()) * (1 + ROUNDS), _thread_sweep),
}
