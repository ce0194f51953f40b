"""What compression did to a model: figures on held-out conversations, before and after. It changes no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chitchat.architectures.states import last_hidden
from chitchat.data.dataset import ChatData
from chitchat.divergence import compare_states, nll_of_states
from chitchat.errors import BadInput
from chitchat.score import score, torch_scorer
from chitchat.training.objective import fused_gelu, label_positions
from compress.calibrate.batches import Batch, calibration_batches

# Held-out tokens that the figures in a lineage are taken on.
SCORE_TOKENS, KL_TOKENS = 12_288, 4_096


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from a reference's. `kl` is the mean of KL(reference || model), in nats per
    token; `top1` the share of positions where both have the same most likely token; `loss` and `reference_loss` the
    mean negative log likelihood in nats of each."""

    kl: float
    top1: float
    loss: float
    reference_loss: float
    tokens: int

    def as_json(self) -> dict[str, Any]:
        return {"kl": self.kl, "top1": self.top1, "tokens": self.tokens}


@torch.no_grad()
def divergence(
    reference: PreTrainedModel,
    model: PreTrainedModel,
    batches: Sequence[Batch],
    reference_states: Sequence[Tensor] | None = None,
) -> Divergence:
    """Compare two models of one vocabulary at every position whose next token is scored.

    `reference_states` are the reference's `final_states` where they are known: several models may be compared with it.
    Raises `BadInput` when there is no such position.
    """
    kl, loss, reference_loss, same, tokens = 0.0, 0.0, 0.0, 0, 0
    for index, batch in enumerate(batches):
        theirs = _states(reference, batch) if reference_states is None else reference_states[index]
        (hidden, targets), (ours, _) = (_scored(states, batch) for states in (theirs, _states(model, batch)))
        found = compare_states(reference.lm_head, hidden, model.lm_head, ours, targets)
        kl, loss = kl + float(found.kl.sum()), loss + float(found.nll.sum())
        reference_loss += float(found.reference_nll.sum())
        same, tokens = same + int(found.same.sum()), tokens + len(targets)
    if not tokens:
        raise BadInput("--data: the windows hold no position to score; make the data set from more conversations")
    return Divergence(kl / tokens, same / tokens, loss / tokens, reference_loss / tokens, tokens)


@torch.no_grad()
def final_states(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Tensor]:
    """What the head reads, [batch, tokens, width] of every batch: 4 bytes x width for each position."""
    return [_states(model, batch) for batch in batches]


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Sequence[Batch], states: Sequence[Tensor] | None = None) -> float:
    """Mean negative log likelihood in nats per scored token (the logarithm of perplexity).

    `states` are its `final_states` where they are known.
    """
    loss, tokens = 0.0, 0
    for index, batch in enumerate(batches):
        hidden, targets = _scored(_states(model, batch) if states is None else states[index], batch)
        loss += float(nll_of_states(model.lm_head, hidden, targets).sum())
        tokens += len(targets)
    return loss / max(1, tokens)


def _states(model: PreTrainedModel, batch: Batch) -> Tensor:
    return last_hidden(model.eval(), batch["input_ids"].to(model.device))


def _scored(states: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of the states [batch, tokens, width] those whose next token is scored, [positions, width], and that token."""
    wanted, targets = label_positions(batch["labels"].to(states.device))
    return states[:, :-1][wanted], targets


def measure(model: PreTrainedModel, reference: PreTrainedModel, data: ChatData) -> dict[str, Any]:
    """Parameters and quality on a bounded number of held-out tokens, for a lineage; `compress eval` scores them all.

    `kl` and `top1` say how far the model is from `reference`; they are left out where the two are the same object.
    """
    windows = data.windows("validation", model.config.max_position_embeddings)
    with fused_gelu(model):
        found = score(torch_scorer(model), windows, max_tokens=SCORE_TOKENS)
    metrics = {
        "parameters": model.num_parameters(),
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
    }
    if model is not reference:
        batches = calibration_batches(windows, data.dialogue.pad_id, KL_TOKENS)
        with fused_gelu(reference), fused_gelu(model):
            distance = divergence(reference, model, batches)
        metrics |= {"kl": distance.kl, "top1": distance.top1}
    return metrics
