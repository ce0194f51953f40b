"""GPTQ: integers that make up for each other's rounding, as far as the inputs allow. Pure numpy.

The loss of rounding W to V is tr((W - V) H (W - V)^T), H the covariance of the inputs. Columns are rounded one after
another, the most important first, and what a column loses is spread over the columns that are still free, by the
Cholesky factor of H^-1 (GPTQ, arXiv 2210.17323, with `static_groups`: a block's scale is decided beforehand, so that
any order fits blocks of neighbours). Then `sweeps` of coordinate descent: every column is rounded again, to the best
integer that the others leave it (QuantEase, arXiv 2309.01885), and every block's scale is set to the best one for its
integers. Neither can make the loss larger.

This module knows nothing of models, files and calibration.
"""

import numpy as np
from numpy.typing import NDArray

from compress.quantize.blockwise import BlockTensor, check_grid, from_integers, round_to
from compress.quantize.scales import per_column, search_scales

Floats = NDArray[np.float32]

DAMPING = 1e-2  # added to the diagonal of H, as a share of its mean
SWEEPS = 3
_GROUP = 128  # columns whose errors are collected before they are spread over the rest


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
    damped = _damped(hessian, damping)
    scales = search_scales(weight, bits, block_size, np.diagonal(damped))
    integers = _round_in_turn(weight, damped, per_column(scales, weight.shape[1], block_size), bits)
    curvature = damped.astype(np.float32)
    for _ in range(sweeps):
        scales = _fit_scales(weight, curvature, integers, scales, block_size)
        integers = _coordinate_descent(
            weight, curvature, integers, per_column(scales, weight.shape[1], block_size), bits
        )
    return integers, scales


def loss(weight: Floats, rounded: Floats, hessian: NDArray[np.float64]) -> float:
    """tr((W - V) H (W - V)^T): the mean squared error of the outputs, summed over them."""
    error = (weight - rounded).astype(np.float64)
    return float(np.einsum("nk,nk->", error @ hessian, error))


def _damped(hessian: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    mean = float(np.diagonal(hessian).mean())
    if mean <= 0:
        raise SingularHessian("its inputs never vary")
    return hessian + damping * mean * np.eye(len(hessian))


def _round_in_turn(weight: Floats, hessian: NDArray[np.float64], scales: Floats, bits: int) -> Floats:
    """GPTQ's pass: integers float32 [N, K] for the `scales` [N, K] of every weight."""
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    try:
        # Upper triangular U with H^-1 = U^T U: its rows say how the error of a column spreads over the later ones.
        inverse = np.linalg.inv(hessian[np.ix_(order, order)])
        spread = np.linalg.cholesky(inverse).T.astype(np.float32)
    except np.linalg.LinAlgError as error:
        raise SingularHessian(str(error)) from error
    left, scales = weight[:, order].copy(), scales[:, order]
    integers = np.empty_like(left)
    for begin in range(0, left.shape[1], _GROUP):
        end = min(begin + _GROUP, left.shape[1])
        errors = np.empty((len(left), end - begin), dtype=np.float32)
        for k in range(begin, end):
            integers[:, k] = round_to(left[:, k], scales[:, k], bits)
            errors[:, k - begin] = (left[:, k] - integers[:, k] * scales[:, k]) / spread[k, k]
            left[:, k + 1 : end] -= np.outer(errors[:, k - begin], spread[k, k + 1 : end])
        left[:, end:] -= errors @ spread[begin:end, end:]
    found = np.empty_like(integers)
    found[:, order] = integers
    return found


def _coordinate_descent(weight: Floats, hessian: Floats, integers: Floats, scales: Floats, bits: int) -> Floats:
    """A sweep of coordinate descent over the columns."""
    integers = integers.copy()
    residual_gradient = (weight - integers * scales) @ hessian  # [N, K]: half the downhill slope of the loss
    for begin in range(0, weight.shape[1], _GROUP):
        end = min(begin + _GROUP, weight.shape[1])
        moved = np.empty((len(weight), end - begin), dtype=np.float32)
        for k in range(begin, end):
            now = integers[:, k] * scales[:, k]
            integers[:, k] = round_to(now + residual_gradient[:, k] / hessian[k, k], scales[:, k], bits)
            moved[:, k - begin] = integers[:, k] * scales[:, k] - now
            residual_gradient[:, begin:end] -= np.outer(moved[:, k - begin], hessian[k, begin:end])
        residual_gradient[:, :begin] -= moved @ hessian[begin:end, :begin]
        residual_gradient[:, end:] -= moved @ hessian[begin:end, end:]
    return integers


def _fit_scales(weight: Floats, hessian: Floats, integers: Floats, scales: Floats, block_size: int) -> Floats:
    """The best scale of every block for the integers, block after block, [N, blocks]."""
    scales = scales.copy()
    columns = weight.shape[1]
    residual_gradient = (weight - integers * per_column(scales, columns, block_size)) @ hessian
    for block in range(scales.shape[1]):
        at = slice(block * block_size, min((block + 1) * block_size, columns))
        q = integers[:, at]
        down = np.einsum("nk,kl,nl->n", q, hessian[at, at], q, optimize=True)
        step = np.einsum("nk,nk->n", residual_gradient[:, at], q) / np.where(down <= 0, 1, down)
        step = np.where(down <= 0, 0, step).astype(np.float32)
        scales[:, block] += step
        residual_gradient -= (step[:, None] * q) @ hessian[at]
    return scales
