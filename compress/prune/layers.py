"""Cutting whole layers out of a model: which ones, by trying; and the model without them.

torch-pruning cannot remove layers. The choice is greedy: the layer whose removal hurts least, measured on calibration
windows, goes first, then the next is looked for in what is left. The first layer stays unless only one is kept: without
it a trained chat model's perplexity grows 27-fold, without any other by 1 to 2 % (measured on 6 layers x 320).

A model that would change behind a cut (`Architecture.refuses_layer_cut`) is refused by `stage`.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of
from compress.calibrate.batches import Batch
from compress.calibrate.measure import mean_loss
from compress.calibrate.walk import Streams


@torch.no_grad()
def removal_order(model: PreTrainedModel, batches: Sequence[Batch], count: int, known: Sequence[int] = ()) -> list[int]:
    """Indices of the `count` layers that go, the first to go first; `known` are the first of them, where they are."""
    order = list(known[:count])
    left = [layer for layer in range(model.config.num_hidden_layers) if layer not in order]
    trials = sum(len(left) - gone - 1 for gone in range(count - len(order)))
    with tqdm(total=trials, desc="trying layers", unit="layer", disable=None) as bar:
        while len(order) < count:
            losses = {}
            for tried, loss in _losses_without(model, batches, left):
                losses[tried] = loss
                bar.update()
            # Of equal losses the deepest layer goes.
            order.append(min(losses, key=lambda layer: (losses[layer], -layer)))
            left.remove(order[-1])
    return order


def _losses_without(
    model: PreTrainedModel, batches: Sequence[Batch], left: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """The loss of the model of the layers `left` without each of them but the first.

    Layers before the one that is left out are not run again: the stream that reaches it is walked on from there.
    """
    architecture, streams = architecture_of(model), Streams(model, batches)

    def run(streams: Streams, layers: Sequence[int]) -> None:
        for layer in layers:
            for sublayer in architecture.sublayers(model, layer):
                streams.advance(sublayer)

    norm = architecture.final_norm(model)[1]
    for index, layer in enumerate(left):
        if index:
            trial = streams.copy()
            run(trial, left[index + 1 :])
            yield layer, mean_loss(model, batches, [norm(states) for states in trial.states])
        run(streams, [layer])


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """An ordinary model of the given layers, renumbered, their weights bit-identical; `model` is not touched."""
    architecture = architecture_of(model)
    config = copy.deepcopy(model.config)
    old_prefixes = [architecture.layer_prefix(layer) for layer in range(config.num_hidden_layers)]
    new_prefixes = {old_prefixes[old]: architecture.layer_prefix(new) for new, old in enumerate(layers)}
    config.num_hidden_layers = len(layers)
    weights = {}
    for name, value in model.state_dict().items():
        prefix = next((prefix for prefix in old_prefixes if name.startswith(prefix)), "")
        if not prefix or prefix in new_prefixes:
            weights[new_prefixes.get(prefix, "") + name.removeprefix(prefix)] = value
    return architecture.build(config, weights, model.generation_config)
