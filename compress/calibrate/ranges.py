"""What flows through a model on calibration conversations: the ranges of its linears' inputs, the scales of its cache.

Static figures for integer arithmetic (w8a8) and for an int8 KV cache. It observes and changes no model. Sequences are
run one at a time, so that no padding is observed.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of
from chitchat.architectures.sublayers import Role
from chitchat.errors import BadInput

Range = tuple[float, float]
CACHED: tuple[Role, ...] = ("key", "value")
HEADROOM = 1.1  # of the cache over what calibration saw: clipping costs far more than a coarser grid


@dataclass(frozen=True)
class KVScales:
    """The scales of one layer's int8 cache, float32 [1, kv_heads, 1, head_dim]: number = integer * scale.

    `attention` is the name of the layer's attention.
    """

    attention: str
    key: NDArray[np.float32]
    value: NDArray[np.float32]


def input_ranges(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> dict[str, Range]:
    """The smallest and largest input of every linear layer, by module name, over all positions of `sequences`.

    Raises `BadInput` where there is no sequence, or an input that is not finite.
    """
    ranges: dict[str, Range] = {}

    def observe(name: str, inputs: Tensor, _: Tensor) -> None:
        low, high = (float(value) for value in torch.aminmax(inputs))
        known = ranges.get(name, (low, high))
        ranges[name] = min(low, known[0]), max(high, known[1])

    _run(model, [projection.name for projection in architecture_of(model).projections(model)], observe, sequences)
    _check_finite({name: np.asarray(found) for name, found in ranges.items()})
    return ranges


def calibrate_kv(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[KVScales]:
    """Scales of an int8 KV cache for every layer: 127 stands for `HEADROOM` times a channel's largest magnitude.

    A scale a channel: on a trained GPT-2 of 8.8 M parameters half the divergence of one a head or a tensor, at no cost.

    Raises `BadInput` where there is no sequence, or a key or value that is not finite.
    """
    attentions = [found for found in architecture_of(model).all_sublayers(model) if found.kind == "attention"]
    largest: dict[str, Tensor] = {}

    def observe(name: str, _: Tensor, outputs: Tensor) -> None:
        found = outputs.flatten(0, -2).abs().amax(dim=0)  # [out], of a fused projection query, key and value
        largest[name] = torch.maximum(largest[name], found) if name in largest else found

    names = {attention.part(role).projection.name for attention in attentions for role in CACHED}
    _run(model, names, observe, sequences)
    _check_finite({name: found.numpy() for name, found in largest.items()})
    scales = []
    for attention in attentions:
        found = []
        for role in CACHED:
            part = attention.part(role)
            scale = largest[part.projection.name][part.columns].float().reshape(1, attention.kv_heads, 1, -1)
            # A channel that was always zero gets a scale that divides by no zero.
            found.append(np.maximum((scale * (HEADROOM / 127)).numpy(), np.finfo(np.float32).tiny * 2**24))
        scales.append(KVScales(attention.name, *found))
    return scales


@torch.no_grad()
def _run(
    model: PreTrainedModel,
    names: Collection[str],
    observe: Callable[[str, Tensor, Tensor], None],
    sequences: Sequence[Sequence[int]],
) -> None:
    if not sequences:
        raise BadInput("--data: has no conversation to calibrate on; make the data set from more conversations")
    model.eval()
    with _observed(model, names, observe):
        for sequence in sequences:
            ids = torch.tensor([list(sequence)], device=model.device)
            # A sequence may end with the id that pads others: the mask says that this one has no padding.
            model.base_model(ids, attention_mask=torch.ones_like(ids), use_cache=False)


@contextlib.contextmanager
def _observed(
    model: PreTrainedModel, names: Collection[str], observe: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call `observe(name, input, output)`, on the CPU, whenever one of the modules has run."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            observe(name, inputs[0].detach().cpu(), output.detach().cpu())

        return hook

    handles = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_finite(found: dict[str, NDArray[np.floating[Any]]]) -> None:
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise BadInput(f"{name}: gives NaN or Inf on the conversations of --data; take an earlier checkpoint")
