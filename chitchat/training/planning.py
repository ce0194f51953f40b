"""How many steps fit into the minutes, and when to evaluate and save: decided once, before the first step.

A time limit that is checked while training would end every run somewhere else. So a few steps are timed on a
throw-away copy, the number of steps is fixed, and from then on nothing depends on the clock.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from chitchat.training.batches import GlobalBatches
from chitchat.training.objective import Objective, Trainable
from chitchat.training.workfolder import Plan

USED_SHARE = 0.88  # of the minutes; the rest is for loading, writing and a machine that gets slower
EVALUATION_SHARE = 0.08  # of the time goes to evaluations, at most
SECONDS_BETWEEN_SAVES = 45.0
SECONDS_BETWEEN_EVALUATIONS = 40.0
STEPS_BETWEEN_EVALUATIONS = 100  # where the budget is a number of steps
EVALUATIONS = (3, 40)  # fewest and most of a run
EVALUATION_TOKENS = (2_000, 50_000)  # fewest and most validation tokens of one evaluation
_DISK_BYTES_PER_SECOND = 200e6  # a slow disk; saving may take a twentieth of the time
_PROBE_TOKENS = 2_000
_LOGS_PER_EVALUATION = 8

LoadBatch = Callable[[int], dict[str, torch.Tensor]]


def make_plan(
    key: Mapping[str, Any],
    model: Trainable,
    objective: Objective,
    batches: GlobalBatches,
    step_seconds: float,
    *,
    epochs: float | None,
    max_minutes: float | None,
    steps: int | None,
    eval_tokens: int | None,
    started: float,
) -> Plan:
    """The plan of a run; `started` is the `time.monotonic()` from which the minutes count.

    By epochs or steps, nothing that the weights depend on is taken from the clock, so two machines plan the same run.
    """
    if steps is not None:
        total = steps
        evaluations = _clamp(steps / STEPS_BETWEEN_EVALUATIONS, EVALUATIONS)
        eval_tokens = eval_tokens or EVALUATION_TOKENS[1]
    elif epochs is not None:
        total = math.ceil(epochs * len(batches.lengths) / batches.batch_size)
        evaluations = _clamp(2 * epochs, EVALUATIONS)
        eval_tokens = eval_tokens or EVALUATION_TOKENS[1]
    else:
        assert max_minutes is not None
        token_seconds = _time_evaluation(objective, model)
        left = max(0.0, USED_SHARE * 60 * max_minutes - (time.monotonic() - started))
        evaluations = _clamp(left / SECONDS_BETWEEN_EVALUATIONS, EVALUATIONS)
        affordable = EVALUATION_SHARE * left / (evaluations + 1) / token_seconds
        eval_tokens = eval_tokens or _clamp(affordable, EVALUATION_TOKENS)
        # One evaluation more than the run has: the untrained model is evaluated too.
        left -= (evaluations + 1) * eval_tokens * token_seconds
        total = max(1, int(left / step_seconds))
    log_every, save_every, eval_every = _intervals(total, evaluations, step_seconds, _state_bytes(model))
    return Plan(
        key=key,
        total_steps=total,
        log_every=log_every,
        save_every=save_every,
        eval_every=eval_every,
        eval_tokens=eval_tokens,
        step_seconds=step_seconds,
        before=objective.evaluate(model, eval_tokens),
    )


def time_step(
    model: Trainable,
    batches: GlobalBatches,
    load: LoadBatch,
    make_optimizer: Callable[[Trainable], torch.optim.Optimizer],
    processes: int,
    accumulation: int,
    max_seconds: float,
) -> float:
    """Seconds of an average optimizer step, timed on a copy of `model` with real batches.

    `load(step)` gives this process's share of a step as one batch. The time per padded id (the median or the mean,
    whichever is longer, of 3 to 10 steps, after 2 to warm up, until `max_seconds`) is multiplied by the mean padded
    ids of a step. On a machine that others use too, the mean knows of their bursts and the median does not.
    """
    trial = Trainable.around(copy.deepcopy(_plain(model)), model.objective).train()
    optimizer = make_optimizer(trial)
    parts = processes * accumulation
    seconds_per_token: list[float] = []
    begun = time.monotonic()
    for step in range(12):
        if step >= 5 and time.monotonic() - begun > max_seconds:
            break
        started = time.perf_counter()
        _trial_step(trial, optimizer, load(step), accumulation, processes)
        if step >= 2:
            seconds_per_token.append((time.perf_counter() - started) / batches.padded_tokens(step, parts))
    mean_tokens = statistics.fmean(batches.padded_tokens(step, parts) for step in range(64))
    return max(statistics.median(seconds_per_token), statistics.fmean(seconds_per_token)) * mean_tokens


def _trial_step(
    trial: Trainable,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    accumulation: int,
    processes: int,
) -> None:
    """What the Trainer does in one optimizer step, the exchange of gradients included."""
    for input_ids, labels in zip(
        batch["input_ids"].chunk(accumulation), batch["labels"].chunk(accumulation), strict=True
    ):
        (trial(input_ids=input_ids, labels=labels) / batch["labels"].numel()).backward()
    if processes > 1:
        for parameter in trial.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
    torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _plain(model: Trainable) -> torch.nn.Module:
    """The GPT-2 that the view shows, without its objective (a teacher need not be copied)."""
    from transformers import GPT2LMHeadModel

    with torch.device("meta"):
        plain = GPT2LMHeadModel(model.config)
    plain.transformer, plain.lm_head = model.transformer, model.lm_head
    return plain


def _time_evaluation(objective: Objective, model: Trainable) -> float:
    """Seconds per validation token; the first call warms up."""
    objective.evaluate(model, _PROBE_TOKENS // 4)
    started = time.perf_counter()
    objective.evaluate(model, _PROBE_TOKENS)
    return max((time.perf_counter() - started) / _PROBE_TOKENS, 1e-9)


def _intervals(total: int, evaluations: int, step_seconds: float, state_bytes: int) -> tuple[int, int, int]:
    """`(log_every, save_every, eval_every)`, each a multiple of the one before.

    Saving more or less often changes no weights, so it alone may depend on the clock.
    """
    log_every = max(1, math.ceil(total / evaluations / _LOGS_PER_EVALUATION))
    eval_every = log_every * math.ceil(total / evaluations / log_every)  # the last one falls on the last step or later
    seconds = max(SECONDS_BETWEEN_SAVES, 20 * state_bytes / _DISK_BYTES_PER_SECOND)
    saves = eval_every * step_seconds / seconds
    logs = eval_every // log_every
    divisors = [count for count in range(1, logs + 1) if logs % count == 0]
    per_evaluation = max((count for count in divisors if count <= max(1.0, saves)), default=1)
    return log_every, log_every * (logs // per_evaluation), eval_every


def _state_bytes(model: Trainable) -> int:
    """Bytes of a checkpoint: the weights and two moments of each."""
    return 3 * sum(parameter.numel() * 4 for parameter in model.parameters())


def _clamp(value: float, bounds: tuple[int, int]) -> int:
    return int(min(max(value, bounds[0]), bounds[1]))
