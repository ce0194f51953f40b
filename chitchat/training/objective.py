"""The model as the Trainer sees it: `forward` gives the summed loss of a batch under an objective.

The loss is inside `forward`, so the code is the same in one process, in `DistributedDataParallel` and under mixed
precision. Logits are computed only for positions with a label, and in pieces for a large vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from chitchat.architectures.registry import architecture_of
from chitchat.architectures.states import last_hidden

# More logits than this (float32: 256 MB) are computed in pieces, and again in the backward pass.
MAX_LOGITS = 2**26


class Objective(Protocol):
    """What is minimised."""

    def loss_sum(self, model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss summed over all labels, a float32 scalar; `input_ids` and `labels` int64 [batch, length]."""

    def evaluate(self, model: PreTrainedModel, max_tokens: int) -> dict[str, float]:
        """Figures on about `max_tokens` validation tokens at most; `loss` decides which model is best."""


class LossModel(PreTrainedModel):
    """A view of a model (the same parameters) whose forward pass is an objective."""

    objective: Objective

    @classmethod
    def wrap(cls, model: PreTrainedModel, objective: Objective) -> "LossModel":
        """A view of `model`, of its class and this one: training it trains `model`."""
        with torch.device("meta"):
            view = type(cls.__name__, (cls, type(model)), {})(model.config)
        for name, child in model.named_children():
            setattr(view, name, child)
        view.objective = objective
        # A tied head is not saved twice, and no warning is given for its absence.
        head = f"{architecture_of(model).head_name}.weight"
        view._keys_to_ignore_on_save = [head] if model.config.tie_word_embeddings else None
        return view

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of a right-padded batch, float32 scalar."""
        return self.objective.loss_sum(self, input_ids, labels)

    def floating_point_ops(self, inputs: object, exclude_embeddings: bool = True) -> int:
        """0: the Trainer would go through all modules in every step for an unused figure."""
        return 0


class NextToken:
    """The ordinary objective: the negative log-likelihood of the next token."""

    def __init__(self, evaluate: Callable[[PreTrainedModel, int], dict[str, float]]) -> None:
        self._evaluate = evaluate

    def loss_sum(self, model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
        return next_token_loss(model, input_ids, labels)

    def evaluate(self, model: PreTrainedModel, max_tokens: int) -> dict[str, float]:
        return self._evaluate(model, max_tokens)


def next_token_loss(model: PreTrainedModel, input_ids: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of all labels in nats, summed, a float32 scalar; int64 [batch, length] both."""
    wanted, targets = label_positions(labels)
    hidden = last_hidden(model, input_ids)[:, :-1][wanted]  # [labels, width]

    def part(hidden: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model.lm_head(hidden).float(), targets, reduction="sum")

    return sum_by_parts(part, model.config.vocab_size, hidden, targets)


def label_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions predict a label, bool [batch, length - 1], and those labels, int64 [labels]."""
    shifted = labels[:, 1:]
    wanted = shifted != -100
    return wanted, shifted[wanted]


def sum_by_parts(part: Callable[..., Tensor], vocab_size: int, *tensors: Tensor) -> Tensor:
    """Sum `part(*slices)` over slices of rows that keep rows times `vocab_size` below `MAX_LOGITS`."""
    rows = max(1, MAX_LOGITS // vocab_size)
    if len(tensors[0]) <= rows:
        return part(*tensors)
    total = tensors[0].new_zeros((), dtype=torch.float32)
    for slices in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
        total = total + checkpoint(part, *slices, use_reentrant=False)
    return total


@contextmanager
def fused_gelu(model: PreTrainedModel) -> Iterator[None]:
    """A context in which torch's fused kernel computes `gelu_new`: saves a sixth of the step time."""
    originals = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, NewGELUActivation)
    ]
    try:
        for parent, name, _ in originals:
            setattr(parent, name, nn.GELU(approximate="tanh"))
        yield
    finally:
        for parent, name, original in originals:
            setattr(parent, name, original)
