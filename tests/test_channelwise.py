"""Channelwise integers: the arithmetic, and what onnxruntime makes of them on this CPU."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantize.channelwise import (
    ChannelTensor,
    dequantize_channels,
    from_channel_integers,
    input_grid,
    quantize_channels,
    with_input_range,
)


def quantize_input(tensor: ChannelTensor, x: np.ndarray) -> np.ndarray:
    """What x stands for after the rounding that the product gives it: float32, the shape of x."""
    zero_point = np.float32(tensor.input_zero_point)
    levels = np.clip(np.rint(x / tensor.input_scale) + zero_point, 0, 255)
    return ((levels - zero_point) * tensor.input_scale).astype(np.float32)


def random_weight(rows: int = 24, columns: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def product(tensor: ChannelTensor, x: np.ndarray) -> np.ndarray:
    """x [rows, K] times the tensor as the graph multiplies it, by onnxruntime."""
    arrays = {"scale": tensor.input_scale, "zero": tensor.input_zero_point, "q": tensor.q, "scales": tensor.scales}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["a"]),
        helper.make_node(
            "MatMulIntegerToFloat", ["a", "q", "scale", "scales", "zero", "centre"], ["y"], domain="com.microsoft"
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", tensor.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (arrays | {"centre": np.uint8(128)}).items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
@pytest.mark.parametrize("columns", [768, 61])
@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_sums_of_the_largest_integers_are_exact(rows: int, columns: int, weight: float, value: float) -> None:
    """u8 x s8 kernels saturate in 16 bits on CPUs without VNNI: the sum of a row of maxima comes out at half."""
    tensor = quantize_channels(np.full((33, columns), weight, dtype=np.float32), -1.0, 1.0)
    assert set(tensor.q.ravel().tolist()) == {255 if weight > 0 else 1}
    x = np.full((rows, columns), value, dtype=np.float32)
    exact = quantize_input(tensor, x).astype(np.float64) @ dequantize_channels(tensor).T.astype(np.float64)
    assert abs(exact[0, 0]) > 0.99 * columns
    np.testing.assert_allclose(product(tensor, x), exact, rtol=1e-6)


def test_alternating_extremes_are_exact() -> None:
    """Pairs of products that cancel in the sum and overflow on the way."""
    weight = np.where(np.arange(256) % 4 < 2, 1.0, -1.0).astype(np.float32)
    tensor = quantize_channels(np.stack([weight, -weight, np.roll(weight, 1)]), -0.1, 1.0)
    x = np.stack([np.ones(256), np.arange(256) % 2, -0.1 * np.ones(256)]).astype(np.float32)
    exact = quantize_input(tensor, x).astype(np.float64) @ dequantize_channels(tensor).T.astype(np.float64)
    np.testing.assert_allclose(product(tensor, x), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("columns", [96, 97])
def test_onnxruntime_computes_what_the_integers_stand_for(columns: int) -> None:
    """A scale of the wrong axis or a zero point on the wrong side gives numbers of the right size."""
    tensor = quantize_channels(random_weight(columns=columns), -2.0, 3.0)
    x = random_weight(7, columns, seed=1)
    exact = quantize_input(tensor, x).astype(np.float64) @ dequantize_channels(tensor).T.astype(np.float64)
    np.testing.assert_allclose(product(tensor, x), exact, rtol=1e-5, atol=1e-5)


def test_a_row_is_the_same_bit_for_bit_alone_and_beside_others() -> None:
    """Scales taken from the batch, as in dynamic quantization, let neighbours change a reply."""
    tensor = quantize_channels(random_weight(), -2.0, 3.0)
    x = random_weight(9, 96, seed=1) * 3
    whole = product(tensor, x)
    for count in (1, 2, 5):
        np.testing.assert_array_equal(product(tensor, x[:count]), whole[:count])


def test_the_error_of_a_weight_is_at_most_half_a_step() -> None:
    """Truncation instead of rounding doubles the error and shifts every sum."""
    weight = random_weight()
    tensor = quantize_channels(weight, -1, 1)
    assert tensor.q.shape == (96, 24)
    assert tensor.shape == weight.shape
    error = np.abs(dequantize_channels(tensor) - weight)
    assert (error <= tensor.scales[:, None] * 0.5001).all()
    np.testing.assert_allclose(np.abs(dequantize_channels(tensor)).max(axis=1), np.abs(weight).max(axis=1), rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-0.17, 5.5)])
def test_zero_is_a_level_of_every_grid(low: float, high: float) -> None:
    """Padding and dead activations would add a constant to every sum."""
    tensor = quantize_channels(random_weight(), low, high)
    assert quantize_input(tensor, np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    scale, zero_point = input_grid(low, high)
    assert (255 - float(zero_point)) * scale >= high - scale
    assert -float(zero_point) * scale <= low + scale


def test_a_channel_of_zeros_stays_zero() -> None:
    """A division by a zero scale would make NaN of a pruned channel."""
    weight = random_weight()
    weight[3] = 0
    tensor = quantize_channels(weight, -1, 1)
    assert (dequantize_channels(tensor)[3] == 0).all()
    assert np.isfinite(product(tensor, random_weight(2, 96))).all()


def test_what_is_not_finite_is_refused() -> None:
    """NaN would turn silently into an integer."""
    weight = random_weight()
    with pytest.raises(ValueError, match="NaN"):
        quantize_channels(weight, 0, float("inf"))
    weight[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        quantize_channels(weight, -1, 1)


def test_every_integer_is_the_nearest_of_its_row() -> None:
    """Stops a scale of another row, a level that is left unused, and rows and columns that are exchanged."""
    weight = random_weight(5, 7) * np.array([[1e-3], [1], [40], [0], [2]], dtype=np.float32)
    tensor = quantize_channels(weight, -1.5, 0.5)
    for row, values in enumerate(weight.astype(np.float64)):
        scale = abs(values).max() / 127
        assert tensor.scales[row] == pytest.approx(scale, rel=1e-6)
        for column, value in enumerate(values):
            nearest = round(value / float(tensor.scales[row])) if scale else 0
            assert int(tensor.q[column, row]) - 128 == nearest
            assert dequantize_channels(tensor)[row, column] == pytest.approx(nearest * scale, rel=1e-6)
    assert (float(tensor.input_scale), int(tensor.input_zero_point)) == (pytest.approx(2 / 255), 191)
    assert tensor.nbytes == 35 + 4 * 5 + 4 + 1


def test_integers_that_were_decided_elsewhere_stay_what_they_are() -> None:
    """GPTQ decides every integer; the tensor must hold those, and take its input's range later."""
    integers = np.random.default_rng(0).integers(-127, 128, (6, 9))
    integers[0, :2] = -127, 127
    scales = np.linspace(0.1, 0.6, 6).astype(np.float32)
    tensor = from_channel_integers(integers, scales)
    assert (tensor.q.shape, tensor.shape, tensor.q.flags["C_CONTIGUOUS"]) == ((9, 6), (6, 9), True)
    np.testing.assert_allclose(dequantize_channels(tensor), integers * scales[:, None], rtol=1e-6)
    assert (float(tensor.input_scale), int(tensor.input_zero_point)) == (1.0, 0)
    ranged = with_input_range(tensor, -1.0, 3.0)
    assert ranged.q is tensor.q
    assert (float(ranged.input_scale), int(ranged.input_zero_point)) == (pytest.approx(4 / 255), 64)


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    """A truncated array would be read as a smaller matrix."""
    good = quantize_channels(random_weight(), -1, 1)
    with pytest.raises(ValueError, match="are not"):
        ChannelTensor(good.q[:, :5], good.scales, good.input_scale, good.input_zero_point)
    with pytest.raises(ValueError, match="are not"):
        ChannelTensor(good.q, good.scales, good.scales, good.input_zero_point)
