"""The plan of a run, made before the first step: how many steps fit into the minutes, when to evaluate and to save.

A few steps are timed on a copy of the model. By epochs or steps, nothing depends on the clock afterwards; by minutes,
the plan is corrected if the speed of the machine changes (`chitchat.training.pacer`).
"""

import copy
import math
import statistics

import torch

from chitchat.training.batches import share_out, training_batch
from chitchat.training.objective import LossModel
from chitchat.training.pacer import AIM
from chitchat.training.run import FitRun
from chitchat.training.workfolder import TrainingPlan

EVALUATION_SHARE = 0.08  # of the time goes to evaluations, at most
SECONDS_BETWEEN_SAVES = 45.0
SECONDS_BETWEEN_EVALUATIONS = 40.0
STEPS_BETWEEN_EVALUATIONS = 100  # where the budget is a number of steps
EVALUATIONS = (3, 40)  # fewest and most of a run
EVALUATION_TOKENS = (1_000, 50_000)  # fewest and most validation tokens of one evaluation
_DISK_BYTES_PER_SECOND = 200e6  # of a slow disk; saving may take a twentieth of the time
_PROBE_TOKENS = 500
_LOGS_PER_EVALUATION = 8

BETAS = (0.9, 0.95)  # of AdamW
_TIMED_STEPS, _WARM_UP_STEPS, _MIN_STEPS = 12, 2, 5
_TIMING_SECONDS, _TIMING_SHARE = 3.0, 0.03  # at most, after `_MIN_STEPS`; of the minutes, where there are any
_FEW_STEPS, _MOST_SHARE = 2, 0.1  # where steps are that slow: of the time that is left, after which no more are timed


def make_plan(run: FitRun, model: LossModel, step_seconds: float, begins: float) -> TrainingPlan:
    """The plan of a run that began at `begins`, seconds on its stopwatch; `model` is the view that is trained.

    By epochs or steps, nothing that affects the weights depends on the clock, so two machines make the same plan.
    """
    objective, batches, stopwatch, ends = run.objective, run.batches, run.stopwatch, run.ends
    epochs, steps, eval_tokens = run.options.epochs, run.options.steps, run.options.eval_tokens
    state_bytes = 3 * sum(parameter.numel() * 4 for parameter in model.parameters())  # weights and two moments
    token_seconds, save_seconds, before = 0.0, state_bytes / _DISK_BYTES_PER_SECOND, None
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
            objective.evaluate(model, _PROBE_TOKENS)  # warms up
        started = stopwatch.seconds
        figures = objective.evaluate(model, eval_tokens or _PROBE_TOKENS)
        token_seconds = max((stopwatch.seconds - started) / (eval_tokens or _PROBE_TOKENS), 1e-9)
        before = figures if eval_tokens is not None else None
        left = max(0.0, begins + AIM * (ends - begins) - stopwatch.seconds - run.closing_seconds)
        evaluations, eval_tokens = _affordable(left, token_seconds, eval_tokens)
        # One more evaluation if the untrained model is still to be evaluated.
        left -= (evaluations + (before is None)) * (eval_tokens * token_seconds + save_seconds)
        total = max(1, int(left / step_seconds))
    log_every, save_every, eval_every = _intervals(total, evaluations, step_seconds, save_seconds)
    return TrainingPlan(
        total_steps=total,
        log_every=log_every,
        save_every=save_every,
        eval_every=eval_every,
        eval_tokens=eval_tokens,
        step_seconds=step_seconds,
        evaluation_seconds=eval_tokens * token_seconds,
        save_seconds=save_seconds,
        closing_seconds=run.closing_seconds,
        begins=begins,
        ends=ends,
        before=before or objective.evaluate(model, eval_tokens),
    )


def _affordable(seconds: float, token_seconds: float, tokens: int | None) -> tuple[int, int]:
    """`(evaluations, tokens of each)` that `seconds` suffice for; the latter is `tokens` if given."""
    evaluations = _clamp(seconds / SECONDS_BETWEEN_EVALUATIONS, EVALUATIONS)
    share = EVALUATION_SHARE * seconds / token_seconds
    if tokens is None:
        return evaluations, _clamp(share / (evaluations + 1), EVALUATION_TOKENS)
    return _clamp(share / tokens - 1, (1, evaluations)), tokens


def step_seconds(run: FitRun) -> float:
    """Seconds of an average optimizer step, timed with real batches on a copy of the model, in all processes at once.

    The time per padded id (the longer of median and mean of 3 to 10 steps after 2 to warm up; the mean includes bursts
    of other programs) is multiplied by the mean padded ids of a step. No more steps are timed once two or more have
    taken a tenth of the time that is left; the last one counts where none was to count yet.
    """
    options, distributed, clock = run.options, run.distributed, run.stopwatch.clock
    trial = LossModel.wrap(copy.deepcopy(run.model), run.objective).to(distributed.device).train()
    optimizer = torch.optim.AdamW(trial.parameters(), lr=options.learning_rate, betas=BETAS, fused=True)
    limit = _TIMING_SECONDS if options.max_minutes is None else _TIMING_SHARE * 60 * options.max_minutes
    most = _MOST_SHARE * _seconds_left(run)
    seconds_per_token: list[float] = []
    begun = clock()
    for step in range(_TIMED_STEPS):
        used = clock() - begun
        late = (step >= _MIN_STEPS and used > limit) or (step >= _FEW_STEPS and used > most)
        if distributed.broadcast(late):  # in all processes, or one would wait for the others
            break
        started = clock()
        _trial_step(run, trial, optimizer, step)
        seconds_per_token.append((clock() - started) / run.padded_tokens(step))
    mean_tokens = statistics.fmean(run.padded_tokens(step) for step in range(64))
    timed = seconds_per_token[_WARM_UP_STEPS:] or seconds_per_token[-1:]
    return max(statistics.median(timed), statistics.fmean(timed)) * mean_tokens


def _seconds_left(run: FitRun) -> float:
    """Of a run by minutes; infinite for one by epochs or steps."""
    if run.ends is not None:
        return run.ends - run.stopwatch.seconds
    return math.inf if run.options.max_minutes is None else 60 * run.options.max_minutes


def _trial_step(run: FitRun, trial: LossModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One optimizer step as the Trainer does it in this process, with the exchange of gradients."""
    distributed = run.distributed
    micro_batches = share_out(run.batches[step], run.parts)[distributed.index :: distributed.count]
    for numbers in micro_batches:
        batch = training_batch([run.windows[int(number)] for number in numbers])
        input_ids, labels = (batch[name].to(distributed.device) for name in ("input_ids", "labels"))
        (trial(input_ids=input_ids, labels=labels) / (labels.numel() * len(micro_batches))).backward()
    if distributed.count > 1:
        for parameter in trial.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
    torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _intervals(total: int, evaluations: int, step_seconds: float, save_seconds: float) -> tuple[int, int, int]:
    """`(log_every, save_every, eval_every)`, each a multiple of the one before.

    Only the interval of saving depends on the clock, since it does not affect the weights.
    """
    log_every = max(1, math.ceil(total / evaluations / _LOGS_PER_EVALUATION))
    eval_every = log_every * math.ceil(total / evaluations / log_every)  # the last one falls on the last step or later
    seconds = max(SECONDS_BETWEEN_SAVES, 20 * save_seconds)
    saves = eval_every * step_seconds / seconds
    logs = eval_every // log_every
    divisors = [count for count in range(1, logs + 1) if logs % count == 0]
    per_evaluation = max((count for count in divisors if count <= max(1.0, saves)), default=1)
    return log_every, log_every * (logs // per_evaluation), eval_every


def _clamp(value: float, bounds: tuple[int, int]) -> int:
    return int(min(max(value, bounds[0]), bounds[1]))
