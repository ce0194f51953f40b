"""Healing: a pruned student learns the next-token distribution of its teacher.

What is minimised stands in `compress.distill.objective`, how a run is planned, killed and resumed in
`chitchat.training.trainer`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from chitchat.data.dataset import ChatData
from chitchat.errors import BadInput
from chitchat.training.objective import Objective
from chitchat.training.train import scratch_rate
from chitchat.training.trainer import FitOptions, fit, weights_sha256
from chitchat.training.workfolder import WorkFolder
from compress.distill.objective import Distillation, next_token
from compress.distill.options import HealOptions

BIG_CUT = 0.3  # from this share of removed parameters on, healing runs at the rate of training
SMALL_CUT_RATE = 0.2  # below it, at this share of that rate


@dataclass(frozen=True)
class HealResult:
    """Held-out figures before and after: `kl` in nats per token, `perplexity` of the student; and what the run did."""

    before_kl: float
    after_kl: float
    before_perplexity: float
    after_perplexity: float
    teacher_perplexity: float
    steps: int
    best_step: int
    tokens: int
    minutes: float
    stopped_early: bool
    log: list[dict[str, float]]


def heal(
    student: GPT2LMHeadModel,
    teacher: GPT2LMHeadModel,
    data: ChatData,
    work: Path,
    options: HealOptions,
    *,
    resume: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> HealResult:
    """Train `student` in place towards `teacher`; afterwards it holds the weights with the best held-out loss.

    `work` is the work folder of the run: with `resume` it goes on where the folder says, and the caller removes it once
    the student is stored (`WorkFolder(work).remove()`). `inputs` are more values that a resumed run must share. Raises
    `BadInput` for models that do not fit together.
    """
    context = _check(student, teacher, options.context)
    replies = options.loss == "replies"
    held_out = data.windows("validation", context, replies_only=replies)
    windows = data.windows("train", context, replies_only=replies)
    dropped = student.config.n_layer < teacher.config.n_layer and student.config.n_embd == teacher.config.n_embd
    ce = options.loss_kind == "ce"
    objective: Objective = next_token(teacher, held_out) if ce else Distillation(teacher, held_out, dropped)
    weights = {"student": weights_sha256(student), "teacher": weights_sha256(teacher)}
    key = {"data": data.identity, **weights, "context": context, "loss": options.loss, "kind": options.loss_kind,
           "dropout": options.dropout, **(inputs or {})}  # fmt: skip
    fit_options = FitOptions(
        learning_rate=options.learning_rate or default_rate(student, teacher),
        batch_size=options.batch_size,
        grad_accumulation=options.grad_accumulation,
        epochs=options.epochs,
        max_minutes=options.minutes,
        steps=options.steps,
        patience=options.patience,
        eval_tokens=options.eval_tokens,
        seed=options.seed,
    )
    with dropout(student, options.dropout):
        result = fit(student, windows, objective, fit_options, WorkFolder(work), key, resume=resume)
    teacher.to("cpu")
    return HealResult(
        before_kl=result.before["kl"],
        after_kl=result.after["kl"],
        before_perplexity=result.before["perplexity"],
        after_perplexity=result.after["perplexity"],
        teacher_perplexity=result.after["teacher_perplexity"],
        steps=result.steps,
        best_step=result.best_step,
        tokens=result.tokens,
        minutes=result.minutes,
        stopped_early=result.stopped_early,
        log=result.log,
    )


def default_rate(student: GPT2LMHeadModel, teacher: GPT2LMHeadModel) -> float:
    """The peak rate: that of training at the student's width when much was cut, a fifth of it otherwise."""
    removed = 1 - student.num_parameters() / teacher.num_parameters()
    peak = scratch_rate(student.config.n_embd)
    return peak if removed >= BIG_CUT else SMALL_CUT_RATE * peak


@contextmanager
def dropout(model: GPT2LMHeadModel, share: float | None) -> Iterator[None]:
    """Within, `model` drops `share` of its activations in training; its configuration and the rest after stay."""
    layers = [] if share is None else [layer for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    own = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = share
        yield
    finally:
        for layer, p in zip(layers, own, strict=True):
            layer.p = p


def _check(student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, context: int | None) -> int:
    """The window length. Raises `BadInput` where the models do not fit together."""
    if student.config.vocab_size != teacher.config.vocab_size:
        raise BadInput(
            f"--teacher: has a vocabulary of {teacher.config.vocab_size}, the student one of "
            f"{student.config.vocab_size}; distillation needs the same one"
        )
    longest = min(student.config.n_positions, teacher.config.n_positions)
    if context is not None and context > longest:
        raise BadInput(
            f"--context {context}: teacher and student have {longest} positions in common; give at most {longest}"
        )
    return context or longest
