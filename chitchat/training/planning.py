"""How many steps fit into the minutes, and when to evaluate and save: planned once, before the first step.

A few steps are timed on a throw-away copy. By epochs or steps, nothing depends on the clock from then on; by minutes,
the plan holds for as long as the machine is as fast as it was (`chitchat.training.pacer`).
"""

import copy
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from chitchat.training.batches import GlobalBatches
from chitchat.training.objective import Objective, Trainable
from chitchat.training.pacer import AIM
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.workfolder import TrainingPlan

EVALUATION_SHARE = 0.08  # of the time goes to evaluations, at most
SECONDS_BETWEEN_SAVES = 45.0
SECONDS_BETWEEN_EVALUATIONS = 40.0
STEPS_BETWEEN_EVALUATIONS = 100  # where the budget is a number of steps
EVALUATIONS = (3, 40)  # fewest and most of a run
EVALUATION_TOKENS = (1_000, 50_000)  # fewest and most validation tokens of one evaluation
_DISK_BYTES_PER_SECOND = 200e6  # a slow disk; saving may take a twentieth of the time
_PROBE_TOKENS = 500
_LOGS_PER_EVALUATION = 8

LoadBatch = Callable[[int], dict[str, torch.Tensor]]


def make_plan(
    key: Mapping[str, Any],
    model: Trainable,
    objective: Objective,
    batches: GlobalBatches,
    step_seconds: float,
    stopwatch: Stopwatch,
    *,
    epochs: float | None,
    steps: int | None,
    begins: float,
    ends: float | None,
    closing_seconds: float,
    eval_tokens: int | None,
) -> TrainingPlan:
    """The plan of a run that began at `begins` and has `epochs`, `steps`, or until `ends`, seconds on the stopwatch.

    `closing_seconds` come after the last step. By epochs or steps, nothing that the weights depend on is taken from the
    clock, so two machines plan the same run.
    """
    token_seconds, save_seconds, before = 0.0, _state_bytes(model) / _DISK_BYTES_PER_SECOND, None
    if steps is not None:
        total = steps
        evaluations = _clamp(steps / STEPS_BETWEEN_EVALUATIONS, EVALUATIONS)
        eval_tokens = eval_tokens or EVALUATION_TOKENS[1]
    elif epochs is not None:
        total = math.ceil(epochs * len(batches.lengths) / batches.batch_size)
        evaluations = _clamp(2 * epochs, EVALUATIONS)
        eval_tokens = eval_tokens or EVALUATION_TOKENS[1]
    else:
        assert ends is not None
        if eval_tokens is None:
            token_seconds = _time_evaluation(objective, model, stopwatch)
        else:
            started = stopwatch.seconds
            before = objective.evaluate(model, eval_tokens)
            token_seconds = max((stopwatch.seconds - started) / eval_tokens, 1e-9)
        left = max(0.0, begins + AIM * (ends - begins) - stopwatch.seconds - closing_seconds)
        evaluations, eval_tokens = _affordable(left, token_seconds, eval_tokens)
        # One evaluation more than the run has where the untrained model is still to be evaluated.
        left -= (evaluations + (before is None)) * (eval_tokens * token_seconds + save_seconds)
        total = max(1, int(left / step_seconds))
    log_every, save_every, eval_every = _intervals(total, evaluations, step_seconds, save_seconds)
    return TrainingPlan(
        key=key,
        total_steps=total,
        log_every=log_every,
        save_every=save_every,
        eval_every=eval_every,
        eval_tokens=eval_tokens,
        step_seconds=step_seconds,
        evaluation_seconds=eval_tokens * token_seconds,
        save_seconds=save_seconds,
        closing_seconds=closing_seconds,
        begins=begins,
        ends=ends,
        before=before or objective.evaluate(model, eval_tokens),
    )


def _affordable(seconds: float, token_seconds: float, tokens: int | None) -> tuple[int, int]:
    """How many evaluations in so many seconds, and of how many tokens; of `tokens` where that is given."""
    evaluations = _clamp(seconds / SECONDS_BETWEEN_EVALUATIONS, EVALUATIONS)
    share = EVALUATION_SHARE * seconds / token_seconds
    if tokens is None:
        return evaluations, _clamp(share / (evaluations + 1), EVALUATION_TOKENS)
    return _clamp(share / tokens - 1, (1, evaluations)), tokens


def time_step(
    model: Trainable,
    batches: GlobalBatches,
    load: LoadBatch,
    make_optimizer: Callable[[Trainable], torch.optim.Optimizer],
    processes: int,
    accumulation: int,
    max_seconds: float,
    clock: Callable[[], float],
    broadcast: Callable[[bool], bool],
) -> float:
    """Seconds of an average optimizer step, timed on a copy of `model` with real batches.

    `load(step)` gives this process's share of a step as one batch. The time per padded id (the median or the mean,
    whichever is longer, of 3 to 10 steps, after 2 to warm up, until `max_seconds`) is multiplied by the mean padded ids
    of a step; `broadcast` gives the first process's answer to all. On a machine that others use too, the mean knows of
    their bursts and the median does not.
    """
    trial = Trainable.around(copy.deepcopy(model.plain()), model.objective).train()
    optimizer = make_optimizer(trial)
    parts = processes * accumulation
    seconds_per_token: list[float] = []
    begun = clock()
    for step in range(12):
        if broadcast(step >= 5 and clock() - begun > max_seconds):  # all leave, or one waits for the others
            break
        started = clock()
        _trial_step(trial, optimizer, load(step), accumulation, processes)
        if step >= 2:
            seconds_per_token.append((clock() - started) / batches.padded_tokens(step, parts))
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


def _time_evaluation(objective: Objective, model: Trainable, stopwatch: Stopwatch) -> float:
    """Seconds per validation token; the first call warms up."""
    objective.evaluate(model, _PROBE_TOKENS)
    started = stopwatch.seconds
    objective.evaluate(model, _PROBE_TOKENS)
    return max((stopwatch.seconds - started) / _PROBE_TOKENS, 1e-9)


def _intervals(total: int, evaluations: int, step_seconds: float, save_seconds: float) -> tuple[int, int, int]:
    """`(log_every, save_every, eval_every)`, each a multiple of the one before.

    Saving more or less often changes no weights, so it alone may depend on the clock.
    """
    log_every = max(1, math.ceil(total / evaluations / _LOGS_PER_EVALUATION))
    eval_every = log_every * math.ceil(total / evaluations / log_every)  # the last one falls on the last step or later
    seconds = max(SECONDS_BETWEEN_SAVES, 20 * save_seconds)
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
