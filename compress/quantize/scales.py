"""Scales of blocks by search (method "mse"): the step that loses least, not the one that the extreme dictates.

A block's largest weight decides the step of round-to-nearest, and so the error of all its neighbours. Clipping it a
little, or (4 bits) giving the sixteenth level to the other sign, often costs less. Tried for every block are the
plain scale times `FACTORS`, of both signs at 4 bits; the best one is then refined in closed form: with the integers
fixed, the scale that loses least is (w . q) / (q . q), and the integers are rounded again. Errors count with
the mean square of the column's input where that is known (llama.cpp's importance matrix does the same), else all alike.

Pure numpy; knows nothing of models and files.
"""

import numpy as np
from numpy.typing import NDArray

from compress.quantize.blockwise import BlockTensor, block_scales, check_grid, from_integers, round_to, to_blocks

FACTORS = {4: np.linspace(0.6, 1.2, 25), 8: np.linspace(0.9, 1.02, 13)}
_REFINEMENTS = 3


def quantize_searched(
    weight: NDArray[np.float32], bits: int, block_size: int, importance: NDArray[np.float64] | None = None
) -> BlockTensor:
    """Round a float32 `[N, K]` matrix to the nearest integers under searched scales; see `search_scales`."""
    check_grid(bits, block_size)
    scales = search_scales(weight, bits, block_size, importance)
    return from_integers(
        round_to(weight, per_column(scales, weight.shape[1], block_size), bits), scales, bits, block_size
    )


def search_scales(
    weight: NDArray[np.float32], bits: int, block_size: int, importance: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Scales float32 `[N, blocks]` of a float32 `[N, K]` matrix; `importance` is float [K], what a squared error costs.

    Raises `ValueError` for values that are not finite.
    """
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or Inf")
    blocks = to_blocks(np.asarray(weight, dtype=np.float32), block_size)  # [N, blocks, block_size]
    costs = np.ones(weight.shape[1]) if importance is None else np.asarray(importance, dtype=np.float64)
    cost = to_blocks(_normal(costs)[None], block_size)  # [1, blocks, block_size]
    plain = block_scales(blocks, bits)
    best, least = plain, _loss(blocks, plain, bits, cost)
    for factor in FACTORS[bits]:
        for sign in (1, -1) if bits == 4 else (1,):
            best, least = _better(
                blocks, (plain * np.float32(sign * factor)).astype(np.float32), bits, cost, best, least
            )
    for _ in range(_REFINEMENTS):
        best, least = _better(blocks, _refined(blocks, best, bits, cost), bits, cost, best, least)
    return best


def per_column(scales: NDArray[np.float32], columns: int, block_size: int) -> NDArray[np.float32]:
    """The scale of every weight, float32 [N, K]."""
    return np.repeat(scales, block_size, axis=1)[:, :columns]


def _normal(cost: NDArray[np.float64]) -> NDArray[np.float32]:
    """`cost` with mean 1, and a floor for inputs that calibration never saw."""
    mean = float(cost.mean()) or 1.0
    return (np.maximum(cost, 1e-4 * mean) / mean).astype(np.float32)


def _loss(
    blocks: NDArray[np.float32], scales: NDArray[np.float32], bits: int, cost: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The weighted squared error of every block, [N, blocks]."""
    error = blocks - round_to(blocks, scales[..., None], bits) * scales[..., None]
    return np.einsum("nbk,nbk,nbk->nb", error, error, np.broadcast_to(cost, blocks.shape))


def _better(
    blocks: NDArray[np.float32],
    scales: NDArray[np.float32],
    bits: int,
    cost: NDArray[np.float32],
    best: NDArray[np.float32],
    least: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`best` with those of `scales` that lose less, and what is lost then."""
    loss = _loss(blocks, scales, bits, cost)
    wins = loss < least
    return np.where(wins, scales, best), np.where(wins, loss, least)


def _refined(
    blocks: NDArray[np.float32], scales: NDArray[np.float32], bits: int, cost: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The scales that lose least for the integers that `scales` give."""
    q = round_to(blocks, scales[..., None], bits) * np.float32(1)
    weighted = q * cost
    down = np.einsum("nbk,nbk->nb", weighted, q)
    up = np.einsum("nbk,nbk->nb", weighted, blocks)
    return np.where(down == 0, scales, up / np.where(down == 0, 1, down)).astype(np.float32)
