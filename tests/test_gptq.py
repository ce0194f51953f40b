"""GPTQ against its definition in float64, and what every further step of it may never do."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from chitchat.errors import BadInput
from compress.quantize.blockwise import LIMITS, dequantize_blocks, quantize_blocks
from compress.quantize.gptq import SingularHessian, gptq, gptq_integers, loss
from compress.quantize.scales import per_column, quantize_searched, search_scales

GRIDS = [(4, 32), (4, 64), (8, 32)]


WIDE = 320  # columns: several groups of those that are rounded one by one


def problem(rows: int = 24, columns: int = 70, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A matrix whose columns do not fill their last block, and the covariance of inputs that hang together."""
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((rows, columns)) * 0.1).astype(np.float32)
    mixing = random.standard_normal((columns, columns)) * np.exp(0.7 * random.standard_normal(columns))
    inputs = random.standard_normal((4 * columns, columns)) @ mixing
    return weight, inputs.T @ inputs / len(inputs)


def damp(hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    return hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(len(hessian))


def by_definition(weight: NDArray[np.float32], hessian: NDArray[np.float64], steps: NDArray[np.float32], bits: int):
    """Optimal Brain Quantization in a fixed order, float64: each column is eliminated from H^-1, no Cholesky factor."""
    left, inverse = weight.astype(np.float64), np.linalg.inv(hessian)
    integers = np.zeros_like(left)
    for k in np.argsort(-np.diagonal(hessian), kind="stable"):
        integers[:, k] = np.clip(np.rint(left[:, k] / steps[:, k]), *LIMITS[bits])
        error = (left[:, k] - integers[:, k] * steps[:, k]) / inverse[k, k]
        left -= np.outer(error, inverse[k])
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        inverse[k, k] = 1.0  # gone; only kept away from a division by zero
        inverse[k, :k] = inverse[k, k + 1 :] = inverse[:k, k] = inverse[k + 1 :, k] = 0.0
    return integers


def sweep_by_definition(weight, hessian, integers, scales, bits: int, block_size: int):
    """A sweep in float64, each number from its definition: the best scale of every block, then of every column."""
    weight, integers, scales = (array.astype(np.float64) for array in (weight, integers, scales))
    for block in range(scales.shape[1]):
        q = np.zeros_like(integers)
        at = slice(block * block_size, (block + 1) * block_size)
        q[:, at] = integers[:, at]
        others = weight - (integers - q) * per_column(scales, weight.shape[1], block_size)
        scales[:, block] = np.einsum("nk,kl,nl->n", others, hessian, q) / np.einsum("nk,kl,nl->n", q, hessian, q)
    steps = per_column(scales, weight.shape[1], block_size)
    for k in range(weight.shape[1]):
        others = weight - integers * steps
        others[:, k] = weight[:, k]
        integers[:, k] = np.clip(np.rint(others @ hessian[k] / hessian[k, k] / steps[:, k]), *LIMITS[bits])
    return integers, scales


@pytest.mark.parametrize("columns", [70, WIDE])
@pytest.mark.parametrize(("bits", "block_size"), GRIDS)
def test_the_pass_is_that_of_the_paper(bits: int, block_size: int, columns: int) -> None:
    """Stops errors that are spread in the wrong order, by a factor of the wrong triangle, or in their group alone."""
    weight, hessian = problem(columns=columns)
    damped = damp(hessian)
    found, scales = gptq_integers(weight, hessian, bits, block_size, sweeps=0)
    np.testing.assert_array_equal(scales, search_scales(weight, bits, block_size, np.diagonal(damped)))
    steps = per_column(scales, weight.shape[1], block_size)
    wanted = by_definition(weight, damped, steps, bits)
    # A weight that lies between two integers may fall either way in float32, and takes a few others with it.
    assert (found == wanted).mean() > 0.99
    ours, theirs = (loss(weight, (each * steps).astype(np.float32), damped) for each in (found, wanted))
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("columns", [70, WIDE])
@pytest.mark.parametrize(("bits", "block_size"), [*GRIDS, (8, WIDE)])
def test_a_sweep_is_coordinate_descent(bits: int, block_size: int, columns: int) -> None:
    """Stops a slope that misses what other columns, groups or blocks have done in the same sweep."""
    weight, hessian = problem(columns=columns)
    before, scales = gptq_integers(weight, hessian, bits, block_size, sweeps=0)
    wanted, wanted_scales = sweep_by_definition(weight, damp(hessian), before, scales, bits, block_size)
    found, found_scales = gptq_integers(weight, hessian, bits, block_size, sweeps=1)
    np.testing.assert_allclose(found_scales, wanted_scales, rtol=1e-4)
    moved = (found != before).mean()
    assert moved > 0.01
    assert (found != wanted).mean() < 0.1 * moved


def test_rows_do_not_depend_on_how_many_are_rounded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a chunk of rows that is left out, done twice or stored in another's place."""
    weight, hessian = problem(rows=50)
    whole, scales = gptq_integers(weight, hessian, 4, 32)
    monkeypatch.setattr("compress.quantize.gptq._CHUNK", 7 * weight.shape[1])
    parts, part_scales = gptq_integers(weight, hessian, 4, 32)
    assert (parts == whole).mean() > 0.99
    np.testing.assert_allclose(np.median(part_scales / scales, axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize(("bits", "block_size"), GRIDS)
def test_each_method_loses_less_than_the_one_before(bits: int, block_size: int) -> None:
    """Stops a method that costs calibration and gives nothing."""
    weight, hessian = problem()
    tensors = [
        quantize_blocks(weight, bits, block_size),
        quantize_searched(weight, bits, block_size),
        quantize_searched(weight, bits, block_size, np.diagonal(hessian)),
        gptq(weight, hessian, bits, block_size, sweeps=0),
        gptq(weight, hessian, bits, block_size),
    ]
    losses = [loss(weight, dequantize_blocks(tensor), hessian) for tensor in tensors]
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < 0.5 * losses[0]
    assert losses[4] < 0.97 * losses[3]


@pytest.mark.parametrize(("bits", "block_size"), GRIDS)
def test_a_sweep_never_loses_more(bits: int, block_size: int) -> None:
    """Stops a descent along a slope that was not brought up to date."""
    weight, hessian = problem(columns=WIDE)
    damped = damp(hessian)
    losses = [
        loss(weight, dequantize_blocks(gptq(weight, hessian, bits, block_size, sweeps=sweeps)), damped)
        for sweeps in range(5)
    ]
    for before, after in pairwise(losses):
        assert after <= before * (1 + 1e-5)


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    """With a diagonal covariance the nearest integers are the best ones."""
    weight, _ = problem()
    hessian = np.diag(np.linspace(0.5, 2.0, weight.shape[1]))
    found, scales = gptq_integers(weight, hessian, 4, 32, damping=0.0, sweeps=0)
    nearest = np.clip(np.rint(weight / per_column(scales, weight.shape[1], 32)), *LIMITS[4])
    assert (found == nearest).mean() > 0.999


def test_integers_and_scales_fit_their_layout() -> None:
    """Stops integers beyond what the bits hold, which would wrap to the other sign when packed."""
    weight, hessian = problem()
    weight[3] = 0
    weight[5, 10] = 7.0
    for bits, block_size in GRIDS:
        integers, scales = gptq_integers(weight, hessian, bits, block_size)
        assert integers.min() >= LIMITS[bits][0]
        assert integers.max() <= LIMITS[bits][1]
        assert np.isfinite(scales).all()
        assert not scales[3].any()
        assert not dequantize_blocks(gptq(weight, hessian, bits, block_size))[3].any()


def test_one_scale_a_row_serves_integer_products() -> None:
    """w8a8 has no blocks: a block as long as the row must do."""
    weight, hessian = problem()
    integers, scales = gptq_integers(weight, hessian, 8, weight.shape[1])
    assert scales.shape == (len(weight), 1)
    plain = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert loss(weight, integers * scales, hessian) < 0.5 * loss(weight, np.rint(weight / plain) * plain, hessian)


def test_inputs_that_never_vary_are_told() -> None:
    """Stops a division by zero that turns a layer into NaN."""
    weight, hessian = problem()
    with pytest.raises(SingularHessian, match="never vary"):
        gptq(weight, np.zeros_like(hessian), 4, 32)
    with pytest.raises(SingularHessian):
        gptq(weight, -hessian + 2 * np.diag(np.diagonal(hessian)), 4, 32)


def test_what_is_no_number_or_no_grid_is_refused() -> None:
    """Stops NaN from becoming an integer."""
    weight, hessian = problem()
    with pytest.raises(BadInput, match="3 bits"):
        gptq(weight, hessian, 3, 32)
    with pytest.raises(ValueError, match="NaN"):
        gptq(weight, np.full_like(hessian, np.nan), 4, 32)
    weight[0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or Inf"):
        gptq(weight, hessian, 4, 32)
