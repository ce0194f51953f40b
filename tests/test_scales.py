"""Searched scales: never worse than the plain ones, and as good as trying everything."""

import numpy as np
import pytest

from compress.quantize.blockwise import LIMITS, block_scales, dequantize_blocks, quantize_blocks, to_blocks
from compress.quantize.scales import FACTORS, per_column, quantize_searched, search_scales

GRIDS = [(4, 16), (4, 32), (8, 32)]


def matrix(rows: int = 40, columns: int = 70) -> np.ndarray:
    return (np.random.default_rng(1).standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


def squared(weight: np.ndarray, rounded: np.ndarray, cost: np.ndarray | float = 1.0) -> float:
    return float((cost * (weight - rounded).astype(np.float64) ** 2).sum())


@pytest.mark.parametrize(("bits", "block_size"), GRIDS)
def test_no_block_loses_by_the_search(bits: int, block_size: int) -> None:
    """Stops a search that wins on the mean and ruins single blocks."""
    weight = matrix()
    errors = [
        (to_blocks(weight - dequantize_blocks(tensor), block_size).astype(np.float64) ** 2).sum(-1)
        for tensor in (quantize_blocks(weight, bits, block_size), quantize_searched(weight, bits, block_size))
    ]
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    assert errors[1].sum() < 0.97 * errors[0].sum()


def test_the_search_comes_near_to_trying_everything() -> None:
    """A thousand scales of both signs a block, against the few dozen that are tried."""
    weight = matrix(6, 32)
    block = weight[:, None, :]
    plain = block_scales(block, 4)
    best = np.full(6, np.inf)
    for factor in np.linspace(-1.6, 1.6, 2000):
        scales = (plain * np.float32(factor))[..., None]
        rounded = np.clip(np.rint(block / scales), *LIMITS[4]) * scales
        best = np.minimum(best, ((block - rounded) ** 2).sum((1, 2)))
    found = dequantize_blocks(quantize_searched(weight, 4, 32))
    assert ((weight - found) ** 2).sum(1) == pytest.approx(best, rel=0.03)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_block_gets_the_best_scale_that_is_tried(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each factor of the list by itself, in float64, over rows and blocks that cross a chunk of the search."""
    weight, block_size = matrix(150, 320), 32
    monkeypatch.setattr("compress.quantize.scales._CHUNK", 40 * block_size)
    cost = np.random.default_rng(3).uniform(0.1, 3.0, 320)
    blocks = to_blocks(weight, block_size).astype(np.float64)
    plain = block_scales(blocks.astype(np.float32), bits).astype(np.float64)
    tried = [sign * factor for factor in (1.0, *FACTORS[bits]) for sign in ((1, -1) if bits == 4 else (1,))]
    losses = [loss_of(blocks, plain * factor, cost, bits) for factor in tried]
    found = loss_of(blocks, search_scales(weight, bits, block_size, cost).astype(np.float64), cost, bits)
    assert (found <= np.min(losses, axis=0) * (1 + 1e-4)).all()
    assert (found < np.min(losses, axis=0) * (1 - 1e-4)).mean() > 0.5  # and the refinement wins something


def loss_of(blocks: np.ndarray, scales: np.ndarray, cost: np.ndarray, bits: int) -> np.ndarray:
    """What each block loses, float64 [N, blocks]."""
    steps = scales[..., None]
    rounded = np.clip(np.rint(blocks / steps), *LIMITS[bits]) * steps
    return ((blocks - rounded) ** 2 * cost.reshape(blocks.shape[1:])).sum(-1)


def test_what_columns_cost_decides() -> None:
    """Stops an importance that is read along the wrong axis."""
    weight = matrix(columns=64)
    cost = np.ones(64)
    cost[::8] = 100.0
    with_cost, without = (quantize_searched(weight, 4, 32, given) for given in (cost, None))
    assert squared(weight, dequantize_blocks(with_cost), cost) < 0.8 * squared(weight, dequantize_blocks(without), cost)


def test_columns_that_calibration_never_saw_still_count_a_little() -> None:
    """Stops weights behind a silent input from becoming anything at all."""
    weight, cost = matrix(columns=32), np.zeros(32)
    cost[:4] = 1.0
    rounded = dequantize_blocks(quantize_searched(weight, 8, 32, cost))
    assert np.abs(weight - rounded)[:, 4:].max() < 0.1 * np.abs(weight).max()


def test_a_block_of_zeros_stays_zero() -> None:
    """Stops 0 / 0 in a padded or pruned block."""
    weight = matrix()
    weight[:, 32:64] = 0
    assert not dequantize_blocks(quantize_searched(weight, 4, 32))[:, 32:64].any()
    assert (search_scales(weight, 4, 32)[:, 1] == 0).all()


def test_every_weight_finds_the_scale_of_its_block() -> None:
    """Stops a last block that is shorter than the others from shifting the rest."""
    scales = np.arange(6, dtype=np.float32).reshape(2, 3)
    steps = per_column(scales, 70, 32)
    assert steps.shape == (2, 70)
    assert (steps[1, [0, 31, 32, 63, 64, 69]] == [3, 3, 4, 4, 5, 5]).all()


def test_what_is_no_number_is_refused() -> None:
    """Stops NaN scales."""
    weight = matrix()
    weight[1, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        search_scales(weight, 4, 32)
