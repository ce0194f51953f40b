"""What a training is asked for, and what it did: the same for fine-tuning and healing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from chitchat.errors import BadInput
from chitchat.options import SEED, TOKENIZER, Options, option, require

# The demo's model, some 3 M parameters with a vocabulary of 4,096.
SCRATCH_SHAPE = {"layers": 5, "width": 192, "heads": 6, "context": 128}

_MODEL, _LENGTH, _STEPS = "Model", "Length", "Steps"
ScheduleKind = Literal["wsd", "linear", "cosine", "constant"]
WARMUP_RATIO, MAX_GRAD_NORM, ADAM_EPSILON = 0.05, 1.0, 1e-8


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """What to train and for how long; `BadInput` names the command-line option of a value that cannot be used.

    `init` is a checkpoint folder or hub id: it brings its shape and its tokenizer, unless `tokenizer` names that of a
    checkpoint whose vocabulary lies elsewhere; one without any takes the data set's. Without `init`, `layers`, `width`,
    `heads`, `ffn` (default 4 times the width) and `context` describe a new model. `context` is the window length
    (default: the model's). `batch_size` counts windows per optimizer step over all processes and accumulation steps.
    Small batches learn most from few tokens (3 M parameters, 216,000 tokens: validation loss 5.33 with 8 windows, 5.76
    with 16); with hours or a GPU give more. None for `learning_rate` and `dropout` takes what suits: `scratch_rate`, or
    `FINE_TUNING_RATE` with `init`; no dropout from scratch, the checkpoint's own with `init`; None for `weight_decay`
    takes `SCRATCH_DECAY` or `FINE_TUNING_DECAY`. `patience` counts evaluations; when it is spent the decay begins (0 or
    None: only at its time). `schedule` and `warmup_ratio`: see `chitchat.training.rate`.
    """

    init: str | None = option(
        None,
        "Fine-tune this checkpoint or hub id (default: from scratch).",
        group=_MODEL,
        takes=("checkpoint",),
    )
    tokenizer: str | None = option(None, **TOKENIZER, group=_MODEL)
    layers: int | None = option(None, "Layers, from scratch (default: 5).", group=_MODEL, unit="layers", ge=1)
    width: int | None = option(
        None, "Width (n_embd), from scratch (default: 192).", group=_MODEL, unit="channels", ge=1
    )
    heads: int | None = option(None, "Attention heads, from scratch (default: 6).", group=_MODEL, unit="heads", ge=1)
    ffn: int | None = option(
        None, "FFN width (n_inner), from scratch (default: 4 x width).", group=_MODEL, unit="neurons", ge=1
    )
    context: int | None = option(
        None, "Tokens the model sees at most (default: 128, or the model's).", group=_MODEL, unit="tokens", ge=1
    )
    dropout: float | None = option(
        None,
        "Dropout of embeddings, attention and residuals (default: none, or the model's own with --init).",
        group=_MODEL,
        unit="share",
        ge=0,
        lt=1,
    )
    epochs: float | None = option(None, "Passes over the training conversations.", group=_LENGTH, unit="passes", gt=0)
    max_minutes: float | None = option(
        None,
        "Train for these minutes, loading and saving included, whatever the machine does; loading can exceed one.",
        group=_LENGTH,
        unit="minutes",
        gt=0,
    )
    patience: int | None = option(
        4,
        "Begin the end after this many evaluations without a better validation loss; 0: never.",
        group=_LENGTH,
        unit="evaluations",
        ge=0,
    )
    batch_size: int = option(8, "Windows per optimizer step, over all processes.", group=_STEPS, unit="windows", ge=1)
    grad_accumulation: int = option(1, "Parts that a step's batch is computed in.", group=_STEPS, unit="parts", ge=1)
    learning_rate: float | None = option(
        None, "Peak learning rate (default: by the width, or 1e-4 with --init).", group=_STEPS, unit="per step", gt=0
    )
    schedule: ScheduleKind = option(
        "wsd",
        "Learning rate after the warm-up: wsd stays at the peak and decays over the last 35 % of the steps; linear and "
        "cosine decay all the way to 0; constant does not.",
        group=_STEPS,
    )
    warmup_ratio: float = option(
        WARMUP_RATIO,
        "Warm-up, at least 100 steps or a quarter of a shorter run; 0: none.",
        group=_STEPS,
        unit="share of the steps",
        ge=0,
        lt=1,
    )
    max_grad_norm: float = option(
        MAX_GRAD_NORM, "Clip gradients to this norm; 0: do not.", group=_STEPS, unit="L2 norm of all gradients", ge=0
    )
    weight_decay: float | None = option(
        None,
        "AdamW's weight decay, decoupled (default: 0.1 from scratch, 0.01 with --init).",
        group=_STEPS,
        unit="per learning rate",
        ge=0,
    )
    adam_epsilon: float = option(
        ADAM_EPSILON, "AdamW's epsilon, in the denominator of a step.", group=_STEPS, unit="gradient", gt=0
    )
    loss: Literal["all", "replies"] = option("all", "Turns that count in the loss.", group=_STEPS)
    seed: int = option(0, **SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epochs is None) == (self.max_minutes is None):
            given = "both are given" if self.epochs else "neither is given"
            raise BadInput(f"--epochs, --max-minutes: {given}; give one of them")
        if self.init is not None:
            for name in ("layers", "width", "heads", "ffn"):
                value = getattr(self, name)
                require(value is None, name, value, f"--init {self.init} brings its own shape; leave one of them out")
        else:
            width, heads = self.width or SCRATCH_SHAPE["width"], self.heads or SCRATCH_SHAPE["heads"]
            require(
                width % heads == 0, "width", width, f"is not a multiple of the {heads} heads; change --width or --heads"
            )


@dataclass(frozen=True)
class FitOptions:
    """How to train. `batch_size` counts the windows of one optimizer step over all processes and accumulation steps.

    Exactly one of `epochs`, `max_minutes` and `steps` is set. `warmup_ratio` is a share of the steps (see
    `chitchat.training.rate.warmup_steps`), `schedule` what follows the warm-up; `max_grad_norm` 0 clips nothing.
    `patience` is a number of evaluations without a better loss, after which the decay begins early (None: it never
    does), `eval_tokens` how many validation tokens an evaluation reads (None: as many as the budget allows).
    `labels_per_step` is what the summed loss of a step is divided by, so that every label of the run weighs the same
    (None: by the labels of the step, so every step does).
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
    schedule: ScheduleKind = "wsd"
    warmup_ratio: float = WARMUP_RATIO
    max_grad_norm: float = MAX_GRAD_NORM
    weight_decay: float = 0.01
    adam_epsilon: float = ADAM_EPSILON
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
