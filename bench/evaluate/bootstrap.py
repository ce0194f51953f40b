"""Intervals of 95 % over conversations: what another draw of held-out conversations could have given.

Turns of one conversation are alike, so conversations are drawn, never tokens. A figure that divides sums is
bootstrapped (percentiles; Efron 1979). A count of different things, such as distinct-2, is not: a resample holds
conversations twice and so fewer different things (measured: 0.7 of the figure, and a spread 2 to 2.7 times too wide),
so it gets the delete-one jackknife (Tukey 1958), whose spread was measured to be right within 10 %; so does the entropy
of n-grams, for the same reason (spread 6 to 14 % too wide on made-up Zipfian replies).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

DRAWS = 1000
_SEED = 0
_MAX_DRAWN = 2**22
_SIGMAS = 1.959964  # of a normal distribution, 95 % lie within so many standard deviations

Floats = npt.NDArray[np.floating[Any]]
Interval = list[float]


def resampled(columns: Sequence[npt.ArrayLike]) -> Floats:
    """Sums of columns over resampled conversations, float64 [columns, DRAWS]; each column is [conversations].

    The draws depend on the number of conversations alone, so figures of two models are paired.
    """
    table = np.asarray(columns, dtype=np.float64)  # [columns, conversations]
    count = table.shape[1]
    random = np.random.default_rng(_SEED)
    at_once = max(1, _MAX_DRAWN // max(1, count))
    sums = []
    for begin in range(0, DRAWS, at_once):
        chosen = random.integers(0, count, size=(min(at_once, DRAWS - begin), count))
        sums.append(np.stack([column[chosen].sum(axis=1) for column in table]))
    return np.concatenate(sums, axis=1)


def percentiles(figures: Floats) -> Interval | None:
    """The middle 95 % of bootstrapped figures [DRAWS]; None when some are not numbers (nothing to divide by)."""
    if not np.isfinite(figures).all():
        return None
    low, high = np.percentile(figures, (2.5, 97.5))
    return [float(low), float(high)]


def ratio_interval(above: npt.ArrayLike, below: npt.ArrayLike) -> Interval | None:
    """The interval of sum(above) / sum(below), both [conversations]. None for fewer than two conversations."""
    if np.size(above) < 2:
        return None
    sums = resampled([above, below])
    with np.errstate(invalid="ignore", divide="ignore"):
        return percentiles(sums[0] / sums[1])


def share(part: npt.ArrayLike, whole: npt.ArrayLike) -> float:
    """sum(part) / sum(whole), 0 of nothing."""
    return float(np.sum(part) / max(1, np.sum(whole)))


def with_interval(name: str, above: npt.ArrayLike, below: npt.ArrayLike) -> dict[str, Any]:
    """`name`: sum(above) / sum(below) over conversations, and `name_interval`: its interval."""
    return {name: share(above, below), f"{name}_interval": ratio_interval(above, below)}


def jackknife_interval(figure: float, left_out: npt.ArrayLike) -> Interval | None:
    """The interval of a positive figure from those without one conversation each, [conversations].

    It is symmetric in the logarithm. None for fewer than two conversations, or where a figure is not positive.
    """
    without = np.asarray(left_out, dtype=np.float64)
    if without.size < 2 or figure <= 0 or not (np.isfinite(without) & (without > 0)).all():
        return None
    logs = np.log(without)
    error = float(np.sqrt((logs.size - 1) / logs.size * np.square(logs - logs.mean()).sum()))
    return [figure * float(np.exp(-_SIGMAS * error)), figure * float(np.exp(_SIGMAS * error))]
