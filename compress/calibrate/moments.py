"""Sums over the rows that flow through a linear layer, and the least squares that they are for.

Pruning and quantization both repair by ridge regression what they did to a layer, and round or rank by the covariance
of its inputs. `Moments` collects what all of them need, batch by batch; memory does not grow with the rows.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DAMPING = 1e-2  # penalty on leaving the given weights, as a share of the mean squared input


@dataclass(frozen=True)
class Moments:
    """Sums over rows x float [rows, inputs] and targets y float [rows, outputs], float64 on the CPU.

    `xx` [inputs, inputs] and `xy` [inputs, outputs] are the sums of x x^T and x y^T, `x` [inputs] and `y` [outputs]
    those of the rows, `count` [] their number. Products of a batch are formed in its own dtype and device, and summed
    in float64. 8 bytes for each entry of `xx` and `xy`.
    """

    xx: Tensor
    xy: Tensor
    x: Tensor
    y: Tensor
    count: Tensor

    @classmethod
    def zeros(cls, inputs: int, outputs: int = 0) -> "Moments":
        """No rows yet."""
        shapes = (inputs, inputs), (inputs, outputs), (inputs,), (outputs,), ()
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add rows and, where there are `outputs`, their targets."""
        self.xx.add_(_gram(x))
        self.x.add_(x.sum(0).cpu())
        self.count.add_(len(x))
        if y is not None:
            self.xy.add_((x.T @ y).cpu())
            self.y.add_(y.sum(0).cpu())

    def of(self, outputs: slice) -> "Moments":
        """The same rows with some of the targets."""
        return replace(self, xy=self.xy[:, outputs], y=self.y[outputs])

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
        return self.second - torch.outer(self.mean, self.mean)

    def ridge(self, weight: Tensor, bias: Tensor | None, damping: float = DAMPING) -> tuple[Tensor, Tensor | None]:
        """The `(weight [inputs, outputs], bias [outputs])` that y = x W + b is nearest to, in the dtype of `weight`.

        The penalty is `damping` times the mean of x^2 over all inputs, on the distance of W from the given weight; the
        bias is free, and stays None where there is none.
        """
        before, square, right = weight.detach().double().cpu(), self.xx, self.xy
        penalty = torch.full((len(square),), damping * float(square.diagonal().mean()), dtype=torch.float64)
        if bias is not None:  # a last input that is always 1
            before = torch.cat([before, bias.detach().double().cpu()[None]])
            border = torch.cat([self.x, self.count[None]])
            square = torch.cat([torch.cat([square, self.x[None]]), border[:, None]], dim=1)
            right = torch.cat([right, self.y[None]])
            penalty = torch.cat([penalty, 1e-9 * self.count[None]])
        after = before + solve_positive(square + penalty.diag(), right - square @ before)
        after = after.to(weight.device, weight.dtype)
        return (after, None) if bias is None else (after[:-1], after[-1])

    @property
    def _rows(self) -> Tensor:
        return self.count.clamp(min=1)


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


def _gram(x: Tensor) -> Tensor:
    """x^T x. numpy knows that the result is symmetric, and computes half of it."""
    if x.is_cuda:
        return (x.T @ x).cpu()
    rows = x.contiguous().numpy()
    return torch.from_numpy(rows.T @ rows)
