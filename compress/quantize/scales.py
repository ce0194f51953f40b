"""Scales of blocks by search (method "mse"): the step that loses least, not the one that the extreme dictates.

A block's largest weight decides the step of round-to-nearest, and so the error of all its neighbours. Clipping it a
little, or (4 bits) giving the sixteenth level to the other sign, often costs less. Tried for every block are the
plain scale times `FACTORS`, of both signs at 4 bits; the best one is then refined in closed form: with the integers
fixed, the scale that loses least is (w . q) / (q . q), and the integers are rounded again. Errors count with
the mean square of the column's input where that is known (llama.cpp's importance matrix does the same), else all alike.

The search takes one block of `_CHUNK` weights at a time, a column of the matrix contiguous; its memory does not grow
with the matrix. Pure numpy; knows nothing of models and files.
"""

import numpy as np
from numpy.typing import NDArray

from compress.quantize.blockwise import LIMITS, BlockTensor, block_scales, check_grid, from_integers, round_to

Floats = NDArray[np.float32]

FACTORS = {4: np.linspace(0.6, 1.2, 25), 8: np.linspace(0.9, 1.02, 13)}
_REFINEMENTS = 3
_CHUNK = 2**17  # weights: half a megabyte, so that they stay in the cache while the factors are tried


def quantize_searched(
    weight: Floats, bits: int, block_size: int, importance: NDArray[np.float64] | None = None
) -> BlockTensor:
    """Round a float32 `[N, K]` matrix to the nearest integers under searched scales; see `search_scales`."""
    check_grid(bits, block_size)
    scales = search_scales(weight, bits, block_size, importance)
    return from_integers(
        round_to(weight, per_column(scales, weight.shape[1], block_size), bits), scales, bits, block_size
    )


def search_scales(weight: Floats, bits: int, block_size: int, importance: NDArray[np.float64] | None = None) -> Floats:
    """Scales float32 `[N, blocks]` of a float32 `[N, K]` matrix; `importance` is float [K], what a squared error costs.

    Raises `ValueError` for values that are not finite.
    """
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or Inf")
    rows, columns = weight.shape
    cost = _normal(np.ones(columns) if importance is None else np.asarray(importance, dtype=np.float64))
    scales = np.empty((rows, -(-columns // block_size)), dtype=np.float32)
    at_once = max(1, _CHUNK // block_size)
    for begin in range(0, rows, at_once):
        for block in range(scales.shape[1]):
            at = slice(block * block_size, (block + 1) * block_size)
            part = weight[begin : begin + at_once, at].T.astype(np.float32, order="C")  # [columns, n]
            scales[begin : begin + at_once, block] = _search_block(part, cost[at], bits)
    return scales


def per_column(scales: Floats, columns: int, block_size: int) -> Floats:
    """The scale of every weight, float32 [N, K]."""
    return np.repeat(scales, block_size, axis=1)[:, :columns]


def _normal(cost: NDArray[np.float64]) -> Floats:
    """`cost` with mean 1, and a floor for inputs that calibration never saw."""
    mean = float(cost.mean()) or 1.0
    return (np.maximum(cost, 1e-4 * mean) / mean).astype(np.float32)


def _search_block(block: Floats, cost: Floats, bits: int) -> Floats:
    """The best scale of each row of a block, float32 [n]; `block` [columns, n], `cost` [columns]."""
    scale = _best_factor(block, cost, bits)
    loss = _loss(block, _rounded(block, scale, bits), scale, cost)
    for _ in range(_REFINEMENTS):
        q = _rounded(block, scale, bits)
        down, up = cost @ np.square(q), cost @ (q * block)
        refined = np.where(down == 0, scale, up / np.where(down == 0, np.float32(1), down))
        refined_loss = _loss(block, _rounded(block, refined, bits), refined, cost)
        wins = refined_loss < loss
        scale, loss = np.where(wins, refined, scale), np.where(wins, refined_loss, loss)
    return scale


def _best_factor(block: Floats, cost: Floats, bits: int) -> Floats:
    """The plain scale of each row times the best of `FACTORS`, or as it is where none is better, [n]."""
    low, high = LIMITS[bits]
    # Of the other sign, integers and scale are both negated, and the limits change places.
    limits = {1: (low, high), -1: (-high, -low)} if bits == 4 else {1: (low, high)}
    plain = block_scales(block.T, bits)
    levels = block / np.where(plain == 0, np.float32(1), plain)  # in units of the plain scale
    nearest, error = np.empty_like(block), np.empty_like(block)
    best, least = np.ones_like(plain), np.full_like(plain, np.inf)
    for factor in (1.0, *FACTORS[bits]):
        np.multiply(levels, np.float32(1 / factor), out=nearest)
        np.rint(nearest, out=nearest)
        for sign, (lowest, highest) in limits.items():
            np.clip(nearest, lowest, highest, out=error)
            np.multiply(error, np.float32(factor), out=error)
            np.subtract(levels, error, out=error)
            loss = cost @ np.square(error, out=error)
            wins = loss < least
            best, least = np.where(wins, np.float32(sign * factor), best), np.where(wins, loss, least)
    return plain * best


def _rounded(block: Floats, scale: Floats, bits: int) -> Floats:
    """`round_to` without its copies: integers float32 [columns, n] for a scale a row, [n]."""
    q = np.divide(block, np.where(scale == 0, np.float32(1), scale), dtype=np.float32)
    np.rint(q, out=q)
    return np.clip(q, *LIMITS[bits], out=q)


def _loss(block: Floats, q: Floats, scale: Floats, cost: Floats) -> Floats:
    """The weighted squared error of each row, [n]."""
    error: Floats = cost @ np.square(block - q * scale)
    return error
