"""Sums over the rows that flow through a linear layer, and the least squares that they are for.

Pruning and quantization both repair by ridge regression what they did to a layer, and round or rank by the covariance
of its inputs. `Moments` collects what all of them need, batch by batch; memory does not grow with the rows.
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 512  # columns of a symmetric product that are formed at once: what lies below the diagonal's blocks is not
DAMPING = 1e-2  # penalty on leaving the given weights, as a share of the mean squared input


class Moments:
    """Sums over rows x float [rows, inputs] and targets y float [rows, outputs], float64 on the CPU.

    `xx` [inputs, inputs] and `xy` [inputs, outputs] are the sums of x x^T and x y^T, `x` [inputs] and `y` [outputs]
    those of the rows, `count` their number. Products of a batch are formed in its own dtype and device, and summed in
    float64. Memory: 8 bytes for each entry of `xx` and `xy`.
    """

    def __init__(self, inputs: int, outputs: int = 0) -> None:
        """No rows yet."""
        self._xx = torch.zeros(inputs, inputs, dtype=torch.float64)  # on and above the diagonal blocks
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.x, self.y = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add rows and, where there are `outputs`, their targets."""
        for begin in range(0, x.shape[1], _BLOCK):
            block = slice(begin, begin + _BLOCK)
            _accumulate(self._xx[block, begin:], x[:, block].T @ x[:, begin:])
        self.x.add_(x.sum(0).cpu())
        self.count += len(x)
        if y is not None:
            _accumulate(self.xy, x.T @ y)
            self.y.add_(y.sum(0).cpu())

    def with_targets(self, weight: Tensor, bias: Tensor | None) -> "Moments":
        """The moments of the same rows with the targets y W + b: `weight` [outputs, n], `bias` [n] or None."""
        weight = weight.detach().double().cpu()
        bias = weight.new_zeros(weight.shape[1]) if bias is None else bias.detach().double().cpu()
        other = copy.copy(self)
        other.xy = torch.addmm(torch.outer(self.x, bias), self.xy, weight)
        other.y = self.y @ weight + self.count * bias
        return other

    @property
    def xx(self) -> Tensor:
        """The sum of x x^T, float64 [inputs, inputs]."""
        for begin in range(0, len(self._xx), _BLOCK):
            block, below = slice(begin, begin + _BLOCK), slice(begin + _BLOCK, None)
            self._xx[below, block] = self._xx[block, below].T
        return self._xx

    @property
    def mean(self) -> Tensor:
        """The mean input, float64 [inputs]."""
        return self.x / self._rows

    @property
    def second(self) -> Tensor:
        """The mean of x x^T, float64 [inputs, inputs]: what an error in a weight costs."""
        return self.xx / self._rows

    @property
    def covariance(self) -> Tensor:
        """The covariance of the inputs, float64 [inputs, inputs]: what an error costs where a bias is free."""
        return self.second.addr_(self.mean, self.mean, alpha=-1)

    def ridge(self, weight: Tensor, bias: Tensor | None, damping: float = DAMPING) -> tuple[Tensor, Tensor | None]:
        """The `(weight [inputs, outputs], bias [outputs])` that y = x W + b is nearest to, in the dtype of `weight`.

        The penalty is `damping` times the mean of x^2 over all inputs, on the distance of W from the given weight; the
        bias is free, and stays None where there is none. Raises `torch.linalg.LinAlgError` where the inputs are all 0.
        """
        before, right = weight.detach().double().cpu(), self.xy / self._rows
        penalty = damping * float(self._xx.diagonal().mean()) / self._rows
        square = self.second if bias is None else self.covariance
        if bias is not None:
            right.addr_(self.mean, self.y / self._rows, alpha=-1)
        square.diagonal().add_(penalty)
        after = solve_positive(square, right.add_(before, alpha=penalty))
        offset = None if bias is None else (self.y / self._rows - self.mean @ after).to(bias.device, bias.dtype)
        return after.to(weight.device, weight.dtype), offset

    @property
    def _rows(self) -> int:
        return max(1, self.count)


class Variance:
    """Variance of each column over batches of rows, in float64 (Chan's update: no large sums of squares cancel)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(1)
        self.squares: NDArray[np.float64] = np.zeros(1)

    def add(self, rows: NDArray[np.float64]) -> None:
        """Add rows [n, columns]."""
        count = self.count + len(rows)
        mean = rows.mean(axis=0)
        delta = mean - self.mean
        self.squares = self.squares + np.square(rows - mean).sum(axis=0) + delta**2 * self.count * len(rows) / count
        self.mean = self.mean + delta * len(rows) / count
        self.count = count

    @property
    def variance(self) -> NDArray[np.float64]:
        """[columns]; zeros before any rows."""
        return self.squares / max(1, self.count)


def solve_positive(square: Tensor, right: Tensor) -> Tensor:
    """The solution of `square` X = `right`, both float64, for a symmetric positive definite matrix [n, n].

    Where rounding has left it not quite positive, by elimination; raises `torch.linalg.LinAlgError` if it is singular.
    """
    factor, failed = torch.linalg.cholesky_ex(square)
    return torch.linalg.solve(square, right) if failed else torch.cholesky_solve(right, factor)


def _accumulate(total: Tensor, product: Tensor) -> None:
    """Add a float product to float64 sums [rows, columns], in place: numpy is three times as fast at it as torch."""
    sums = total.numpy()
    np.add(sums, product.cpu().numpy(), out=sums)
