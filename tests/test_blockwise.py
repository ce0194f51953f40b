"""Blockwise quantization: against a float64 reference, and against onnxruntime's own kernels."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from chitchat.errors import BadInput
from compress.quantize.blockwise import BlockTensor, dequantize_blocks, pack, quantize_blocks, unpack

GRIDS = [(8, 32), (4, 32), (8, 16), (4, 128)]


def random_weight(rows: int = 24, columns: int = 96, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def reference(weight: NDArray[np.float32], bits: int, block_size: int) -> NDArray[np.float64]:
    """The rounded weight, block by block in float64, written as plainly as possible."""
    out = np.zeros(weight.shape)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], block_size):
            block = weight[row, start : start + block_size].astype(np.float64)
            extreme = max(block, key=abs)
            scale = abs(extreme) / 127 if bits == 8 else extreme / -8
            if scale:
                level = np.clip(np.rint(block / scale), -127 if bits == 8 else -8, 127 if bits == 8 else 7)
                out[row, start : start + block_size] = level * scale
    return out


def run_node(op: str, feeds: dict[str, Any], weights: dict[str, Any], **attributes: int) -> NDArray[np.float32]:
    """One com.microsoft node with constant weights, run by onnxruntime."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    names = ["x", "q", "scales"] if op == "MatMulNBits" else ["q", "x", "scales"]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)],
        "one_node",
        [helper.make_tensor_value_info(name, kinds[array.dtype], array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize(("bits", "block_size"), GRIDS)
@pytest.mark.parametrize("columns", [96, 80, 7])
def test_rounding_equals_a_float64_reference(bits: int, block_size: int, columns: int) -> None:
    """Stops a wrong scale, a wrong clip, and padding that leaks into the last block."""
    weight = random_weight(columns=columns)
    tensor = quantize_blocks(weight, bits, block_size)
    np.testing.assert_allclose(dequantize_blocks(tensor), reference(weight, bits, block_size), rtol=1e-6, atol=1e-7)
    assert tensor.q.dtype == np.uint8
    assert tensor.scales.dtype == np.float32
    assert tensor.q.shape == (24, -(-columns // block_size), block_size * bits // 8)


@pytest.mark.parametrize(("bits", "block_size"), GRIDS)
@pytest.mark.parametrize("columns", [96, 80])
def test_onnxruntime_multiplies_by_the_same_matrix(bits: int, block_size: int, columns: int) -> None:
    """Stops nibbles in the wrong order and a zero point that the kernel does not imply."""
    tensor = quantize_blocks(random_weight(columns=columns), bits, block_size)
    x = random_weight(5, columns, seed=1)
    got = run_node(
        "MatMulNBits",
        {"x": x},
        {"q": tensor.q, "scales": tensor.scales},
        **{"K": columns, "N": 24, "bits": bits, "block_size": block_size, "accuracy_level": 1},
    )
    np.testing.assert_allclose(got, x @ dequantize_blocks(tensor).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bits", "block_size"), GRIDS)
@pytest.mark.parametrize("columns", [96, 80])
def test_onnxruntime_looks_up_rows_in_the_same_table(bits: int, block_size: int, columns: int) -> None:
    """Stops a tied table that embeds one matrix and predicts with another (the default zero point differs by type)."""
    tensor = quantize_blocks(random_weight(columns=columns), bits, block_size)
    ids = np.array([[0, 23], [7, 7]], dtype=np.int64)
    got = run_node(
        "GatherBlockQuantized",
        {"x": ids},
        {"q": tensor.q, "scales": tensor.scales[..., None]},
        **{"bits": bits, "block_size": block_size, "gather_axis": 0, "quantize_axis": 2},
    )
    assert got.shape == (2, 2, tensor.q.shape[1], block_size)
    np.testing.assert_array_equal(got.reshape(2, 2, -1)[..., :columns], dequantize_blocks(tensor)[ids])


def test_onnxruntime_level_4_takes_negative_scales() -> None:
    """Stops a sign lost in the integer kernel that ships: 4-bit scales are negative in half of the blocks."""
    tensor = quantize_blocks(random_weight(), 4, 32)
    assert (tensor.scales < 0).any()
    assert (tensor.scales > 0).any()
    x = random_weight(5, seed=1)
    got = run_node(
        "MatMulNBits",
        {"x": x},
        {"q": tensor.q, "scales": tensor.scales},
        **{"K": 96, "N": 24, "bits": 4, "block_size": 32, "accuracy_level": 4},
    )
    exact = x @ dequantize_blocks(tensor).T
    assert np.abs(got - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantizing_twice_changes_nothing(bits: int) -> None:
    """Stops drift when a de-quantized model is quantized again."""
    once = quantize_blocks(random_weight(), bits, 32)
    again = quantize_blocks(dequantize_blocks(once), bits, 32)
    np.testing.assert_array_equal(once.q, again.q)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_block_of_zeros_stays_zero(bits: int) -> None:
    """Stops a division by a zero scale; the integers must be the zero point, which the kernel reads as 0."""
    weight = random_weight()
    weight[3, 32:64] = 0
    tensor = quantize_blocks(weight, bits, 32)
    assert np.isfinite(tensor.scales).all()
    assert (dequantize_blocks(tensor)[3, 32:64] == 0).all()
    assert (unpack(tensor.q, bits)[3, 1] == 2 ** (bits - 1)).all()


def test_the_smallest_and_largest_weights_survive() -> None:
    """Stops overflow to Inf and scales that underflow into NaN."""
    for magnitude in (1e-44, 1e-38, 3e38):
        weight = np.full((2, 32), magnitude, dtype=np.float32)
        for bits in (8, 4):
            assert np.isfinite(dequantize_blocks(quantize_blocks(weight, bits, 32))).all()


def test_unpack_is_the_inverse_of_pack() -> None:
    """Stops nibbles that trade places on the way to the disk and back."""
    q = np.random.default_rng(0).integers(0, 16, (3, 2, 32)).astype(np.uint8)
    np.testing.assert_array_equal(unpack(pack(q, 4), 4), q)
    assert pack(q, 4)[0, 0, 0] == q[0, 0, 0] + 16 * q[0, 0, 1]


@pytest.mark.parametrize(("bits", "block_size", "word"), [(3, 32, "4, 8"), (8, 24, "16, 32"), (8, 0, "16, 32")])
def test_a_grid_without_a_kernel_is_refused(bits: int, block_size: int, word: str) -> None:
    """Stops a checkpoint that no kernel can run; the message says what exists."""
    with pytest.raises(BadInput, match=word):
        quantize_blocks(random_weight(), bits, block_size)


def test_a_tensor_of_other_shapes_is_refused() -> None:
    """Stops a truncated array from being read as a smaller matrix."""
    good = quantize_blocks(random_weight(), 8, 32)
    with pytest.raises(ValueError, match="are not"):
        BlockTensor(good.q[:, :2], good.scales, 96, 8, 32)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    """Stops NaN from turning silently into the integer 0."""
    weight = random_weight()
    weight[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        quantize_blocks(weight, 8, 32)
