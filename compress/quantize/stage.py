"""`compress quantize`: checkpoint to quantized checkpoint, and what that did to held-out conversations.

Schemes: `w8`, 8-bit integers everywhere; `w4`, 4 bits in the linear layers and 8 in the tables, since a 4-bit table of
tokens triples the loss for a small gain in size; `w8a8`, 8-bit weights and 8-bit activations in the linear layers, for
integer products, and w8's tables. Methods: `rtn`, every weight to the nearest integer, without data; the ranges of
w8a8's activations come from training conversations. The data set's held-out part is read to measure the result.

Weight bytes are those of weight matrices and tables, counted as float32: LayerNorms and biases, which stay float32, are
not among them (in a tiny model they are more than 5 % of everything, in GPT-2 0.1 %).
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from chitchat.checkpoint import check_vocabulary, load_model, load_tokenizer
from chitchat.data.dataset import open_dataset
from chitchat.errors import BadInput, WorkFailed
from chitchat.folder import check_output, staged_folder
from chitchat.lineage import Stage, identity
from compress.calibration import CALIBRATION_TOKENS, calibration_sequences, check_same_tokenizer, measure
from compress.quantize.activations import Range, input_ranges
from compress.quantize.blockwise import BlockTensor, check_grid, quantize_blocks
from compress.quantize.channelwise import KERNEL, quantize_channels
from compress.quantize.checkpoint import (
    QUANT_METHOD,
    WEIGHTS,
    QuantizedCheckpoint,
    QuantizedTensor,
    is_conv1d,
    matrix_shapes,
    save_quantized,
)

LEAST_SHARE = 0.95
METHODS = ("rtn",)


@dataclass(frozen=True)
class Scheme:
    """Bits of the linear layers and of the tables (token and position embeddings, an untied head).

    `block_size`: how many weights share a scale unless the user says. Larger is faster and smaller, and at 8 bits loses
    next to nothing; at 4 bits it does. `static_inputs`: the linear layers round their inputs too, to 8 bits by ranges
    known beforehand.
    """

    bits: int
    table_bits: int
    block_size: int
    static_inputs: bool = False


SCHEMES = {"w8": Scheme(8, 8, 128), "w8a8": Scheme(8, 8, 128, static_inputs=True), "w4": Scheme(4, 8, 64)}


def quantize(
    checkpoint: str,
    data: Path,
    out: Path,
    scheme: str = "w8",
    method: str = "rtn",
    block_size: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the quantized checkpoint `out`, print the bytes that were quantized, and return its figures.

    `block_size` None takes the scheme's own, and a smaller one where that does not divide a matrix's rows.
    Raises `BadInput` for a scheme, method or block size that does not exist, a checkpoint that is quantized already or
    holds NaN or Inf, and a data set of another tokenizer; `WorkFailed` when less than 95 % of the weight bytes could be
    quantized. `seed` draws the conversations that w8a8 is calibrated on; rounding draws nothing.
    """
    started = time.monotonic()
    check_options(scheme, method, block_size)
    check_output(out, "checkpoint")
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    opened = open_dataset(data)
    check_vocabulary(tokenizer, model.config.to_dict(), checkpoint)
    check_same_tokenizer(opened, tokenizer, checkpoint)
    check_finite(model, checkpoint)

    ranges = None
    if SCHEMES[scheme].static_inputs:
        windows = opened.windows("train", model.config.n_positions)
        ranges = input_ranges(model, calibration_sequences(windows, CALIBRATION_TOKENS, seed))
    size = block_size or SCHEMES[scheme].block_size
    sizes = fitting_blocks(model.config.to_dict(), size) if block_size is None else {}
    quantized = round_model(model, tokenizer, scheme, method, size, sizes, ranges)
    done, total = count_weight_bytes(model, quantized.matrices)
    print(f"{done:,} of {total:,} weight bytes quantized")
    if done < LEAST_SHARE * total:
        raise WorkFailed(f"{checkpoint}: only {done / total:.1%} of the weight bytes could be quantized, not 95 %")
    metrics = {
        "before": measure(model, model, opened),
        "after": measure(quantized.dequantized_model(), model, opened),
        "weight_bytes_quantized": done,
        "weight_bytes": total,
    }
    options = {"scheme": scheme, "method": method, "block_size": size}
    parent = identity(Path(checkpoint)) if Path(checkpoint).is_dir() else None
    with staged_folder(out, "checkpoint") as staging:
        model.generation_config.save_pretrained(staging)
        stage = Stage("quantize", options, seed, parent, opened.identity, metrics)
        save_quantized(staging, quantized, stage, parent=checkpoint)
    minutes = (time.monotonic() - started) / 60
    return {**options, **_figures(metrics), "file_mb": (out / WEIGHTS).stat().st_size / 1e6, "minutes": minutes}


def fitting_blocks(config: Mapping[str, Any], block_size: int) -> dict[str, int]:
    """Block sizes of the modules whose rows `block_size` does not divide: the largest half, quarter, … that does.

    Padding would be stored and multiplied. A row that no block of at least 16 divides keeps `block_size` and is padded.
    """
    sizes = {}
    for name, (_, columns) in matrix_shapes(config):
        size = block_size
        while columns % size and size > 16:
            size //= 2
        if size != block_size and columns % size == 0:
            sizes[name] = size
    return sizes


def check_options(scheme: str, method: str, block_size: int | None) -> None:
    """Raise `BadInput` for what does not exist; the line names what does."""
    if scheme not in SCHEMES:
        raise BadInput(f"--scheme {scheme}: there is no such scheme; choose {', '.join(SCHEMES)}")
    if method not in METHODS:
        raise BadInput(f"--method {method}: there is no such method; choose {', '.join(METHODS)}")
    check_grid(SCHEMES[scheme].bits, block_size or SCHEMES[scheme].block_size)


def check_finite(model: GPT2LMHeadModel, checkpoint: str) -> None:
    """Raise `BadInput`, naming the tensor, when a parameter holds NaN or Inf."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise BadInput(f"{checkpoint}: {name} holds NaN or Inf; train it again, or take an earlier checkpoint")


def round_model(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    scheme: str,
    method: str,
    block_size: int,
    block_sizes: Mapping[str, int] | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> QuantizedCheckpoint:
    """Quantize every weight matrix and table of `model` to the nearest integers.

    `block_sizes` has those of modules, by name, that differ from `block_size`; `ranges` the inputs of every linear
    layer (`input_ranges`), which w8a8 needs.
    """
    config, bits = model.config.to_dict(), SCHEMES[scheme]
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    matrices: dict[str, QuantizedTensor] = {}
    for name, _ in tqdm(list(matrix_shapes(config)), desc="quantizing", unit="matrix", disable=None):
        matrix, size = weights.pop(f"{name}.weight").numpy(), (block_sizes or {}).get(name, block_size)
        if is_conv1d(name) and bits.static_inputs:
            matrices[name] = quantize_channels(matrix.T, *(ranges or {})[name])
        elif is_conv1d(name):
            matrices[name] = quantize_blocks(matrix.T, bits.bits, size)
        else:
            matrices[name] = quantize_blocks(matrix, bits.table_bits, size)
    blocks = {name: tensor.block_size for name, tensor in matrices.items() if isinstance(tensor, BlockTensor)}
    others = {name: size for name, size in blocks.items() if size != block_size}
    config["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "scheme": scheme,
        "method": method,
        "bits": bits.bits,
        "table_bits": bits.table_bits,
        "block_size": block_size,
        "symmetric": True,
        **({"block_sizes": others} if others else {}),
        **({"activation_bits": 8, "kernel": KERNEL} if bits.static_inputs else {}),
    }
    floats = {name: weight.numpy().copy() for name, weight in weights.items()}
    return QuantizedCheckpoint(config, matrices, floats, tokenizer)


def count_weight_bytes(model: GPT2LMHeadModel, matrices: Mapping[str, QuantizedTensor]) -> tuple[int, int]:
    """`(quantized, all)` float32 bytes of the model's matrices and tables; a tied table counts once.

    All is counted on the model itself, so that a matrix which the quantizer does not know shows.
    """
    total = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2)
    return sum(4 * math.prod(tensor.shape) for tensor in matrices.values()), total


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    before, after = metrics["before"], metrics["after"]
    return {
        "weight_bytes_quantized": metrics["weight_bytes_quantized"],
        "weight_bytes": metrics["weight_bytes"],
        "perplexity_before": before["perplexity"],
        "perplexity": after["perplexity"],
        "bits_per_byte_before": before["bits_per_byte"],
        "bits_per_byte": after["bits_per_byte"],
        "kl": after["kl"],
        "top1": after["top1"],
    }
