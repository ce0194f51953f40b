"""Blockwise integer quantization of a weight matrix: pure numpy, in the layout of onnxruntime's `MatMulNBits`.

A weight `[N, K]` (out, in) is cut along K into blocks of `block_size` columns; K is padded with zeros to whole blocks.
Each block has one float32 scale and `block_size` unsigned integers of `bits` bits:

    weight = (q - 2**(bits - 1)) * scale                      symmetric: the zero point is never stored

Layout (`BlockTensor`)
    q       uint8    [N, blocks, block_size * bits / 8]       4 bits: column 2i in the low nibble, 2i+1 in the high
    scales  float32  [N, blocks]

Rounding, to nearest (ties to even):
    8 bits  scale = absmax / 127, q in 1..255.
    4 bits  scale = extreme / -8, where extreme is the value of the largest magnitude *with its sign*, q in 0..15.
            Scales can be negative, and the extreme is represented exactly. It uses all 16 levels, where absmax / 7
            uses 15: on a trained GPT-2 (8.8 M parameters, block 32) the squared error is 22 % lower. It is llama.cpp's
            Q4_0 rule.

What onnxruntime 1.32 on a CPU does with these arrays (the tests ask it again):
    - MatMulNBits (K, N, bits, block_size; inputs A, q, scales and no zero_points) takes 2**(bits-1) as the zero point,
      for K that blocks do not divide too. `q` must have three dimensions; scales may be [N, blocks] or flat, and not
      [N, blocks, 1]. accuracy_level 0 to 3 compute in float32; 4 rounds the activations to int8 per row and block.
      Negative scales are exact at every level.
    - GatherBlockQuantized (gather_axis 0, quantize_axis 2, bits, block_size; inputs q, indices, scales and no
      zero_points) reads the *same* three-dimensional uint8 `q` bit-exactly at 8 and at 4 bits. Its default zero point
      for uint8 data is 2**(bits-1), so none need be given (int4/uint4 data would default to 0). Its scales must have
      the rank of its data: [N, blocks, 1], the same bytes under another shape. It gives [..., blocks, block_size],
      padding included: reshape, then keep the first K columns.
    - Both want a block size that is a power of two and at least 16.

This module knows nothing of models, files and calibration.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chitchat.errors import BadInput

BITS = (4, 8)
LIMITS = {4: (-8, 7), 8: (-127, 127)}  # of the integers, the zero point left out
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, eq=False)
class BlockTensor:
    """A quantized `[N, K]` matrix; the module's docstring gives the layout.

    q: uint8 [N, blocks, block_size * bits / 8]. scales: float32 [N, blocks].
    """

    q: NDArray[np.uint8]
    scales: NDArray[np.float32]
    K: int
    bits: int
    block_size: int

    def __post_init__(self) -> None:
        rows, blocks = self.q.shape[0], -(-self.K // self.block_size)
        blob = self.block_size * self.bits // 8
        if self.q.shape != (rows, blocks, blob) or self.scales.shape != (rows, blocks):
            raise ValueError(
                f"q {self.q.shape} and scales {self.scales.shape} are not [{rows}, {blocks}, {blob}] and "
                f"[{rows}, {blocks}] (K {self.K}, {self.bits} bits, block {self.block_size})"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, K)` of the matrix that it stands for."""
        return self.q.shape[0], self.K

    @property
    def nbytes(self) -> int:
        """Bytes of integers and scales, padding included."""
        return self.q.nbytes + self.scales.nbytes


def check_grid(bits: int, block_size: int) -> None:
    """Raise `BadInput` for bits or a block size that the kernels do not have."""
    if bits not in BITS:
        raise BadInput(f"{bits} bits: there is no such kernel; choose {_listed(BITS)}")
    if block_size not in BLOCK_SIZES:
        raise BadInput(f"--block-size {block_size}: there is no such kernel; choose {_listed(BLOCK_SIZES)}")


def quantize_blocks(weight: NDArray[np.float32], bits: int, block_size: int) -> BlockTensor:
    """Round a float32 `[N, K]` matrix to the nearest integers of its blocks (round-to-nearest, "rtn").

    Raises `BadInput` for bits or block sizes that do not exist and `ValueError` for values that are not finite.
    """
    check_grid(bits, block_size)
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or Inf")
    blocks = to_blocks(np.asarray(weight, dtype=np.float32), block_size)  # [N, blocks, block_size]
    scales = block_scales(blocks, bits)  # [N, blocks]
    return _tensor(round_to(blocks, scales[..., None], bits), scales, weight.shape[1], bits, block_size)


def fake_quantize_blocks(weight: NDArray[np.float32], bits: int, block_size: int) -> NDArray[np.float32]:
    """What `quantize_blocks` would make of a float32 `[N, K]` matrix, as floats: nothing is checked, nothing packed."""
    blocks = to_blocks(weight, block_size)
    scales = block_scales(blocks, bits)[..., None]
    rounded = round_to(blocks, scales, bits)
    rounded *= scales
    return rounded.reshape(len(weight), -1)[:, : weight.shape[1]]


def round_to(values: NDArray[Any], scales: NDArray[Any], bits: int) -> NDArray[Any]:
    """The nearest integers of `values / scales`, zero point left out, as floats: -127..127 or -8..7.

    `scales` broadcasts against `values`; a scale of 0 gives 0.
    """
    integers = values / np.where(scales == 0, values.dtype.type(1), scales)
    np.rint(integers, out=integers)
    return np.clip(integers, *LIMITS[bits], out=integers)


def from_integers(integers: NDArray[Any], scales: NDArray[np.float32], bits: int, block_size: int) -> BlockTensor:
    """The tensor of `integers` [N, K], without their zero point, and `scales` float32 [N, blocks]."""
    return _tensor(to_blocks(integers, block_size), scales, integers.shape[1], bits, block_size)


def _tensor(
    centred: NDArray[Any], scales: NDArray[np.float32], columns: int, bits: int, block_size: int
) -> BlockTensor:
    """`centred` are integers without their zero point, [N, blocks, block_size]."""
    q = (centred + 2 ** (bits - 1)).astype(np.uint8)
    return BlockTensor(pack(q, bits), scales, columns, bits, block_size)


def block_scales(blocks: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Scales `[N, blocks]` of `[N, blocks, block_size]`; 0 for a block of zeros (its integers are the zero point)."""
    if bits == 8:
        return (np.abs(blocks).max(axis=-1) / 127).astype(np.float32)
    at = np.abs(blocks).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(blocks, at, axis=-1)[..., 0]
    return (extreme / np.float32(-8) + np.float32(0)).astype(np.float32)  # + 0 turns -0 into 0


def dequantize_blocks(tensor: BlockTensor) -> NDArray[np.float32]:
    """The float32 `[N, K]` matrix that the integers stand for: `(q - zero point) * scale`, as the kernels do it."""
    centred = unpack(tensor.q, tensor.bits).astype(np.float32) - np.float32(2 ** (tensor.bits - 1))
    weight = (centred * tensor.scales[..., None]).reshape(tensor.q.shape[0], -1)
    return np.ascontiguousarray(weight[:, : tensor.K])


def pack(q: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers one a byte `[..., block_size]` to `[..., block_size * bits / 8]`, low nibble first at 4 bits."""
    return q if bits == 8 else (q[..., 0::2] | (q[..., 1::2] << 4)).astype(np.uint8)


def unpack(q: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The inverse of `pack`."""
    if bits == 8:
        return q
    return np.stack([q & 0x0F, q >> 4], axis=-1).reshape(*q.shape[:-1], -1)


def to_blocks(weight: NDArray[Any], block_size: int) -> NDArray[Any]:
    """`[N, K]` padded with zeros to `[N, blocks, block_size]`; a view where there is nothing to pad."""
    rows, columns = weight.shape
    padding = -columns % block_size
    padded = np.pad(weight, ((0, 0), (0, padding))) if padding else weight
    return padded.reshape(rows, -1, block_size)


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
