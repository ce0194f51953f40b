"""What healing is asked for."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from chitchat.errors import BadInput
from chitchat.options import Options, option, require

_HEALING = "Healing"


@dataclass(frozen=True, kw_only=True)
class HealingFields(Options):
    """What the user says of healing, in the words of the command line."""

    heal_epochs: float | None = option(
        None,
        "Heal for these passes over the conversations (default: 1, where no minutes are given); 0: not at all.",
        group=_HEALING,
        unit="passes",
        ge=0,
    )
    heal_minutes: float | None = option(
        None,
        "Heal for these minutes, trials included; cutting comes on top; 0: not at all.",
        group=_HEALING,
        unit="minutes",
        ge=0,
    )
    heal_loss: Literal["kl", "ce"] = option("kl", "kl (from the teacher) or ce (from the text alone).", group=_HEALING)
    heal_labels: float = option(
        0.0,
        "Share of the text's own cross-entropy beside the KL.",
        group=_HEALING,
        unit="share of the loss",
        ge=0,
        lt=1,
    )
    own_replies: float = option(
        0.1,
        "Share of the healing that goes to the student's own replies.",
        group=_HEALING,
        unit="share of the budget",
        ge=0,
        lt=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        mixed = self.heal_loss == "kl" or not self.heal_labels
        require(mixed, "heal_labels", self.heal_labels, "goes with --heal-loss kl; ce is nothing but labels")


@dataclass(frozen=True, kw_only=True)
class HealOptions(HealingFields):
    """How to heal; `BadInput` names the option of a value that cannot be used.

    Exactly one of `heal_epochs` (passes over the training split), `heal_minutes` and `heal_steps` (optimizer steps) is
    the budget. `heal_loss` is "kl" (forward KL to the teacher) or "ce", the control: the next token of the corpus
    alone, without a teacher, chosen by its own held-out loss. `heal_labels` is the share of the corpus's cross-entropy
    beside the KL, and 0 with "ce", which is nothing else. `own_replies` is the share of the budget, at its end, that is
    spent on the student's own replies. `teacher_samples` says whether conversations that the teacher wrote are mixed
    in; "auto" does so when the corpus is small for the budget. Both are the teacher's teaching, so "ce" has neither.
    `dropout` is the student's while it heals: none by default, since a pruned model has no capacity to spare and the
    teacher's whole distribution regularizes; None takes the checkpoint's own. `context` is the window length (None: the
    shorter context of the two models), `loss` counts "all" turns or "replies". `batch_size` counts windows of one
    optimizer step over all processes: few, since a teacher's whole distribution is a signal with little noise.
    `learning_rate` None: `default_rate`. `patience` counts evaluations without a better loss (None: never stop early),
    `eval_tokens` the held-out tokens of one evaluation (None: as many as the budget allows).
    """

    heal_steps: int | None = None
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
        super().__post_init__()
        names = ("heal_epochs", "heal_minutes", "heal_steps")
        budget = [name for name in names if getattr(self, name) is not None]
        if len(budget) != 1:
            options = " and ".join("--" + name.replace("_", "-") for name in budget)
            given = f"{options} are given" if budget else "none is given"
            raise BadInput(f"--heal-epochs, --heal-minutes, --heal-steps: {given}; give one of them")
        value = getattr(self, budget[0])
        require(0 < value < math.inf, budget[0], value, "give a number above 0")
        samples = self.teacher_samples in ("auto", True, False)
        require(samples, "teacher_samples", self.teacher_samples, "give auto, true or false")
        dropout = self.dropout is None or 0 <= self.dropout < 1
        require(dropout, "dropout", self.dropout, "give 0 or more and below 1")
        require(self.loss in ("all", "replies"), "loss", self.loss, "give all or replies")
        for name in ("context", "batch_size", "grad_accumulation", "patience", "eval_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "give a whole number from 1 up")
        rate = self.learning_rate
        require(rate is None or 0 < rate < math.inf, "learning_rate", rate, "give a number above 0")

    def part(self, share: float) -> "HealOptions":
        """The same healing with a share of its budget."""
        if self.heal_steps is not None:
            return replace(self, heal_steps=max(1, round(share * self.heal_steps)))
        name = "heal_epochs" if self.heal_minutes is None else "heal_minutes"
        return replace(self, **{name: share * getattr(self, name)})
