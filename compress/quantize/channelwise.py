"""Channelwise 8-bit quantization for integer products (w8a8): pure numpy, in the layout of `MatMulIntegerToFloat`.

A weight `[N, K]` (out, in) has one float32 scale an output channel, and what it is multiplied by has one static scale
and zero point for the whole tensor, so that a row's result depends neither on its neighbours nor on how a prompt was
cut. Both sides are unsigned bytes:

    weight[n, k] = (q[k, n] - 128) * scales[n]                              q in 1..255, rounded to nearest
    x = (a - input_zero_point) * input_scale,  a = clip(rint(x / input_scale) + input_zero_point, 0, 255)

Layout (`ChannelTensor`)
    q                 uint8    [K, N]   the right factor as it is multiplied; Conv1D's order, not `BlockTensor`'s
    scales            float32  [N]
    input_scale       float32  scalar
    input_zero_point  uint8    scalar

Why unsigned: on a CPU with AVX2 and no VNNI, onnxruntime's u8 x s8 kernel adds pairs of products in 16 bits and
saturates (255 * 127 * 2 > 32767; DynamicQuantizeMatMul is off by a factor of two on a row of maxima), and s8 x s8 runs
twenty times slower. u8 x u8 widens to 16 bits first: exact on every x86 CPU, as fast for one row, faster for a few rows
and some 20 % slower for 64. The alternative, u8 x s8 with weights of 7 bits, costs a bit of every weight.

This module knows nothing of models, files and calibration.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

KERNEL = "u8u8"  # recorded in a checkpoint's quantization_config
ZERO_POINT = 128


@dataclass(frozen=True, eq=False)
class ChannelTensor:
    """A quantized `[N, K]` matrix and the grid of its input; the module's docstring gives the layout."""

    q: NDArray[np.uint8]
    scales: NDArray[np.float32]
    input_scale: NDArray[np.float32]
    input_zero_point: NDArray[np.uint8]

    def __post_init__(self) -> None:
        fits = self.q.ndim == 2 and self.scales.shape == self.q.shape[1:]
        if not fits or self.input_scale.shape or self.input_zero_point.shape:
            raise ValueError(
                f"q {self.q.shape}, scales {self.scales.shape}, input {self.input_scale.shape} and "
                f"{self.input_zero_point.shape} are not [K, N], [N] and two scalars"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, K)` of the matrix that it stands for."""
        return self.q.shape[1], self.q.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of integers and scales."""
        return self.q.nbytes + self.scales.nbytes + self.input_scale.nbytes + self.input_zero_point.nbytes


def quantize_channels(weight: NDArray[np.float32], low: float, high: float) -> ChannelTensor:
    """Round a float32 `[N, K]` matrix whose inputs lie in [low, high] (inputs beyond are clipped to that range).

    Raises `ValueError` for values that are not finite.
    """
    if not (np.isfinite(weight).all() and np.isfinite([low, high]).all()):
        raise ValueError("the weight or the range of its input holds NaN or Inf")
    scales = (np.abs(weight).max(axis=1, initial=0) / 127).astype(np.float32)  # [N]
    safe = np.where(scales == 0, np.float32(1), scales)
    q = np.clip(np.rint(weight.T / safe), -127, 127).astype(np.int16) + ZERO_POINT
    scale, zero_point = input_grid(low, high)
    return ChannelTensor(np.ascontiguousarray(q.astype(np.uint8)), scales, scale, zero_point)


def from_channel_integers(integers: NDArray[Any], scales: NDArray[np.float32]) -> ChannelTensor:
    """The tensor of `integers` [N, K] in -127..127 and `scales` float32 [N]; its inputs have no grid yet."""
    q = np.ascontiguousarray((integers.T + ZERO_POINT).astype(np.uint8))
    scale, zero_point = input_grid(0.0, 0.0)
    return ChannelTensor(q, scales, scale, zero_point)


def with_input_range(tensor: ChannelTensor, low: float, high: float) -> ChannelTensor:
    """The same integers for inputs in [low, high]."""
    return ChannelTensor(tensor.q, tensor.scales, *input_grid(low, high))


def input_grid(low: float, high: float) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scale and zero point of the 256 levels over [low, high]; zero is always a level, so that zeros stay zeros."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.asarray((high - low) / 255 or 1.0, dtype=np.float32)
    return scale, np.asarray(np.clip(np.rint(-low / scale), 0, 255), dtype=np.uint8)


def dequantize_channels(tensor: ChannelTensor) -> NDArray[np.float32]:
    """The float32 `[N, K]` matrix that the integers stand for."""
    centred = tensor.q.astype(np.float32) - np.float32(ZERO_POINT)
    return np.ascontiguousarray((centred * tensor.scales).T)
