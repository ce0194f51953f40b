"""GPT-2 as it is trained: `forward` gives the summed loss of a batch, whatever the objective is.

The loss lives inside `forward` so that it is the same code in one process, in `DistributedDataParallel` and under
mixed precision. Logits are computed for positions that have a label only, and a large vocabulary in pieces.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2LMHeadModel
from transformers.activations import NewGELUActivation

# More logits than this at once (float32: 256 MB) are computed piece by piece, and again in the backward pass.
MAX_LOGITS = 2**26


class Objective(Protocol):
    """What is minimised."""

    def loss_sum(self, model: GPT2LMHeadModel, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss summed over all labels, a float32 scalar; `input_ids` and `labels` int64 [batch, length]."""

    def evaluate(self, model: GPT2LMHeadModel, max_tokens: int) -> dict[str, float]:
        """Figures on about `max_tokens` validation tokens at most; `loss` decides which model is best."""


class LossModel(GPT2LMHeadModel):
    """A view of a model (the same parameters) whose forward pass is its objective."""

    objective: Objective

    @classmethod
    def wrap(cls, model: GPT2LMHeadModel, objective: Objective) -> "LossModel":
        """A view of `model`: training it trains `model`."""
        with torch.device("meta"):
            view = cls(model.config)
        view.transformer, view.lm_head = model.transformer, model.lm_head
        view.objective = objective
        # The tied head is not saved twice, and its absence in a checkpoint is no cause for a warning.
        view._keys_to_ignore_on_save = ["lm_head.weight"] if model.config.tie_word_embeddings else None
        return view

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of a right-padded batch, float32 scalar."""
        return self.objective.loss_sum(self, input_ids, labels)

    def floating_point_ops(self, inputs: object, exclude_embeddings: bool = True) -> int:
        """Nothing: the Trainer would walk over all modules in every step for a figure that nobody reads."""
        return 0


class NextToken:
    """The ordinary objective: the negative log-likelihood of the next token."""

    def __init__(self, evaluate: Callable[[GPT2LMHeadModel, int], dict[str, float]]) -> None:
        self._evaluate = evaluate

    def loss_sum(self, model: GPT2LMHeadModel, input_ids: Tensor, labels: Tensor) -> Tensor:
        """See `Objective`."""
        return next_token_loss(model, input_ids, labels)

    def evaluate(self, model: GPT2LMHeadModel, max_tokens: int) -> dict[str, float]:
        """See `Objective`."""
        return self._evaluate(model, max_tokens)


def next_token_loss(model: GPT2LMHeadModel, input_ids: Tensor, labels: Tensor) -> Tensor:
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


def last_hidden(model: GPT2LMHeadModel, input_ids: Tensor) -> Tensor:
    """The final hidden states [batch, length, width] of a right-padded batch.

    No attention mask: attention is causal, so what stands right of a token cannot reach it, and without a mask the
    fast attention kernels apply. Embeddings are passed, since transformers warns of padded ids without a mask.
    """
    return model.transformer(inputs_embeds=model.transformer.wte(input_ids), use_cache=False).last_hidden_state


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
def fused_gelu(model: GPT2LMHeadModel) -> Iterator[None]:
    """While training, compute `gelu_new` by torch's fused kernel: the same function, a sixth of the step time less."""
    blocks = [block for block in model.transformer.h if isinstance(block.mlp.act, NewGELUActivation)]
    originals = [block.mlp.act for block in blocks]
    try:
        for block in blocks:
            block.mlp.act = nn.GELU(approximate="tanh")
        yield
    finally:
        for block, original in zip(blocks, originals, strict=True):
            block.mlp.act = original
