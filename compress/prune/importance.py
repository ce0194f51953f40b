"""Which units matter: a score for every embedding channel, attention head and FFN neuron.

Five rankings. From calibration conversations run forward: `obs` (default: heads and neurons by how badly the others
replace them, see `elimination`; channels as `activation`) and `activation`. With gradients: `taylor`. From the weights
alone: `magnitude`. By lot: `random`, the control. The scores are pure functions on arrays; the hooks that collect
their statistics are set by a context manager and always removed. How many units stay is decided in `shape`.

Sources: neurons as FLAP (arXiv 2312.11983), variance of the activation times the squared norm of its way out; heads the
same on the context vector; channels as Minitron, see `channels`; `taylor` as Molchanov et al. (arXiv 1906.10771), the
squared first-order change of the loss when the unit's output is set to 0.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of, geometry_of
from chitchat.architectures.states import last_hidden
from chitchat.architectures.sublayers import Sublayer
from chitchat.errors import BadInput
from chitchat.training.objective import next_token_loss
from compress.calibrate.batches import Batch
from compress.calibrate.moments import Variance
from compress.prune.channels import ChannelMagnitudes
from compress.prune.elimination import unit_scores
from compress.prune.slicing import Kept
from serve.geometry import Geometry

Floats = NDArray[np.float64]
IMPORTANCES = ("obs", "activation", "magnitude", "taylor", "random")


@dataclass(frozen=True)
class Scores:
    """One score a unit, larger is more important. channels [width], heads [heads] and neurons [ffn] of each layer."""

    channels: Floats
    heads: list[Floats]
    neurons: list[Floats]

    def of_layers(self, layers: Sequence[int]) -> "Scores":
        """The scores of some of the layers."""
        return Scores(self.channels, [self.heads[layer] for layer in layers], [self.neurons[layer] for layer in layers])

    def keep(self, shape: Geometry) -> Kept:
        """The best units for `shape`."""
        return Kept(
            channels=best(self.channels, shape.width),
            heads=[best(scores, shape.heads) for scores in self.heads],
            neurons=[best(scores, shape.ffn) for scores in self.neurons],
        )


def score_units(model: PreTrainedModel, batches: Sequence[Batch], importance: str, seed: int = 0) -> Scores:
    """Rank all units of `model`. `batches` are calibration windows, not read by `magnitude` and `random`. Raises
    `BadInput` for a ranking that does not exist."""
    if importance == "obs":
        return Scores(*unit_scores(model, batches))
    if importance == "activation":
        return activation_scores(model, batches)
    if importance == "taylor":
        return taylor_scores(model, batches)
    if importance == "magnitude":
        return magnitude_scores(model)
    if importance == "random":
        return random_scores(geometry_of(model), seed)
    raise BadInput(f"--importance {importance}: there is no such ranking; choose {', '.join(IMPORTANCES)}")


def best(scores: Floats, count: int) -> list[int]:
    """Indices of the `count` largest scores, ascending; of equal scores the first ones."""
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


# Arithmetic


def flap_scores(variance: Floats, out_weight: Floats) -> Floats:
    """Variance of each activation [units] times the squared norm of the weights that carry it on, [units, width]."""
    return variance * np.square(out_weight).sum(axis=1)


def magnitude_of(rows: Sequence[Floats]) -> Floats:
    """L2 norm of all weights that belong to a unit; every array is [units, anything]."""
    return np.sqrt(sum((np.square(each).sum(axis=1) for each in rows), start=np.zeros(len(rows[0]))))


def by_unit(columns: Floats, units: int) -> Floats:
    """Sum of the scores of a unit's columns: [columns] to [units]."""
    return columns.reshape(units, -1).sum(axis=1)


# Statistics


@dataclass
class Activations:
    """What one forward run over the calibration windows leaves behind.

    units: per sublayer, the inputs of its out-projection. channels: per norm, its outputs.
    """

    units: list[Variance]
    channels: list[ChannelMagnitudes]
    mask: Tensor = field(default_factory=lambda: torch.zeros(0))


@contextmanager
def watch(model: PreTrainedModel) -> Iterator[Activations]:
    """Collect statistics of every forward run inside the block; `mask` must be set to its attention mask before it."""
    architecture = architecture_of(model)
    sublayers, norms = architecture.all_sublayers(model), architecture.norms(model)
    width = architecture.geometry(model.config).width
    seen = Activations([Variance() for _ in sublayers], [ChannelMagnitudes(width) for _ in norms])
    hooks: list[Any] = []
    try:
        hooks += [
            sublayer.out_proj.module.register_forward_pre_hook(_variance_hook(seen, variance))
            for sublayer, variance in zip(sublayers, seen.units, strict=True)
        ]
        hooks += [
            norm.register_forward_hook(_norm_hook(seen, magnitudes))
            for norm, magnitudes in zip(norms, seen.channels, strict=True)
        ]
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _variance_hook(seen: Activations, running: Variance) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        running.add(inputs[0][seen.mask.bool()].double().cpu().numpy())

    return hook


def _norm_hook(seen: Activations, magnitudes: ChannelMagnitudes) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        magnitudes.add(output, seen.mask)

    return hook


@torch.no_grad()
def activation_scores(model: PreTrainedModel, batches: Sequence[Batch]) -> Scores:
    """Scores from one forward run over the calibration windows; padding is left out."""
    model.eval()
    with watch(model) as seen:
        for batch in batches:
            seen.mask = batch["attention_mask"].to(model.device)
            last_hidden(model, batch["input_ids"].to(model.device))
    sublayers = architecture_of(model).all_sublayers(model)
    found = [
        by_unit(flap_scores(seen_units.variance, _array(sublayer.out_proj.weight)), sublayer.units)
        for sublayer, seen_units in zip(sublayers, seen.units, strict=True)
    ]
    channels = np.sum([magnitudes.scores for magnitudes in seen.channels], axis=0)
    return _scores(channels, sublayers, found)


def _scores(channels: Floats, sublayers: Sequence[Sublayer], units: Sequence[Floats]) -> Scores:
    """Scores of the units of every sublayer, in their order, as heads and feed-forward units."""
    by_kind = {
        kind: [scores for sublayer, scores in zip(sublayers, units, strict=True) if sublayer.kind == kind]
        for kind in ("attention", "feed_forward")
    }
    return Scores(channels, by_kind["attention"], by_kind["feed_forward"])


def taylor_scores(model: PreTrainedModel, batches: Sequence[Batch]) -> Scores:
    """Scores from the gradient of the next-token loss: per conversation, the squared sum over its tokens of output
    times gradient (of a head over its columns, of a channel over all LayerNorm outputs), summed over conversations."""
    model.eval()
    architecture = architecture_of(model)
    sublayers, norms = architecture.all_sublayers(model), architecture.norms(model)
    units = [np.zeros(sublayer.units) for sublayer in sublayers]
    channels = np.zeros(architecture.geometry(model.config).width)
    seen: dict[int, Tensor] = {}  # by the number of the out-projection, then of the norm

    def keep(index: int, tensor: Tensor) -> None:
        seen[index] = tensor

    hooks: list[Any] = []
    for index, sublayer in enumerate(sublayers):
        hooks.append(sublayer.out_proj.module.register_forward_pre_hook(lambda _m, x, i=index: keep(i, x[0])))
    for index, norm in enumerate(norms, len(sublayers)):
        hooks.append(norm.register_forward_hook(lambda _m, _x, output, i=index: keep(i, output)))
    try:
        for batch in batches:
            seen.clear()
            slopes = _slopes(model, batch, seen)
            for index, sublayer in enumerate(sublayers):
                by_row = slopes[index].reshape(len(slopes[index]), sublayer.units, -1).sum(axis=2)
                units[index] += np.square(by_row).sum(axis=0)
            channels += np.square(sum(slopes[index] for index in range(len(sublayers), len(seen)))).sum(axis=0)
    finally:
        for hook in hooks:
            hook.remove()
    return _scores(channels, sublayers, units)


def _slopes(model: PreTrainedModel, batch: Batch, seen: dict[int, Tensor]) -> dict[int, Floats]:
    """Output times gradient of what a forward run leaves in `seen`, summed over tokens: [batch, columns] each."""
    ids, labels = (batch[name].to(model.device) for name in ("input_ids", "labels"))
    with torch.enable_grad():
        loss = next_token_loss(model, ids, labels)
        gradients = torch.autograd.grad(loss, list(seen.values()))
    return {
        index: (output.detach() * gradient).sum(dim=1).double().cpu().numpy()
        for (index, output), gradient in zip(seen.items(), gradients, strict=True)
    }


def magnitude_scores(model: PreTrainedModel) -> Scores:
    """Scores from the weights alone: the L2 norm of everything that would be cut with the unit."""
    architecture = architecture_of(model)
    sublayers, units = architecture.all_sublayers(model), []
    channels = [_array(table.weight).T for _, table in architecture.tables(model)]
    for sublayer in sublayers:
        reads = [_array(projection.weight) for projection in sublayer.in_projs]
        out = _array(sublayer.out_proj.weight)
        channels += [*reads, out.T]
        of_units = np.square(out).sum(axis=1).reshape(sublayer.units, -1).sum(axis=1)
        for unit in range(sublayer.units):
            columns = sublayer.in_columns([unit])
            of_units[unit] += sum(np.square(read[:, own]).sum() for read, own in zip(reads, columns, strict=True))
        units.append(np.sqrt(of_units))
    return _scores(magnitude_of(channels), sublayers, units)


def random_scores(shape: Geometry, seed: int) -> Scores:
    """Scores by lot."""
    draw = np.random.default_rng(seed)
    return Scores(
        channels=draw.random(shape.width),
        heads=[draw.random(shape.heads) for _ in range(shape.layers)],
        neurons=[draw.random(shape.ffn) for _ in range(shape.layers)],
    )


def _array(weight: Tensor) -> Floats:
    return weight.detach().double().cpu().numpy()
