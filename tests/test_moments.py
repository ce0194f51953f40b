"""Second moments and ridge regression: against numpy in float64, on rows whose means are not 0."""

import numpy as np
import pytest
import torch

from compress.calibrate.moments import Moments, Variance, solve_positive

COLUMNS = 600  # more than a block of columns, and no multiple of it


def rows(outputs: int = 3, inputs: int = COLUMNS, count: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs of non-zero mean, and targets that hang on them."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, inputs)) @ random.standard_normal((inputs, inputs)) / 10 + 2
    return x, x @ random.standard_normal((inputs, outputs)) + random.standard_normal((count, outputs)) - 5


def collected(x: np.ndarray, y: np.ndarray, dtype: torch.dtype = torch.float64) -> Moments:
    moments = Moments(x.shape[1], y.shape[1])
    for part in (slice(0, 20), slice(20, 500), slice(500, None)):
        moments.add(torch.tensor(x[part], dtype=dtype), torch.tensor(y[part], dtype=dtype))
    return moments


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_moments_equal_numpy(dtype: torch.dtype, tolerance: float) -> None:
    """Stops a batch that is left out, a mean of means, and a second moment in place of a covariance."""
    x, y = rows()
    moments = collected(x, y, dtype)
    assert moments.xx.dtype == moments.xy.dtype == torch.float64
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=tolerance)
    np.testing.assert_allclose(moments.second, x.T @ x / len(x), rtol=tolerance)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, bias=True), atol=tolerance * 10)
    np.testing.assert_allclose(moments.xy, x.T @ y, rtol=0, atol=tolerance * np.abs(x.T @ y).max())
    np.testing.assert_allclose(moments.y, y.sum(0), rtol=tolerance)


def test_ridge_is_the_textbook_solution() -> None:
    """Stops a penalty on the bias, one towards 0 in place of the given weight, and a wrong mean of squares."""
    x, y = rows()
    random = np.random.default_rng(1)
    before, bias = random.standard_normal((COLUMNS, 3)), random.standard_normal(3)
    weight, offset = collected(x, y).ridge(torch.tensor(before), torch.tensor(bias), damping=0.1)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    penalty = 0.1 * np.square(x).sum(0).mean() * np.eye(COLUMNS)
    expected = np.linalg.solve(centred_x.T @ centred_x + penalty, centred_x.T @ centred_y + penalty @ before)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(offset.numpy(), y.mean(0) - x.mean(0) @ expected, rtol=1e-5)


def test_ridge_without_a_bias_is_fitted_through_the_origin() -> None:
    """Stops a bias that is fitted and then thrown away: what it took up would be missing."""
    x, y = rows()
    before = np.random.default_rng(1).standard_normal((COLUMNS, 3))
    weight, offset = collected(x, y).ridge(torch.tensor(before), None, damping=0.1)
    penalty = 0.1 * np.square(x).sum(0).mean() * np.eye(COLUMNS)
    assert offset is None
    np.testing.assert_allclose(
        weight, np.linalg.solve(x.T @ x + penalty, x.T @ y + penalty @ before), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("biased", [True, False])
def test_targets_that_are_linear_in_others_need_no_rows(biased: bool) -> None:
    """Stops a bias that is added once in place of once a row, or a weight that is applied to the wrong sums."""
    x, y = rows(outputs=5, inputs=7)
    random = np.random.default_rng(2)
    weight, bias = random.standard_normal((5, 4)), random.standard_normal(4) if biased else np.zeros(4)
    found = collected(x, y).with_targets(torch.tensor(weight), torch.tensor(bias) if biased else None)
    wanted = collected(x, y @ weight + bias)
    for name in ("xx", "xy", "x", "y"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
    assert found.count == wanted.count == len(x)


def test_a_matrix_that_is_not_quite_positive_is_solved_all_the_same() -> None:
    """Stops NaN out of a Cholesky factor that does not exist."""
    square = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    right = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(square @ solve_positive(square, right), right)


def test_running_variance_equals_numpy() -> None:
    """Stops sums of squares that cancel: here the mean is a million times the deviation."""
    rows = np.random.default_rng(0).standard_normal((100, 5)) + 1e6
    running = Variance()
    for part in np.split(rows, [3, 40, 41]):
        running.add(part)
    np.testing.assert_allclose(running.variance, rows.var(axis=0), rtol=1e-6)
