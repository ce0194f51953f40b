"""Which arithmetic a method's name stands for."""

import numpy as np
import pytest

from compress.quantize.blockwise import quantize_blocks
from compress.quantize.channelwise import from_channel_integers, quantize_channels
from compress.quantize.gptq import gptq, gptq_integers
from compress.quantize.methods import CALIBRATED, METHODS, quantize_matrix
from compress.quantize.scales import quantize_searched
from compress.quantize.schemes import Grid

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((12, 96)).astype(np.float32)
INPUTS = RANDOM.standard_normal((400, 96)) @ RANDOM.standard_normal((96, 96))
COVARIANCE = INPUTS.T @ INPUTS / 400


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("known", [True, False])
def test_blocks_are_decided_by_the_method_of_that_name(method: str, known: bool) -> None:
    """Stops a method that quietly does another one's work; a table that nothing multiplies has no covariance."""
    found = quantize_matrix(WEIGHT, Grid(4, 32), method, COVARIANCE if known else None)
    if method == "rtn":
        expected = quantize_blocks(WEIGHT, 4, 32)
    elif method in CALIBRATED and known:
        expected = gptq(WEIGHT, COVARIANCE, 4, 32)
    else:
        expected = quantize_searched(WEIGHT, 4, 32)
    np.testing.assert_array_equal(found.q, expected.q)
    np.testing.assert_array_equal(found.scales, expected.scales)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("known", [True, False])
def test_channels_have_one_scale_a_row(method: str, known: bool) -> None:
    """Stops blocks in a tensor that integer products multiply."""
    found = quantize_matrix(WEIGHT, Grid(8, 0, static_inputs=True), method, COVARIANCE if known else None)
    if method in CALIBRATED and known:
        integers, scales = gptq_integers(WEIGHT, COVARIANCE, 8, 96)
        expected = from_channel_integers(integers, scales[:, 0])
    else:
        expected = quantize_channels(WEIGHT, 0.0, 0.0)
    np.testing.assert_array_equal(found.q, expected.q)
    np.testing.assert_array_equal(found.scales, expected.scales)
