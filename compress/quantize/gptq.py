"""GPTQ: integers that make up for each other's rounding, as far as the inputs allow. Arrays in, arrays out.

The loss of rounding W to V is tr((W - V) H (W - V)^T), H the covariance of the inputs. Columns are rounded one after
another, the most important first, and what a column loses is made good by the columns that are still free (GPTQ, arXiv
2210.17323, with `static_groups`: a block's scale is decided beforehand, so that any order fits blocks of neighbours).
Then `sweeps` of coordinate descent: every block's scale is set to the best one for its integers, and every column is
rounded again, to the best integer that the others leave it (QuantEase, arXiv 2309.01885). Neither can make the loss
larger.

With H = R R^T and R upper triangular, the loss of a row's errors e = w - v is |e R|^2. So column j loses least at
w_j + sum over i < j of e_i R_ij / R_jj, which is where GPTQ's updates by the Cholesky factor of H^-1 bring it (the
nearest-plane algorithm of Babai; arXiv 2507.18553): one factor of H, and no inverse.

Layout: inside, arrays are `[K, n]`, a column of the matrix contiguous, for as many rows n as `_CHUNK` weights allow.
Rows do not depend on each other. Sums over earlier columns are one product a group of `_GROUP` columns. Memory beside
weight and result: 12 bytes for each entry of H, and some 20 bytes for each weight of a chunk.

This module knows nothing of models, files and calibration.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from compress.quantize.blockwise import LIMITS, BlockTensor, check_grid, from_integers
from compress.quantize.scales import search_scales

Floats = NDArray[np.float32]

DAMPING = 1e-2  # added to the diagonal of H, as a share of its mean
SWEEPS = 1
_GROUP = 64  # columns that are rounded one by one between two products
_CHUNK = 2**22  # weights that are rounded at once


class SingularHessian(ArithmeticError):
    """The inputs of a layer do not tell its columns apart."""


def gptq(
    weight: Floats,
    hessian: NDArray[np.float64],
    bits: int,
    block_size: int,
    damping: float = DAMPING,
    sweeps: int = SWEEPS,
) -> BlockTensor:
    """Round a float32 `[N, K]` matrix whose inputs have the covariance `hessian`, float64 `[K, K]`.

    Raises `BadInput` for bits or block sizes that do not exist, `ValueError` for values that are not finite, and
    `SingularHessian` where the damped covariance has no Cholesky factor.
    """
    check_grid(bits, block_size)
    integers, scales = gptq_integers(weight, hessian, bits, block_size, damping, sweeps)
    return from_integers(integers, scales, bits, block_size)


def gptq_integers(
    weight: Floats,
    hessian: NDArray[np.float64],
    bits: int,
    block_size: int,
    damping: float = DAMPING,
    sweeps: int = SWEEPS,
) -> tuple[Floats, Floats]:
    """Integers without their zero point, float32 `[N, K]`, and scales float32 `[N, blocks]`, for blocks of any size.

    Raises `ValueError` and `SingularHessian` as `gptq` does.
    """
    if not (np.isfinite(weight).all() and np.isfinite(hessian).all()):
        raise ValueError("the weight or the covariance of its input holds NaN or Inf")
    rows, columns = weight.shape
    damped = _damped(hessian, damping)
    importance = np.diagonal(damped)
    order = np.argsort(-importance, kind="stable")
    carry = _carry(damped, order)
    curvature = damped.astype(np.float32)
    integers, scales = np.empty_like(weight), np.empty((rows, -(-columns // block_size)), dtype=np.float32)
    at_once = max(1, _CHUNK // columns)
    for begin in range(0, rows, at_once):
        chunk = slice(begin, begin + at_once)
        found = _Chunk(weight[chunk], search_scales(weight[chunk], bits, block_size, importance), bits, block_size)
        found.round_in_turn(order, carry)
        for _ in range(sweeps):
            found.fit_scales(curvature)
            found.descend(curvature)
        integers[chunk], scales[chunk] = found.integers.T, found.scales.T
    return integers, scales


def loss(weight: Floats, rounded: Floats, hessian: NDArray[np.float64]) -> float:
    """tr((W - V) H (W - V)^T): the mean squared error of the outputs, summed over them."""
    error = (weight - rounded).astype(np.float64)
    return float(np.einsum("nk,nk->", error @ hessian, error))


def _damped(hessian: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    mean = float(np.diagonal(hessian).mean())
    if mean <= 0:
        raise SingularHessian("its inputs never vary")
    damped = hessian.copy()
    damped[np.diag_indices_from(damped)] += damping * mean
    return damped


def _carry(hessian: NDArray[np.float64], order: NDArray[np.int64]) -> Floats:
    """float32 [K, K], columns in `order`: row j says how much of the errors of the columns before it column j takes."""
    back = order[::-1]
    lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(hessian[np.ix_(back, back)]))
    if failed:
        raise SingularHessian("the covariance is not positive definite")
    upper = (lower.mT / lower.diagonal()[:, None]).numpy()  # H = R R^T: R^T in `back`, by rows, over R's diagonal
    return np.ascontiguousarray(upper[::-1, ::-1], dtype=np.float32)


class _Chunk:
    """Some rows of a matrix while they are rounded: `weight`, `integers` and `error` are float32 [K, n], `scales`
    [blocks, n]; `error` is always weight - integers * scales."""

    def __init__(self, weight: Floats, scales: Floats, bits: int, block_size: int) -> None:
        self.weight, self.scales = np.ascontiguousarray(weight.T), np.ascontiguousarray(scales.T)
        self.low, self.high = LIMITS[bits]
        self.block_size = block_size
        self.integers, self.error = np.empty_like(self.weight), np.empty_like(self.weight)

    def round_in_turn(self, order: NDArray[np.int64], carry: Floats) -> None:
        """GPTQ's pass: decide all integers, column after column in `order`."""
        divisors = self._divisors()
        error = np.empty_like(self.error)  # in `order`
        for begin in range(0, len(order), _GROUP):
            group = order[begin : begin + _GROUP]
            carried = carry[begin : begin + _GROUP, :begin] @ error[:begin]
            for place, column in enumerate(group, begin):
                wanted = carry[place, begin:place] @ error[begin:place]
                wanted += carried[place - begin]
                wanted += self.weight[column]
                self._round(column, wanted, divisors[column // self.block_size])
                error[place] = self.error[column]

    def descend(self, curvature: Floats) -> None:
        """A sweep of coordinate descent over the columns."""
        divisors = self._divisors()
        before = np.empty((_GROUP, self.weight.shape[1]), dtype=np.float32)
        for begin in range(0, len(curvature), _GROUP):
            end = min(begin + _GROUP, len(curvature))
            slopes = curvature[begin:end] @ self.error  # half the downhill slope of the loss, before the group moves
            moved = before[: end - begin]
            for column in range(begin, end):
                place = column - begin
                wanted = slopes[place]
                wanted -= curvature[column, begin:column] @ moved[:place]
                wanted /= curvature[column, column]
                wanted += self.weight[column]
                wanted -= self.error[column]
                moved[place] = self.error[column]
                self._round(column, wanted, divisors[column // self.block_size])
                moved[place] -= self.error[column]

    def fit_scales(self, curvature: Floats) -> None:
        """Set the scale of every block to the best one for its integers, block after block."""
        for block, scale in enumerate(self.scales):
            at = slice(block * self.block_size, (block + 1) * self.block_size)
            q = self.integers[at]
            down = np.einsum("kn,kn->n", curvature[at, at] @ q, q)
            up = np.einsum("kn,kn->n", curvature[at] @ self.error, q)
            scale += np.where(down <= 0, np.float32(0), up / np.where(down <= 0, np.float32(1), down))
            self.error[at] = self.weight[at] - q * scale

    def _divisors(self) -> Floats:
        return np.where(self.scales == 0, np.float32(1), self.scales)

    def _round(self, column: int, wanted: Floats, divisor: Floats) -> None:
        """Set a column to the integers nearest to `wanted` [n], which is overwritten."""
        integers, error = self.integers[column], self.error[column]
        np.divide(wanted, divisor, out=wanted)
        np.rint(wanted, out=wanted)
        np.maximum(wanted, self.low, out=wanted)
        np.minimum(wanted, self.high, out=integers)
        np.multiply(integers, self.scales[column // self.block_size], out=error)
        np.subtract(self.weight[column], error, out=error)
