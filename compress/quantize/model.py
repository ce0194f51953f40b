"""A model's weights to integers: each matrix by itself, or all in turn on calibration conversations."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chitchat.architectures.registry import architecture_of
from chitchat.training.objective import fused_gelu
from compress.calibrate.batches import Batch
from compress.calibrate.ranges import Range, input_ranges
from compress.quantize.channelwise import ChannelTensor, with_input_range
from compress.quantize.checkpoint import QuantizedCheckpoint, QuantizedTensor, dequantize
from compress.quantize.methods import quantize_matrix, quantize_matrix_or_search
from compress.quantize.rounding import block_product, channel_product
from compress.quantize.schemes import Grid, quantization_config
from compress.quantize.sequential import quantize_in_turn
from compress.quantize.smoothing import smooth


@dataclass
class QuantizedModel:
    """A model whose matrices stand for integers. `before` are the matrices [N, K] that were rounded, by module, and
    `folded` the share of the rounding error of a product that rescaling its channels left."""

    model: PreTrainedModel
    matrices: dict[str, QuantizedTensor]
    before: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    folded: dict[str, float] = field(default_factory=dict)


def round_model(
    model: PreTrainedModel, chosen: Mapping[str, Grid], method: str, ranges: Mapping[str, Range] | None = None
) -> QuantizedModel:
    """Quantize every weight matrix and table of `model` by itself, by a method that needs no data; `model` stays.

    `ranges` are the inputs of every linear layer (`input_ranges`), which w8a8 needs.
    """
    rounded = copy.deepcopy(model).eval()
    matrices: dict[str, QuantizedTensor] = {}
    architecture = architecture_of(model)
    for name in tqdm(list(chosen), desc="quantizing", unit="matrix", disable=None):
        weight = model.get_submodule(name).weight.detach().float().numpy()
        weight = np.ascontiguousarray(weight.T if architecture.is_transposed(name) else weight)
        tensor = quantize_matrix(weight, chosen[name], method)
        matrices[name] = (
            with_input_range(tensor, *(ranges or {})[name]) if isinstance(tensor, ChannelTensor) else tensor
        )
    load_dequantized_(rounded, matrices)
    return QuantizedModel(rounded, matrices)


def calibrate_model(
    model: PreTrainedModel,
    chosen: Mapping[str, Grid],
    method: str,
    batches: Sequence[Batch],
    sequences: Sequence[Sequence[int]],
) -> QuantizedModel:
    """Quantize `model` in turn, on what the part that is quantized already gives; `model` stays.

    `batches` are right-padded calibration windows, `sequences` the same without padding, for the ranges of w8a8.
    """
    rounded = copy.deepcopy(model).eval()
    linear = next(grid for grid in chosen.values() if not grid.table)
    product = (
        channel_product
        if linear.static_inputs
        else partial(block_product, bits=min(grid.bits for grid in chosen.values()), block_size=linear.block_size)
    )
    before: dict[str, NDArray[np.float32]] = {}

    def settle(name: str, weight: NDArray[np.float32], covariance: NDArray[np.float64] | None) -> QuantizedTensor:
        before[name] = weight
        return quantize_matrix_or_search(name, weight, chosen[name], method, covariance)

    with fused_gelu(rounded), fused_gelu(model):
        smoothed = smooth(rounded, batches, product)
        matrices = quantize_in_turn(rounded, model, batches, smoothed.head_inputs, settle)
    if linear.static_inputs:
        found = input_ranges(rounded, sequences)
        matrices |= {
            name: with_input_range(tensor, *found[name])
            for name, tensor in matrices.items()
            if isinstance(tensor, ChannelTensor)
        }
    return QuantizedModel(rounded, matrices, before, smoothed.left)


@torch.no_grad()
def load_dequantized_(model: PreTrainedModel, matrices: Mapping[str, QuantizedTensor]) -> None:
    """Put what `matrices` stand for into `model`, in place."""
    architecture = architecture_of(model)
    for name, tensor in matrices.items():
        weight = torch.from_numpy(dequantize(tensor))
        model.get_submodule(name).weight.copy_(weight.T if architecture.is_transposed(name) else weight)


def checkpoint_of(
    rounded: QuantizedModel, tokenizer: PreTrainedTokenizerFast, chosen: Mapping[str, Grid], scheme: str, method: str
) -> QuantizedCheckpoint:
    """The quantized checkpoint: the integers, and the floats of the model beside them."""
    model = rounded.model
    config = {**model.config.to_dict(), "quantization_config": quantization_config(scheme, method, chosen)}
    floats = {
        name: parameter.detach().float().numpy().copy()
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] not in rounded.matrices or not name.endswith(".weight")
    }
    return QuantizedCheckpoint(config, rounded.matrices, floats, tokenizer)
