"""Before the knife: what a budget buys, as a table of candidate shapes with parameters, megabytes and milliseconds.

Nothing is cut here. Sizes and times are those of the bundle that the pruned model becomes (`--scheme`). Times are
measured on this machine with the real engine by a `CostModel` that the front door passes in. A time budget is first
translated into shapes by a linear model, fitted to a few measured ones; what is then proposed is measured again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chitchat.errors import BadInput
from compress.prune.options import PruneOptions
from compress.prune.shape import Shape, candidate_shapes, quality_cost, smallest_shape

Floats = NDArray[np.float64]

_FIGURES = ("file_mb", "ms_per_token", "perplexity", "perplexity_ratio", "kl", "steps", "chosen")
_SLACK = 1.02  # a shape that is measured this much slower than asked still fits: the next measurement may be faster


class CostModel(Protocol):
    """What measures shapes that nobody has trained yet, in the engine that ships."""

    def measure(self, shapes: Sequence[Shape]) -> list[float]:
        """Decode time of each shape in ms per token, measured in turn."""

    def file_mb(self, shape: Shape) -> float:
        """Size of the bundle in 10^6 bytes."""


@dataclass(frozen=True)
class Candidate:
    """A shape that the budget buys. `perplexity`, its ratio to the uncut model's on the same tokens, and `kl` are
    filled in when it has been tried, after `steps` of healing; `chosen` says which one was taken."""

    shape: Shape
    expected_loss: float
    file_mb: float | None = None
    ms_per_token: float | None = None
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    kl: float | None = None
    steps: int = 0
    chosen: bool = False

    @classmethod
    def of(cls, shape: Shape, full: Shape) -> "Candidate":
        """An untried candidate."""
        return cls(shape, quality_cost(shape, full))

    @classmethod
    def from_json(cls, row: Mapping[str, Any], full: Shape) -> "Candidate":
        """The candidate of a stored row; `full` is what its shape is cut from."""
        sizes = {name: row[name] for name in ("layers", "heads", "ffn")}
        figures = {name: row[name] for name in _FIGURES}
        return replace(cls.of(replace(full, **sizes), full), **figures)

    def as_json(self) -> dict[str, Any]:
        """The row of a lineage and of a report."""
        sizes = {name: getattr(self.shape, name) for name in ("parameters", "layers", "width", "heads", "ffn")}
        return {"shape": self.shape.name, **sizes, **{name: getattr(self, name) for name in _FIGURES}}


def plan_candidates(full: Shape, budgeted: Shape, options: PruneOptions, clock: CostModel | None) -> list[Candidate]:
    """At most `options.candidates` shapes within the budget, the least expected loss first, their times measured.

    `full` is the model as it came, of which `keep` is a share; `budgeted` is it after the vocabulary and the positions
    were trimmed, what the shapes are cut from. Raises `BadInput` for a budget that no shape meets, with the smallest.
    """
    predict = _time_model(budgeted, clock) if options.max_ms_per_token is not None and clock is not None else None

    def fits(shape: Shape) -> bool:
        if options.keep is not None and shape.parameters > int(options.keep * full.parameters):
            return False
        if options.max_mb is not None and _file_mb(shape, clock) > options.max_mb:
            return False
        return predict is None or predict(shape) <= float(options.max_ms_per_token or 0)

    shapes = candidate_shapes(budgeted, fits)
    if not shapes:
        raise BadInput(_nothing_fits(full, budgeted, options, clock))
    shapes = shapes[: options.candidates]
    if clock is None:
        return [Candidate.of(shape, budgeted) for shape in shapes]
    found = [
        Candidate(shape, quality_cost(shape, budgeted), clock.file_mb(shape), ms)
        for shape, ms in zip(shapes, clock.measure(shapes), strict=True)
    ]
    if options.max_ms_per_token is not None:
        limit = _SLACK * options.max_ms_per_token
        fitting = [each for each in found if each.ms_per_token is not None and each.ms_per_token <= limit]
        found = fitting or [min(found, key=lambda each: each.ms_per_token or 0.0)]
    return found


def _time_model(full: Shape, clock: CostModel) -> Callable[[Shape], float]:
    """ms per token of any shape: a constant, a cost per layer, per weight of the layers, per weight of the head."""
    half = max(1, full.layers // 2)
    narrow = max(1, full.heads // 2)
    probes = {
        full,
        replace(full, layers=half),
        replace(full, ffn=max(8, full.ffn // 4)),
        replace(full, heads=narrow),
        replace(full, layers=half, ffn=max(8, full.ffn // 4)),
        replace(full, layers=1, heads=narrow, ffn=max(8, full.ffn // 4)),
    }
    shapes = sorted(probes, key=lambda shape: -shape.parameters)
    times = np.asarray(clock.measure(shapes))
    features = np.asarray([_work(shape) for shape in shapes])
    scale = features.max(axis=0)
    weights = nonnegative_fit(features / scale / times[:, None], np.ones(len(times))) / scale  # of relative errors
    return lambda shape: float(np.dot(_work(shape), weights))


def nonnegative_fit(features: Floats, target: Floats) -> Floats:
    """Least squares with weights of 0 or more, [features]: what comes out negative is left out, the worst first."""
    weights, left = np.zeros(features.shape[1]), list(range(features.shape[1]))
    while left:
        found = np.linalg.lstsq(features[:, left], target, rcond=None)[0]
        if found.min() >= 0:
            weights[left] = found
            break
        left.pop(int(found.argmin()))
    return weights


def _work(shape: Shape) -> list[float]:
    width = shape.width
    return [1.0, shape.layers, shape.layers * (4 * width * width + 2 * width * shape.ffn), shape.vocab * width]


def _file_mb(shape: Shape, clock: CostModel | None) -> float:
    if clock is None:
        raise ValueError("a size budget needs a clock")
    return clock.file_mb(shape)


def _nothing_fits(full: Shape, budgeted: Shape, options: PruneOptions, clock: CostModel | None) -> str:
    """Which budget is too small, and the smallest that can be had."""
    least = smallest_shape(budgeted)
    said = []
    if options.keep is not None:
        share = least.parameters / full.parameters + 5e-4
        said.append(f"--keep {options.keep:g}: the smallest is --keep {share:.3f}")
    if options.max_mb is not None and clock is not None:
        said.append(f"--max-mb {options.max_mb:g}: the smallest has {clock.file_mb(least):.2f} MB ({options.scheme})")
    if options.max_ms_per_token is not None and clock is not None:
        fastest = clock.measure([least])[0]
        said.append(f"--max-ms-per-token {options.max_ms_per_token:g}: the fastest takes {fastest:.3f} ms here")
    return f"{'; '.join(said)}; that is {least} with {least.parameters:,} parameters; ask for no less"
