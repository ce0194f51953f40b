"""What a scheme makes of one product, rounding of both sides included, as the runtime's kernels round. In torch.

Two kernels: `MatMulNBits` at accuracy level 4, whose weights are blocks and whose inputs are rounded to 8 bits a row
and block when it runs; and `MatMulIntegerToFloat`, whose weights have a scale an output channel and whose inputs one
static grid. Used to try out scales before anything is decided; what ships is measured on what ships.
"""

import torch
from torch import Tensor

from compress.quantize.blockwise import fake_quantize_blocks
from compress.quantize.channelwise import dequantize_channels, quantize_channels


def block_product(inputs: Tensor, weight: Tensor, bits: int, block_size: int) -> Tensor:
    """[rows, in] times [in, out] with blocks of `bits` bits and inputs of 8 bits; float32 [rows, out]."""
    stored = torch.from_numpy(fake_quantize_blocks(weight.T.contiguous().numpy(), bits, block_size))
    return round_rows(inputs, block_size) @ stored.T


def channel_product(inputs: Tensor, weight: Tensor) -> Tensor:
    """[rows, in] times [in, out], both of 8 bits, the grid of the inputs taken from themselves; float32 [rows, out]."""
    low, high = (float(value) for value in torch.aminmax(inputs))
    stored = quantize_channels(weight.T.contiguous().numpy(), low, high)
    scale, zero = float(stored.input_scale), float(stored.input_zero_point)
    rounded = ((inputs / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    return rounded @ torch.from_numpy(dequantize_channels(stored)).T


def round_rows(inputs: Tensor, block_size: int) -> Tensor:
    """float32 [rows, in] rounded to -127..127 with a scale for each row and block."""
    padded = torch.nn.functional.pad(inputs, (0, -inputs.shape[1] % block_size))
    blocks = padded.unflatten(1, (-1, block_size))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    rounded = (blocks / torch.where(scale == 0, 1.0, scale)).round() * scale
    return rounded.flatten(1)[:, : inputs.shape[1]]
