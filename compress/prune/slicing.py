"""Cutting units out of a GPT-2: embedding channels, attention heads and FFN neurons.

torch-pruning's DependencyGraph finds every tensor that a unit lives in, on the Linear view of the model. Which units
stay is decided elsewhere (`importance`); whole layers are cut by `layers`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch_pruning
from torch import nn
from transformers import GPT2LMHeadModel

from compress.prune.linear_view import linear_view, to_gpt2


@dataclass(frozen=True)
class Kept:
    """Indices of the units that stay, ascending; `heads` and `neurons` hold one list per layer, all of one length."""

    channels: Sequence[int]
    heads: Sequence[Sequence[int]]
    neurons: Sequence[Sequence[int]]


def slice_model(model: GPT2LMHeadModel, kept: Kept) -> GPT2LMHeadModel:
    """An ordinary GPT2LMHeadModel of the kept units, their weights bit-identical; `model` is not touched.

    Raises `ValueError` when the kept units are no shape that GPT2Config can express.
    """
    config = copy.deepcopy(model.config)
    head_dim = config.n_embd // config.n_head
    _check(kept, model, head_dim)
    view = linear_view(model)
    # The graph follows autograd; its trace needs a sentence of any tokens, shorter than the context.
    tokens = torch.zeros((1, min(4, config.n_positions)), dtype=torch.long, device=model.device)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            view,
            example_inputs={"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
            output_transform=lambda output: output.logits,
            verbose=False,
        )
    wte = view.transformer.wte
    _cut(graph, wte, torch_pruning.prune_embedding_out_channels, kept.channels, wte.embedding_dim)
    for block, heads, neurons in zip(view.transformer.h, kept.heads, kept.neurons, strict=True):
        columns = [head * head_dim + column for head in heads for column in range(head_dim)]
        _cut(graph, block.attn.o, torch_pruning.prune_linear_in_channels, columns, block.attn.o.in_features)
        _cut(graph, block.mlp.c_fc, torch_pruning.prune_linear_out_channels, neurons, block.mlp.c_fc.out_features)
    config.n_embd = len(kept.channels)
    config.n_head = len(kept.heads[0])
    config.n_inner = len(kept.neurons[0])
    return to_gpt2(view, config)


def _cut(
    graph: torch_pruning.DependencyGraph, module: nn.Module, function: object, kept: Sequence[int], size: int
) -> None:
    """Remove from `module`, and from all that depends on it, what is not kept of `size` channels."""
    staying = set(kept)
    removed = [index for index in range(size) if index not in staying]
    if removed:
        graph.get_pruning_group(module, function, idxs=removed).prune()


def _check(kept: Kept, model: GPT2LMHeadModel, head_dim: int) -> None:
    layers = len(model.transformer.h)
    if len(kept.heads) != layers or len(kept.neurons) != layers:
        raise ValueError(f"{len(kept.heads)} lists of heads and {len(kept.neurons)} of neurons for {layers} layers")
    if len({len(heads) for heads in kept.heads}) != 1 or len({len(neurons) for neurons in kept.neurons}) != 1:
        raise ValueError("layers that keep different numbers of heads or neurons are no GPT2Config")
    if len(kept.channels) != len(kept.heads[0]) * head_dim:
        raise ValueError(f"{len(kept.channels)} channels are not {len(kept.heads[0])} heads of {head_dim}")
