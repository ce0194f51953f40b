"""Which arithmetic decides the integers of a matrix, by method and grid."""

import numpy as np
import pytest

from compress.quantize.blockwise import quantize_blocks
from compress.quantize.channelwise import dequantize_channels, quantize_channels
from compress.quantize.gptq import gptq, gptq_integers
from compress.quantize.methods import quantize_matrix, quantize_matrix_or_search
from compress.quantize.scales import quantize_searched
from compress.quantize.schemes import Grid

W4, W8A8 = Grid(4, 32), Grid(8, 96, static_inputs=True)
WEIGHT = np.random.default_rng(0).normal(size=(24, 96)).astype(np.float32)
INPUTS = np.random.default_rng(1).normal(0.5, 1.0, (400, 96)) @ np.random.default_rng(2).normal(size=(96, 96)) / 10
COVARIANCE = INPUTS.T @ INPUTS / len(INPUTS)


def same(a: object, b: object) -> bool:
    """Whether two tensors have the same arrays."""
    left, right = vars(a), vars(b)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("method", "covariance", "expected"),
    [
        ("rtn", None, quantize_blocks(WEIGHT, 4, 32)),
        ("rtn", COVARIANCE, quantize_blocks(WEIGHT, 4, 32)),
        ("mse", COVARIANCE, quantize_searched(WEIGHT, 4, 32)),
        ("gptq", None, quantize_searched(WEIGHT, 4, 32)),
        ("gptq", COVARIANCE, gptq(WEIGHT, COVARIANCE, 4, 32)),
        ("kd", COVARIANCE, gptq(WEIGHT, COVARIANCE, 4, 32)),
    ],
    ids=["rtn", "rtn with data", "mse with data", "gptq of a table", "gptq", "kd"],
)
def test_blocks_are_decided_by_the_method(method: str, covariance: np.ndarray | None, expected: object) -> None:
    """Stops a method that quietly is another one: the file looks the same, only its quality does not."""
    assert same(quantize_matrix(WEIGHT, W4, method, covariance), expected)


@pytest.mark.parametrize("method", ["rtn", "mse", "gptq", "kd"])
@pytest.mark.parametrize("known", [True, False])
def test_channels_are_fitted_by_gptq_and_rounded_by_the_others(method: str, known: bool) -> None:
    """Stops scales of another channel for the integers that gptq decided."""
    found = quantize_matrix(WEIGHT, W8A8, method, COVARIANCE if known else None)
    if known and method in ("gptq", "kd"):
        integers, scales = gptq_integers(WEIGHT, COVARIANCE, 8, 96)
        assert scales.shape == (24, 1)
        np.testing.assert_allclose(dequantize_channels(found), integers * scales, rtol=1e-6)
        assert np.abs(dequantize_channels(found) - WEIGHT).max() < 0.1
    else:
        assert same(found, quantize_channels(WEIGHT, 0.0, 0.0))


def test_where_inputs_are_all_alike_scales_are_searched_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Stops a run of minutes from ending at one layer that calibration never reached."""
    dead = np.zeros((96, 96))
    found = quantize_matrix_or_search("layer 3", WEIGHT, W4, "gptq", dead)
    assert same(found, quantize_searched(WEIGHT, 4, 32))
    assert caplog.messages[0].startswith("layer 3: gptq cannot tell its inputs apart (")
    caplog.clear()
    assert same(quantize_matrix_or_search("x", WEIGHT, W4, "gptq", COVARIANCE), gptq(WEIGHT, COVARIANCE, 4, 32))
    assert not caplog.messages
