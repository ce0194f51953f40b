"""The layers of the graph, each in a float and in quantized forms.

A float linear keeps its weight as [in, out]. A blockwise one (`Blocks`) holds integers [out,
blocks, block_size * bits / 8] uint8 and scales [out, blocks], the layout of onnxruntime's MatMulNBits; the zero point
is 2^(bits - 1). A channelwise one (`Channels`) holds integers [in, out] uint8 with zero point 128, scales [out], and
the scale and zero point of its input, for MatMulIntegerToFloat. The integers come from a quantized checkpoint; nothing
is quantized here. Floats are of the type that the target computes in: float32 on a CPU, float16 on CUDA.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder, nn

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Blocks:
    """How one weight is quantized. `accuracy_level` 4: activations are rounded to int8 by block; 1: float."""

    bits: int
    block_size: int
    accuracy_level: int = 4

    def packed(self, rows: int, columns: int) -> list[int]:
        """Shape of the integers of a [rows, columns] weight; columns are padded to whole blocks."""
        return [rows, -(-columns // self.block_size), self.block_size * self.bits // 8]


@dataclass(frozen=True)
class Channels:
    """A weight of 8 bits with a scale an output channel, and an input that is rounded to 8 bits by a static scale."""

    zero_point: int = 128


Format = Blocks | Channels


class Norm(nn.Module):
    """The parameters of a layer norm; it normalises the sum of what it is given (SkipLayerNormalization)."""

    def __init__(self, width: int, epsilon: float, dtype: ir.DataType) -> None:
        super().__init__()
        self.weight = nn.Parameter([width], dtype=dtype)
        self.bias = nn.Parameter([width], dtype=dtype)
        self.epsilon = epsilon

    def forward(self, op: OpBuilder, stream: "Stream") -> tuple[ir.Value, ir.Value]:
        """Give the normalised sum and the sum itself, both [batch, seq, width]."""
        inputs = [stream.hidden, stream.update, self.weight, self.bias]
        if stream.bias is not None:
            inputs.append(stream.bias)
        normed, _, _, total = op.SkipLayerNormalization(*inputs, epsilon=self.epsilon, _domain=MICROSOFT, _outputs=4)
        return normed, total


@dataclass(frozen=True)
class Stream:
    """The residual stream before its sum: hidden + update + bias. The next norm adds them, in one operator."""

    hidden: ir.Value  # [batch, seq, width]
    update: ir.Value  # [batch, seq, width]
    bias: ir.Value | None  # [width]


class Linear(nn.Module):
    """x [batch, seq, inputs] times a weight; the bias is added here, or left to the consumer (`with_bias` False)."""

    def __init__(self, inputs: int, outputs: int, form: Format | None, with_bias: bool, dtype: ir.DataType) -> None:
        super().__init__()
        self.shape, self.form, self.with_bias, self.dtype = (inputs, outputs), form, with_bias, dtype
        if form is None:
            self.weight = nn.Parameter([inputs, outputs], dtype=dtype)
        elif isinstance(form, Blocks):
            self.qweight = nn.Parameter(form.packed(outputs, inputs), dtype=ir.DataType.UINT8)
            self.scales = nn.Parameter(form.packed(outputs, inputs)[:2], dtype=dtype)
        else:
            self.qweight = nn.Parameter([inputs, outputs], dtype=ir.DataType.UINT8)
            self.scales = nn.Parameter([outputs])
            self.input_scale = nn.Parameter([])
            self.input_zero_point = nn.Parameter([], dtype=ir.DataType.UINT8)
        self.bias = nn.Parameter([outputs], dtype=dtype)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        # CUDA's MatMulNBits takes no bias before onnxruntime 1.32, MatMul never does.
        fused = self.form is not None and self.dtype == ir.DataType.FLOAT
        bias = self.bias if self.with_bias and fused else None
        if self.form is None:
            product = op.MatMul(x, self.weight)
        elif isinstance(self.form, Blocks):
            inputs, outputs = self.shape
            product = matmul_blocks(op, x, self.qweight, self.scales, (outputs, inputs), self.form, bias)
        else:
            product = self._matmul_channels(op, x, bias)
        return op.Add(product, self.bias) if self.with_bias and not fused else product

    def _matmul_channels(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        assert isinstance(self.form, Channels)
        rounded = op.QuantizeLinear(x, self.input_scale, self.input_zero_point)
        zero_point = op.Constant(value=ir.tensor(np.uint8(self.form.zero_point)))
        inputs = [rounded, self.qweight, self.input_scale, self.scales, self.input_zero_point, zero_point]
        return op.MatMulIntegerToFloat(*inputs, *([] if bias is None else [bias]), _domain=MICROSOFT)


class EmbeddingTable(nn.Module):
    """A [rows, width] table: rows are looked up by id; a tied head multiplies by the same parameters."""

    def __init__(self, rows: int, width: int, blocks: Blocks | None, dtype: ir.DataType) -> None:
        super().__init__()
        self.shape, self.blocks, self.dtype = (rows, width), blocks, dtype
        if blocks is None:
            self.weight = nn.Parameter([rows, width], dtype=dtype)
        else:
            self.qweight = nn.Parameter(blocks.packed(rows, width), dtype=ir.DataType.UINT8)
            self.scales = nn.Parameter(blocks.packed(rows, width)[:2], dtype=dtype)

    def forward(self, op: OpBuilder, ids: ir.Value) -> ir.Value:
        """Look up ids [batch, seq]: [batch, seq, width]."""
        if self.blocks is None:
            return op.Gather(self.weight, ids, axis=0)
        count = self.qweight.shape[1]
        rows = op.GatherBlockQuantized(
            self.qweight,
            ids,
            op.Unsqueeze(self.scales, [2]),
            gather_axis=0,
            quantize_axis=2,
            bits=self.blocks.bits,
            block_size=self.blocks.block_size,
            _domain=MICROSOFT,
        )  # [batch, seq, blocks, block_size]
        rows = op.Reshape(rows, [0, 0, count * self.blocks.block_size])
        padded = count * self.blocks.block_size != self.shape[1]
        return op.Slice(rows, [0], [self.shape[1]], [2]) if padded else rows

    def multiply(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """x [batch, n, width] times the transposed table: logits [batch, n, rows], float32 whatever x is."""
        if self.blocks is not None:
            logits = matmul_blocks(op, x, self.qweight, self.scales, self.shape, self.blocks, None)
        else:
            logits = self._multiply_floats(op, x)
        return logits if self.dtype == ir.DataType.FLOAT else op.Cast(logits, to=ir.DataType.FLOAT)

    def _multiply_floats(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        rows, width = self.shape
        shape = op.Concat(op.Shape(x, start=0, end=2), op.Constant(value_ints=[rows]), axis=0)
        flat = op.Reshape(x, [-1, width])
        if self.dtype != ir.DataType.FLOAT:
            return op.Reshape(op.Gemm(flat, self.weight, transB=1), shape)
        # On a CPU the table is the left factor: onnxruntime packs a constant right factor into a second copy, and the
        # table must stay as it is for the look-up. The extra axis keeps it from fusing the transpose, which would swap
        # the two.
        columns = op.Unsqueeze(op.Gemm(self.weight, flat, transB=1), [2])  # [rows, batch * n, 1]
        return op.Reshape(op.Transpose(columns, perm=[1, 2, 0]), shape)


def pad_heads(op: OpBuilder, x: ir.Value, heads: int, size: int, padded: int) -> ir.Value:
    """[batch, seq, heads * size] to [batch, seq, heads * padded]: zeros behind every head."""
    if size == padded:
        return x
    apart = op.Pad(op.Reshape(x, [0, 0, heads, size]), [0, 0, 0, 0, 0, 0, 0, padded - size])
    return op.Reshape(apart, [0, 0, heads * padded])


def trim_heads(op: OpBuilder, x: ir.Value, heads: int, padded: int, size: int) -> ir.Value:
    """The inverse of `pad_heads`."""
    if size == padded:
        return x
    apart = op.Slice(op.Reshape(x, [0, 0, heads, padded]), [0], [size], [3])
    return op.Reshape(apart, [0, 0, heads * size])


def pick(op: OpBuilder, value: ir.Value, rows: ir.Value | None) -> ir.Value:
    """Rows [batch, n, 1] of a value [batch, seq, width]: [batch, n, width]; all of them when `rows` is None."""
    return value if rows is None else op.GatherND(value, rows, batch_dims=1)


def matmul_blocks(
    op: OpBuilder,
    x: ir.Value,
    qweight: ir.Value,
    scales: ir.Value,
    shape: tuple[int, int],
    blocks: Blocks,
    bias: ir.Value | None,
) -> ir.Value:
    """x [batch, seq, K] times the transposed quantized weight [N, K]."""
    inputs = [x, qweight, scales] if bias is None else [x, qweight, scales, None, None, bias]
    return op.MatMulNBits(
        *inputs,
        N=shape[0],
        K=shape[1],
        bits=blocks.bits,
        block_size=blocks.block_size,
        accuracy_level=blocks.accuracy_level,
        _domain=MICROSOFT,
    )


class Head(EmbeddingTable):
    """`lm_head` of a checkpoint that does not tie it to the token table."""

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.multiply(op, x)
