"""How the integers of one matrix are decided, by name: the door from a method to the arithmetic behind it.

rtn     every weight to the nearest integer, the scale from the largest of its block; no data
mse     the scale of every block searched; no data
gptq    channels rescaled first, layer after layer fitted to the original and rounded with the covariance of its
        inputs; training conversations
kd      gptq, then a short fine-tune through the rounding
"""

import numpy as np
from numpy.typing import NDArray

from chitchat.system.notices import log
from compress.quantize.blockwise import quantize_blocks
from compress.quantize.channelwise import from_channel_integers, quantize_channels
from compress.quantize.checkpoint import QuantizedTensor
from compress.quantize.gptq import SingularHessian, gptq, gptq_integers
from compress.quantize.scales import quantize_searched
from compress.quantize.schemes import Grid

CALIBRATED = ("gptq", "kd")

Floats = NDArray[np.float32]


def quantize_matrix(
    weight: Floats, grid: Grid, method: str, covariance: NDArray[np.float64] | None = None
) -> QuantizedTensor:
    """The integers of a float32 `[N, K]` matrix on `grid`; gptq (and kd, which begins with it) wants a covariance.

    Without one, a table that nothing multiplies, it searches scales. A channelwise tensor has no grid of its input yet.
    Raises `SingularHessian` where gptq cannot tell the inputs apart.
    """
    if grid.static_inputs:
        if method not in CALIBRATED or covariance is None:
            return quantize_channels(weight, 0.0, 0.0)
        integers, scales = gptq_integers(weight, covariance, 8, weight.shape[1])
        return from_channel_integers(integers, scales[:, 0])
    if method == "rtn":
        return quantize_blocks(weight, grid.bits, grid.block_size)
    if method == "mse" or covariance is None:
        return quantize_searched(weight, grid.bits, grid.block_size)
    return gptq(weight, covariance, grid.bits, grid.block_size)


def quantize_matrix_or_search(
    name: str, weight: Floats, grid: Grid, method: str, covariance: NDArray[np.float64] | None
) -> QuantizedTensor:
    """`quantize_matrix`; where the inputs of `name` are all alike it says so and takes the method that needs none."""
    try:
        return quantize_matrix(weight, grid, method, covariance)
    except SingularHessian as error:
        log.warning(
            f"{name}: gptq cannot tell its inputs apart ({error}), so it is rounded by mse; "
            "calibrate on more conversations (--data)"
        )
        return quantize_matrix(weight, grid, "mse")
