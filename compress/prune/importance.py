"""Which units matter: a score for every embedding channel, attention head and FFN neuron.

Five rankings. From calibration conversations run forward: `obs` (default: heads and neurons by how badly the others
replace them, see `elimination`; channels as `activation`) and `activation`. With gradients: `taylor`. From the weights
alone: `magnitude`. By lot: `random`, the control. The scores are pure functions on arrays; the hooks that collect
their statistics are set by a context manager and always removed. How many units stay is decided in `shape`.

Sources: neurons as FLAP (arXiv 2312.11983), variance of the activation times the squared norm of its way out; heads the
same on the context vector; channels as Minitron (arXiv 2407.14679), L2 over conversations of the mean magnitude
over tokens, summed over all LayerNorm outputs; `taylor` as Molchanov et al. (arXiv 1906.10771), the squared first-order
change of the loss when the unit's output is set to 0.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from chitchat.architectures.protocol import last_hidden
from chitchat.architectures.registry import geometry_of
from chitchat.errors import BadInput
from chitchat.training.objective import next_token_loss
from compress.calibrate.calibration import Batch
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


def score_units(model: GPT2LMHeadModel, batches: Sequence[Batch], importance: str, seed: int = 0) -> Scores:
    """Rank all units of `model`. `batches` are calibration windows, not read by `magnitude` and `random`. Raises
    `BadInput` for a ranking that does not exist."""
    if importance == "obs":
        return Scores(channel_scores(model, batches), *unit_scores(model, batches))
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


def by_head(columns: Floats, heads: int) -> Floats:
    """Sum of the scores of a head's columns: [width] to [heads]."""
    return columns.reshape(heads, -1).sum(axis=1)


class RunningVariance:
    """Variance of each column over batches of rows, in float64 (Chan's update: no large sums of squares cancel)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Floats = np.zeros(1)
        self.squares: Floats = np.zeros(1)

    def add(self, rows: Floats) -> None:
        """rows [n, columns]."""
        count = self.count + len(rows)
        mean = rows.mean(axis=0)
        delta = mean - self.mean
        self.squares = self.squares + np.square(rows - mean).sum(axis=0) + delta**2 * self.count * len(rows) / count
        self.mean = self.mean + delta * len(rows) / count
        self.count = count

    @property
    def variance(self) -> Floats:
        return self.squares / max(1, self.count)


# Statistics


@dataclass
class Activations:
    """What one forward run over the calibration windows leaves behind.

    neurons and contexts: per layer, the inputs of `mlp.c_proj` and `attn.c_proj`. channels: per LayerNorm, the sum
    over conversations of the squared mean magnitude of its outputs, [width].
    """

    neurons: list[RunningVariance]
    contexts: list[RunningVariance]
    channels: list[Floats]
    mask: Tensor = field(default_factory=lambda: torch.zeros(0))


@contextmanager
def watch(model: GPT2LMHeadModel, units: bool = True) -> Iterator[Activations]:
    """Collect statistics of every forward run inside the block; `mask` must be set to its attention mask before it.

    Without `units` those of the channels alone.
    """
    blocks = model.transformer.h
    norms = [norm for block in blocks for norm in (block.ln_1, block.ln_2)] + [model.transformer.ln_f]
    seen = Activations(
        neurons=[RunningVariance() for _ in blocks],
        contexts=[RunningVariance() for _ in blocks],
        channels=[np.zeros(model.config.n_embd) for _ in norms],
    )
    hooks: list[Any] = []
    try:
        for layer, block in enumerate(blocks if units else ()):
            hooks.append(block.mlp.c_proj.register_forward_pre_hook(_variance_hook(seen, seen.neurons[layer])))
            hooks.append(block.attn.c_proj.register_forward_pre_hook(_variance_hook(seen, seen.contexts[layer])))
        hooks += [norm.register_forward_hook(_norm_hook(seen, index)) for index, norm in enumerate(norms)]
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _variance_hook(seen: Activations, running: RunningVariance) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        running.add(inputs[0][seen.mask.bool()].double().cpu().numpy())

    return hook


def _norm_hook(seen: Activations, index: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        mask = seen.mask.to(output.dtype)[..., None]  # [batch, tokens, 1]
        means = (output.abs() * mask).sum(dim=1) / mask.sum(dim=1)  # [batch, width]
        seen.channels[index] += means.double().square().sum(dim=0).cpu().numpy()

    return hook


@torch.no_grad()
def activation_scores(model: GPT2LMHeadModel, batches: Sequence[Batch]) -> Scores:
    """Scores from one forward run over the calibration windows; padding is left out."""
    seen = _run_watched(model, batches, units=True)
    heads, neurons = [], []
    for block, context, neuron in zip(model.transformer.h, seen.contexts, seen.neurons, strict=True):
        heads.append(by_head(flap_scores(context.variance, _array(block.attn.c_proj.weight)), model.config.n_head))
        neurons.append(flap_scores(neuron.variance, _array(block.mlp.c_proj.weight)))
    return Scores(_channels(seen), heads, neurons)


@torch.no_grad()
def channel_scores(model: GPT2LMHeadModel, batches: Sequence[Batch]) -> Floats:
    """The channels' part of `activation_scores`, [width]."""
    return _channels(_run_watched(model, batches, units=False))


def _run_watched(model: GPT2LMHeadModel, batches: Sequence[Batch], units: bool) -> Activations:
    model.eval()
    with watch(model, units) as seen:
        for batch in batches:
            seen.mask = batch["attention_mask"].to(model.device)
            last_hidden(model, batch["input_ids"].to(model.device))
    return seen


def _channels(seen: Activations) -> Floats:
    return np.sum([np.sqrt(squares) for squares in seen.channels], axis=0)


def taylor_scores(model: GPT2LMHeadModel, batches: Sequence[Batch]) -> Scores:
    """Scores from the gradient of the next-token loss: per conversation, the squared sum over its tokens of output
    times gradient (of a head over its columns, of a channel over all LayerNorm outputs), summed over conversations."""
    model.eval()
    blocks, heads = model.transformer.h, model.config.n_head
    norms = [norm for block in blocks for norm in (block.ln_1, block.ln_2)] + [model.transformer.ln_f]
    out_projs = [out_proj for block in blocks for out_proj in (block.attn.c_proj, block.mlp.c_proj)]
    found: list[Floats] = [np.zeros(1)] * (len(out_projs) + 1)
    seen: dict[int, Tensor] = {}

    def keep(place: int, tensor: Tensor) -> None:
        seen[place] = tensor

    hooks = [
        *(
            out_proj.register_forward_pre_hook(lambda _module, inputs, place=place: keep(place, inputs[0]))
            for place, out_proj in enumerate(out_projs)
        ),
        *(
            norm.register_forward_hook(lambda _module, _inputs, output, place=place: keep(place, output))
            for place, norm in enumerate(norms, len(out_projs))
        ),
    ]
    try:
        with torch.enable_grad():
            for batch in batches:
                ids, labels = (batch[name].to(model.device) for name in ("input_ids", "labels"))
                loss = next_token_loss(model, ids, labels)
                gradients = torch.autograd.grad(loss, list(seen.values()))
                slopes = {
                    place: (output.detach() * gradient).sum(dim=1).double().cpu().numpy()  # [batch, columns]
                    for (place, output), gradient in zip(seen.items(), gradients, strict=True)
                }
                for place in range(len(out_projs)):
                    size = 1 if place % 2 else slopes[place].shape[1] // heads
                    units = slopes[place].reshape(len(slopes[place]), -1, size).sum(axis=2)
                    found[place] = found[place] + np.square(units).sum(axis=0)
                channels = sum(slopes[place] for place in range(len(out_projs), len(slopes)))
                found[-1] = found[-1] + np.square(channels).sum(axis=0)
                seen.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return Scores(channels=found[-1], heads=found[:-1:2], neurons=found[1:-1:2])


def magnitude_scores(model: GPT2LMHeadModel) -> Scores:
    """Scores from the weights alone: the L2 norm of everything that would be cut with the unit."""
    transformer, heads, neurons = model.transformer, [], []
    channels = [_array(transformer.wte.weight).T, _array(transformer.wpe.weight).T]
    for block in transformer.h:
        qkv = np.split(_array(block.attn.c_attn.weight), 3, axis=1)  # [width, width] each
        fc, out, context_out = (
            _array(module.weight) for module in (block.mlp.c_fc, block.mlp.c_proj, block.attn.c_proj)
        )
        columns = magnitude_of([*(each.T for each in qkv), context_out])
        heads.append(np.sqrt(by_head(columns**2, model.config.n_head)))
        neurons.append(magnitude_of([fc.T, out]))
        channels += [*qkv, fc, context_out.T, out.T]
    return Scores(magnitude_of(channels), heads, neurons)


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
