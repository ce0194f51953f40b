"""What a training is asked for, and what it did: the same for fine-tuning and healing."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FitOptions:
    """How to train. `batch_size` counts the windows of one optimizer step over all processes and accumulation steps.

    Exactly one of `epochs`, `max_minutes` and `steps` is set. `warmup` is a share of the steps (see
    `chitchat.training.rate.warmup_steps`), `patience` a number of evaluations without a better loss, after which the
    decay begins early (None: it never does), `eval_tokens` how many validation tokens an evaluation reads (None: as
    many as the budget allows). `labels_per_step` is what the summed loss of a step is divided by, so that every label
    of the run weighs the same (None: by the labels of the step, so every step does).
    """

    learning_rate: float
    batch_size: int = 8
    grad_accumulation: int = 1
    epochs: float | None = None
    max_minutes: float | None = None
    steps: int | None = None
    patience: int | None = None
    eval_tokens: int | None = None
    labels_per_step: float | None = None
    warmup: float = 0.05
    clip: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class FitResult:
    """What a run did. `before` and `after` are the objective's figures of the first and of the best model.

    `tokens` are ids read, `eval_tokens` what an evaluation reads at most, `eval_seconds` what the last ones took;
    `stopped_early` tells that patience was spent. `log` holds a dict per noted step (`loss`) and per evaluation
    (`eval_...`), no clock in it.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    steps: int
    best_step: int
    tokens: int
    minutes: float
    stopped_early: bool
    eval_tokens: int
    eval_seconds: float
    log: list[dict[str, float]]
