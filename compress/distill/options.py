"""What healing is asked for."""

import math
from dataclasses import dataclass, replace
from typing import Any

from chitchat.errors import BadInput

LOSSES = ("kl", "ce")


@dataclass(frozen=True)
class HealOptions:
    """How to heal; `BadInput` names the option of a value that cannot be used.

    Exactly one of `epochs` (passes over the training split), `minutes` and `steps` (optimizer steps) is the budget.
    `loss_kind` is "kl" (forward KL to the teacher) or "ce", the control: the next token of the corpus alone, without a
    teacher, chosen by its own held-out loss. `label_share` is that of the corpus's cross-entropy beside the KL, 0 to
    below 1, and 0 with "ce", which is nothing else. `own_replies` is the share of the budget, at its end, that is spent
    on the student's own replies; 0 for none. `teacher_samples` says whether conversations that the teacher wrote are
    mixed in; "auto" does so when the corpus is small for the budget. Both are the teacher's teaching, so "ce" has
    neither.
    `dropout` is the student's while it heals: none by default, since a pruned model has no capacity to spare and the
    teacher's whole distribution regularizes; None takes the checkpoint's own.
    `context` is the window length (None: the shorter context of the two models), `loss` counts "all" turns or
    "replies". `batch_size` counts windows of one optimizer step over all processes: few, since a
    teacher's whole distribution is a signal with little noise. `learning_rate` None:
    `default_rate`. `patience` counts evaluations without a better loss (None: never stop early), `eval_tokens` the
    held-out tokens of one evaluation (None: as many as the budget allows).
    """

    epochs: float | None = None
    minutes: float | None = None
    steps: int | None = None
    loss_kind: str = "kl"
    label_share: float = 0.0
    own_replies: float = 0.1
    teacher_samples: str | bool = "auto"
    dropout: float | None = 0.0
    context: int | None = None
    loss: str = "all"
    batch_size: int = 4
    grad_accumulation: int = 1
    learning_rate: float | None = None
    patience: int | None = 4
    seed: int = 0
    eval_tokens: int | None = None

    def __post_init__(self) -> None:
        budget = [name for name in ("epochs", "minutes", "steps") if getattr(self, name) is not None]
        if len(budget) != 1:
            given = " and ".join(f"--heal-{name}" for name in budget) + " are given" if budget else "none is given"
            raise BadInput(f"--heal-epochs, --heal-minutes, --heal-steps: {given}; give one of them")
        value = getattr(self, budget[0])
        _require(0 < value < math.inf, f"heal-{budget[0]}", value, "give a number above 0")
        _require(self.loss_kind in LOSSES, "heal-loss", self.loss_kind, f"give {' or '.join(LOSSES)}")
        _require(0 <= self.own_replies < 1, "own-replies", self.own_replies, "a share of the budget, 0 to below 1")
        _require(0 <= self.label_share < 1, "heal-labels", self.label_share, "a share of the loss, 0 to below 1")
        mixed = self.loss_kind == "kl" or not self.label_share
        _require(mixed, "heal-labels", self.label_share, "goes with --heal-loss kl; ce is nothing but labels")
        samples = self.teacher_samples in ("auto", True, False)
        _require(samples, "teacher-samples", self.teacher_samples, "give auto, true or false")
        dropout = self.dropout is None or 0 <= self.dropout < 1
        _require(dropout, "heal-dropout", self.dropout, "give 0 or more and below 1")
        _require(self.loss in ("all", "replies"), "loss", self.loss, "give all or replies")
        for name in ("context", "batch_size", "grad_accumulation", "patience", "eval_tokens"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "give a whole number from 1 up")
        rate = self.learning_rate
        _require(rate is None or 0 < rate < math.inf, "learning_rate", rate, "give a number above 0")

    def part(self, share: float) -> "HealOptions":
        """The same healing with a share of its budget."""
        if self.steps is not None:
            return replace(self, steps=max(1, round(share * self.steps)))
        name = "epochs" if self.minutes is None else "minutes"
        return replace(self, **{name: share * getattr(self, name)})


def _require(good: bool, name: str, value: Any, remedy: str) -> None:
    if not good:
        raise BadInput(f"--{name.replace('_', '-')} {value}: {remedy}")
