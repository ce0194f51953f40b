"""Healing: a pruned student learns the next-token distribution of its teacher.

The loss is the forward KL divergence KL(teacher || student) at temperature 1 over all positions with a label, which
pruning studies find better than mixing in cross-entropy (Minitron, arXiv 2407.14679, tables 15 and 16). Where layers
were dropped and the width was kept, a cosine loss draws the student's hidden states to the teacher's (table 17).
Teacher and student read the same windows; nothing is sampled from the teacher here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from chitchat.data.dataset import ChatData
from chitchat.data.windows import Windows, collate
from chitchat.errors import BadInput, WorkFailed
from chitchat.training.objective import label_positions, last_hidden, sum_by_parts
from chitchat.training.train import scratch_rate
from chitchat.training.trainer import FitOptions, fit, weights_sha256
from chitchat.training.workfolder import WorkFolder

HIDDEN_WEIGHT = 1.0  # of the cosine loss, per position, beside the KL in nats
BIG_CUT = 0.3  # from this share of removed parameters on, healing runs at the rate of training
SMALL_CUT_RATE = 0.2  # below it, at this share of that rate
_TOKENS_AT_ONCE = 2048


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


class Distillation:
    """The objective of healing: see `chitchat.training.objective.Objective`."""

    def __init__(self, teacher: GPT2LMHeadModel, held_out: Windows, layers_dropped: bool) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.held_out = held_out
        self.hidden = layers_dropped

    def loss_sum(self, model: GPT2LMHeadModel, input_ids: Tensor, labels: Tensor) -> Tensor:
        """KL summed over all labels, plus the cosine loss where layers were dropped."""
        self.teacher.to(input_ids.device)
        wanted, _ = label_positions(labels)
        with torch.no_grad():
            of_teacher, middle_of_teacher = self._states(self.teacher, input_ids, wanted)
        of_student, middle_of_student = self._states(model, input_ids, wanted)

        def part(student: Tensor, teacher: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.teacher.lm_head(teacher).float()
            return forward_kl(target, model.lm_head(student).float()).sum()

        loss = sum_by_parts(part, model.config.vocab_size, of_student, of_teacher)
        if middle_of_student is not None and middle_of_teacher is not None:
            cosine = nn.functional.cosine_similarity(middle_of_student.float(), middle_of_teacher.float(), dim=-1)
            loss = loss + HIDDEN_WEIGHT * (1 - cosine).sum()
        return loss

    def evaluate(self, model: GPT2LMHeadModel, max_tokens: int) -> dict[str, float]:
        """`loss` (the held-out KL), `perplexity`, `teacher_perplexity` over whole windows up to `max_tokens` labels."""
        device = model.transformer.wte.weight.device
        self.teacher.to(device)
        training = model.training
        model.eval()
        sums = torch.zeros(4, dtype=torch.float64)  # KL, student's nats, teacher's nats, labels
        try:
            with torch.inference_mode():
                for batch in _batches(self.held_out, max_tokens):
                    sums += self._held_out_sums(model, batch["input_ids"].to(device), batch["labels"].to(device))
        finally:
            model.train(training)
        kl, student, teacher, tokens = sums.tolist()
        if not tokens:
            raise WorkFailed("there is no held-out token to heal against")
        return {
            "loss": kl / tokens,
            "perplexity": math.exp(min(student / tokens, 700.0)),
            "teacher_perplexity": math.exp(min(teacher / tokens, 700.0)),
        }

    def _held_out_sums(self, model: GPT2LMHeadModel, input_ids: Tensor, labels: Tensor) -> Tensor:
        wanted, targets = label_positions(labels)
        states = [last_hidden(one, input_ids)[:, :-1][wanted] for one in (model, self.teacher)]

        def part(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
            ours, theirs = model.lm_head(student).float(), self.teacher.lm_head(teacher).float()
            nats = [nn.functional.cross_entropy(logits, targets, reduction="sum") for logits in (ours, theirs)]
            return torch.stack([forward_kl(theirs, ours).sum(), *nats, nats[0].new_tensor(len(targets))])

        return sum_by_parts(part, model.config.vocab_size, *states, targets).double().cpu()

    def _states(self, model: GPT2LMHeadModel, input_ids: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Final hidden states at the wanted positions, [labels, width]; and those two layers before, if they count."""
        if not self.hidden:
            return last_hidden(model, input_ids)[:, :-1][wanted], None
        states = model.transformer(
            inputs_embeds=model.transformer.wte(input_ids), use_cache=False, output_hidden_states=True
        ).hidden_states
        final, middle = states[-1], states[max(-3, -len(states))]
        return final[:, :-1][wanted], middle[:, :-1][wanted]


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) in nats of each row of float32 logits [rows, vocab]; float32 [rows]."""
    target, log_student = teacher.log_softmax(-1), student.log_softmax(-1)
    return nn.functional.kl_div(log_student, target, reduction="none", log_target=True).sum(-1)


def heal(
    student: GPT2LMHeadModel,
    teacher: GPT2LMHeadModel,
    data: ChatData,
    work: Path,
    *,
    epochs: float | None = None,
    minutes: float | None = None,
    context: int | None = None,
    loss: str = "all",
    batch_size: int = 8,
    grad_accumulation: int = 1,
    learning_rate: float | None = None,
    patience: int | None = 4,
    seed: int = 0,
    resume: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> HealResult:
    """Train `student` in place towards `teacher`; afterwards it holds the weights with the least held-out KL.

    Exactly one of `epochs` and `minutes` is given. `work` is the work folder of the run: with `resume` it goes on
    where the folder says, and the caller removes it once the student is stored (`WorkFolder(work).remove()`).
    `context` is the window length (default: the shorter context of the two). The learning rate defaults to
    `default_rate`. `inputs` are more values that a resumed run must share. Raises `BadInput` for models that do not
    fit together.
    """
    _check(student, teacher, epochs, minutes)
    longest = min(student.config.n_positions, teacher.config.n_positions)
    context = context or longest
    if context > longest:
        raise BadInput(
            f"--context {context}: teacher and student have {longest} positions in common; give at most {longest}"
        )
    replies = loss == "replies"
    held_out = data.windows("validation", context, replies_only=replies)
    dropped = student.config.n_layer < teacher.config.n_layer and student.config.n_embd == teacher.config.n_embd
    options = FitOptions(
        learning_rate=learning_rate or default_rate(student, teacher),
        batch_size=batch_size,
        grad_accumulation=grad_accumulation,
        epochs=epochs,
        max_minutes=minutes,
        patience=patience,
        seed=seed,
    )
    weights = {"student": weights_sha256(student), "teacher": weights_sha256(teacher)}
    key = {"data": data.identity, **weights, "context": context, "loss": loss, **(inputs or {})}
    windows = data.windows("train", context, replies_only=replies)
    result = fit(
        student, windows, Distillation(teacher, held_out, dropped), options, WorkFolder(work), key, resume=resume
    )
    teacher.to("cpu")
    return HealResult(
        before_kl=result.before["loss"],
        after_kl=result.after["loss"],
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


def _check(student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, epochs: float | None, minutes: float | None) -> None:
    if (epochs is None) == (minutes is None):
        given = "both are given" if epochs is not None else "neither is given"
        raise BadInput(f"--heal-epochs, --heal-minutes: {given}; give one of them")
    for name, value in (("epochs", epochs), ("minutes", minutes)):
        if value is not None and not 0 < value < math.inf:
            raise BadInput(f"--heal-{name} {value}: give a number above 0")
    if student.config.vocab_size != teacher.config.vocab_size:
        raise BadInput(
            f"--teacher: has a vocabulary of {teacher.config.vocab_size}, the student one of "
            f"{student.config.vocab_size}; distillation needs the same one"
        )


def _batches(windows: Windows, max_tokens: int) -> list[dict[str, Tensor]]:
    """Whole windows in order until `max_tokens` labels are reached, in batches of like length."""
    rows: list[dict[str, Any]] = []
    tokens = 0
    for number in range(len(windows)):
        if tokens >= max_tokens:
            break
        rows.append(windows[number])
        tokens += sum(label != -100 for label in rows[-1]["labels"][1:])
    rows.sort(key=lambda row: row["length"])
    batches = []
    while rows:
        count = max(1, _TOKENS_AT_ONCE // rows[-1]["length"])
        batches.append(collate(rows[-count:], pad_id=0))
        rows = rows[:-count]
    return batches
