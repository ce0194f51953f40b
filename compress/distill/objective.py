"""The objective of healing, and the held-out figures that choose the best weights.

The loss is the forward KL divergence KL(teacher || student) at temperature 1 over all positions with a label. A share
of the corpus's own cross-entropy can be mixed in, as Hinton's distillation does (arXiv 1503.02531): pruning studies
with strong teachers find that worse (Minitron, arXiv 2407.14679, tables 15 and 16); a teacher that has not learnt all
that the corpus tells is overtaken with it (LOG.md). Where layers were dropped and the width was kept, a cosine loss
draws the student's hidden states to the teacher's (Minitron's table 17). Teacher and student read the same windows.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chitchat.architectures.states import all_hidden, last_hidden
from chitchat.data.windows import Windows, collate
from chitchat.divergence import compare_states, kl_divergence
from chitchat.errors import WorkFailed
from chitchat.training.objective import NextToken, label_positions, sum_by_parts

HIDDEN_WEIGHT = 1.0  # of the cosine loss, per position, beside the KL in nats
SKEW = 0.1  # the teacher's share in the mixture that the skewed divergence is measured to
_TOKENS_AT_ONCE = 2048


class Distillation:
    """The objective of healing: see `chitchat.training.objective.Objective`.

    With `skew` above 0 the divergence is `skewed_kl`, for text that the student wrote itself. `heal_labels` is that of
    the labels' own negative log-likelihood in the loss, beside the divergence.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        held_out: Windows,
        layers_dropped: bool,
        skew: float = 0.0,
        heal_labels: float = 0.0,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.held_out = held_out
        self.hidden = layers_dropped
        self.skew = skew
        self.heal_labels = heal_labels

    def loss_sum(self, model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
        """KL (and the labels' share) summed over all labels, plus the cosine loss where layers were dropped."""
        self.teacher.to(input_ids.device)
        wanted, targets = label_positions(labels)
        with torch.no_grad():
            of_teacher, middle_of_teacher = self._states(self.teacher, input_ids, wanted)
        of_student, middle_of_student = self._states(model, input_ids, wanted)

        def part(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.teacher.lm_head(teacher).float()
            logits = model.lm_head(student).float()
            divergence = skewed_kl(target, logits, self.skew).sum()
            if not self.heal_labels or self.skew:  # replies of the student are no labels
                return divergence
            likelihood = nn.functional.cross_entropy(logits, targets, reduction="sum")
            return torch.lerp(divergence, likelihood, self.heal_labels)

        loss = sum_by_parts(part, model.config.vocab_size, of_student, of_teacher, targets)
        if middle_of_student is not None and middle_of_teacher is not None:
            cosine = nn.functional.cosine_similarity(middle_of_student.float(), middle_of_teacher.float(), dim=-1)
            loss = loss + HIDDEN_WEIGHT * (1 - cosine).sum()
        return loss

    def evaluate(self, model: PreTrainedModel, max_tokens: int) -> dict[str, float]:
        """`held_out_figures`, and as `loss` what is minimised: the held-out KL, with the labels' share."""
        figures = held_out_figures(model, self.teacher, self.held_out, max_tokens)
        share = self.heal_labels
        return {"loss": (1 - share) * figures["kl"] + share * math.log(figures["perplexity"]), **figures}

    def _states(self, model: PreTrainedModel, input_ids: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Final hidden states at the wanted positions, [labels, width]; and those two layers before, if they count."""
        if not self.hidden:
            return last_hidden(model, input_ids)[:, :-1][wanted], None
        states = all_hidden(model, input_ids)
        final, middle = states[-1], states[max(-3, -len(states))]
        return final[:, :-1][wanted], middle[:, :-1][wanted]


def next_token(teacher: PreTrainedModel, held_out: Windows) -> NextToken:
    """The control: cross-entropy of the corpus. The teacher is only compared with; `loss` is the student's own."""
    teacher = teacher.eval().requires_grad_(False)

    def evaluate(model: PreTrainedModel, max_tokens: int) -> dict[str, float]:
        figures = held_out_figures(model, teacher, held_out, max_tokens)
        return {"loss": math.log(figures["perplexity"]), **figures}

    return NextToken(evaluate)


def skewed_kl(teacher: Tensor, student: Tensor, skew: float) -> Tensor:
    """KL(p || skew p + (1 - skew) q) in nats, p the teacher's and q the student's distribution of each row.

    float32 logits [rows, vocab] to float32 [rows]. DistiLLM (arXiv 2402.03898, equation 3) with skew 0.1: a token that
    the student gives no chance costs -log(skew) at most, so that odd text of its own making does not drown the rest.
    """
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    if skew > 0:
        log_q = torch.logaddexp(log_p + math.log(skew), log_q + math.log1p(-skew))
    return kl_divergence(log_p, log_q)


def held_out_figures(
    model: PreTrainedModel, teacher: PreTrainedModel, held_out: Windows, max_tokens: int
) -> dict[str, float]:
    """`kl` (nats per token), `perplexity`, `teacher_perplexity` over whole windows up to `max_tokens` labels.

    Raises `WorkFailed` where the windows have no label.
    """
    device = model.device
    teacher.to(device)
    training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)  # of the KL, the student's NLL, the teacher's NLL
    tokens = 0
    try:
        with torch.inference_mode():
            for batch in _batches(held_out, max_tokens):
                wanted, targets = label_positions(batch["labels"].to(device))
                states = [last_hidden(one, batch["input_ids"].to(device))[:, :-1][wanted] for one in (teacher, model)]
                found = compare_states(teacher.lm_head, states[0], model.lm_head, states[1], targets)
                sums += torch.stack([found.kl.sum(), found.nll.sum(), found.reference_nll.sum()])
                tokens += len(targets)
    finally:
        model.train(training)
    if not tokens:
        raise WorkFailed("there is no held-out token to heal against")
    kl, nll, teacher_nll = (sums / tokens).tolist()
    return {
        "kl": kl,
        "perplexity": math.exp(min(nll, 700.0)),
        "teacher_perplexity": math.exp(min(teacher_nll, 700.0)),
    }


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
