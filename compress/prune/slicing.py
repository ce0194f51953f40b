"""Cutting units out of a model: embedding channels, attention heads and units of the feed-forward.

torch-pruning's DependencyGraph finds every tensor that a unit lives in, on the architecture's Linear view of the model.
Which units stay is decided elsewhere (`importance`); whole layers are cut by `layers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch_pruning
from torch import nn
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of
from serve.geometry import Geometry


@dataclass(frozen=True)
class Kept:
    """Indices of the units that stay, ascending; `heads` and `neurons` hold one list per layer, all of one length."""

    channels: Sequence[int]
    heads: Sequence[Sequence[int]]
    neurons: Sequence[Sequence[int]]


def slice_model(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """An ordinary model of the kept units, their weights bit-identical; `model` is not touched.

    Raises `ValueError` when the kept units are no shape that the architecture can express.
    """
    architecture = architecture_of(model)
    geometry = architecture.geometry(model.config)
    _check(kept, geometry)
    narrow = replace(geometry.with_heads(len(kept.heads[0])), width=len(kept.channels), ffn=len(kept.neurons[0]))
    config = architecture.configure(model.config, narrow)
    view = architecture.linear_view(model)
    # The graph follows autograd; its trace needs a sentence of any tokens, shorter than the context.
    tokens = torch.zeros((1, min(4, geometry.context)), dtype=torch.long, device=model.device)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            view.model,
            example_inputs={"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
            output_transform=lambda output: output.logits,
            verbose=False,
        )
    size = geometry.head_dim
    _cut(graph, view.table, torch_pruning.prune_embedding_out_channels, kept.channels, geometry.width)
    for attention, feed_forward, heads, neurons in zip(
        view.head_inputs, view.inner_outputs, kept.heads, kept.neurons, strict=True
    ):
        columns = [head * size + column for head in heads for column in range(size)]
        _cut(graph, attention, torch_pruning.prune_linear_in_channels, columns, geometry.heads * size)
        _cut(graph, feed_forward, torch_pruning.prune_linear_out_channels, neurons, geometry.ffn)
    return architecture.build(config, architecture.linear_view_weights(view), model.generation_config)


def _cut(
    graph: torch_pruning.DependencyGraph, module: nn.Module, function: object, kept: Sequence[int], size: int
) -> None:
    """Remove from `module`, and from all that depends on it, what is not kept of `size` channels."""
    staying = set(kept)
    removed = [index for index in range(size) if index not in staying]
    if removed:
        graph.get_pruning_group(module, function, idxs=removed).prune()


def _check(kept: Kept, geometry: Geometry) -> None:
    layers = geometry.layers
    if len(kept.heads) != layers or len(kept.neurons) != layers:
        raise ValueError(f"{len(kept.heads)} lists of heads and {len(kept.neurons)} of neurons for {layers} layers")
    if len({len(heads) for heads in kept.heads}) != 1 or len({len(neurons) for neurons in kept.neurons}) != 1:
        raise ValueError("layers that keep different numbers of heads or neurons are no shape")
    width = geometry.with_heads(len(kept.heads[0])).width
    if len(kept.channels) != width:
        raise ValueError(f"{len(kept.channels)} channels do not go with {len(kept.heads[0])} heads, {width} do")
