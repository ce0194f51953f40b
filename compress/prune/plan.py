"""What a budget buys: a table of candidate shapes with parameters, megabytes and milliseconds.

Nothing is pruned here. Sizes and times are those of the bundle that the pruned model becomes (`--scheme`). Times are
measured on this machine with the real engine by a `CostModel` that the caller passes in. A time budget is first
translated into shapes by a linear model, fitted to a few measured ones; what is then proposed is measured again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chitchat.architectures.registry import architecture_of, count_parameters
from chitchat.errors import BadInput
from compress.prune.options import PruneOptions
from compress.prune.shape import candidate_shapes, explicit_shape, quality_cost, smallest_shape
from serve.geometry import Geometry

Floats = NDArray[np.float64]

_FIGURES = ("file_mb", "ms_per_token", "perplexity", "perplexity_ratio", "kl", "steps", "chosen")
_SLACK = 1.02  # a shape that is measured this much slower than asked still fits: the next measurement may be faster


class CostModel(Protocol):
    """What measures shapes that nobody has trained yet, in the engine that ships."""

    def measure(self, shapes: Sequence[Geometry]) -> list[float]:
        """Decode time of each shape in ms per token, measured in turn."""

    def file_mb(self, shape: Geometry) -> float:
        """Size of the bundle in 10^6 bytes."""


@dataclass(frozen=True)
class Candidate:
    """A shape that the budget buys. `perplexity`, its ratio to the uncut model's on the same tokens, and `kl` are
    filled in when it has been tried, after `steps` of healing; `chosen` says which one was taken."""

    shape: Geometry
    expected_loss: float
    file_mb: float | None = None
    ms_per_token: float | None = None
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    kl: float | None = None
    steps: int = 0
    chosen: bool = False

    @classmethod
    def of(cls, shape: Geometry, full: Geometry) -> "Candidate":
        """An untried candidate."""
        return cls(shape, quality_cost(shape, full))

    @classmethod
    def from_json(cls, row: Mapping[str, Any], full: Geometry) -> "Candidate":
        """The candidate of a stored row; `full` is what its shape is cut from."""
        shape = replace(full.with_heads(row["heads"]), layers=row["layers"], ffn=row["ffn"])
        figures = {name: row[name] for name in _FIGURES}
        return replace(cls.of(shape, full), **figures)

    def as_json(self) -> dict[str, Any]:
        """The row of a lineage and of a report."""
        sizes = {name: getattr(self.shape, name) for name in ("layers", "width", "heads", "ffn")}
        parameters = {"parameters": count_parameters(self.shape)}
        return {"shape": self.shape.name, **parameters, **sizes, **{name: getattr(self, name) for name in _FIGURES}}


def find_candidates(
    whole_parameters: int, trimmed: Geometry, options: PruneOptions, cost_model: CostModel | None
) -> list[Candidate]:
    """What the budget buys of a model in the shape `trimmed`; the shape itself where one was asked for."""
    if options.has_budget:
        return plan_candidates(whole_parameters, trimmed, options, cost_model)
    return [Candidate.of(explicit_shape(trimmed, options.layers, options.width, options.ffn), trimmed)]


def plan_candidates(
    whole_parameters: int, budgeted: Geometry, options: PruneOptions, cost_model: CostModel | None
) -> list[Candidate]:
    """At most `options.candidates` shapes within the budget, the least expected loss first, their times measured.

    `whole_parameters` are those of the model as it came, of which `keep` is a share; `budgeted` is it after the
    vocabulary and the positions were trimmed, what the shapes are cut from. Raises `BadInput` for a budget that no
    shape meets, with the smallest.
    """
    predict = (
        _time_model(budgeted, cost_model) if options.max_ms_per_token is not None and cost_model is not None else None
    )

    def fits(shape: Geometry) -> bool:
        if options.keep is not None and count_parameters(shape) > int(options.keep * whole_parameters):
            return False
        if options.max_mb is not None and _file_mb(shape, cost_model) > options.max_mb:
            return False
        return predict is None or predict(shape) <= float(options.max_ms_per_token or 0)

    shapes = candidate_shapes(budgeted, fits)
    if not shapes:
        raise BadInput(_nothing_fits(whole_parameters, budgeted, options, cost_model))
    shapes = shapes[: options.candidates]
    if cost_model is None:
        return [Candidate.of(shape, budgeted) for shape in shapes]
    found = [
        Candidate(shape, quality_cost(shape, budgeted), cost_model.file_mb(shape), ms)
        for shape, ms in zip(shapes, cost_model.measure(shapes), strict=True)
    ]
    if options.max_ms_per_token is not None:
        limit = _SLACK * options.max_ms_per_token
        fitting = [row for row in found if row.ms_per_token is not None and row.ms_per_token <= limit]
        found = fitting or [min(found, key=lambda row: row.ms_per_token or 0.0)]
    return found


def _time_model(full: Geometry, cost_model: CostModel) -> Callable[[Geometry], float]:
    """ms per token of any shape: a constant, a cost per layer, per weight of the layers, per weight of the head."""
    half = max(1, full.layers // 2)
    narrow = max(1, full.kv_heads // 2) * (full.heads // full.kv_heads)
    probes = {
        full,
        replace(full, layers=half),
        replace(full, ffn=max(8, full.ffn // 4)),
        full.with_heads(narrow),
        replace(full, layers=half, ffn=max(8, full.ffn // 4)),
        replace(full.with_heads(narrow), layers=1, ffn=max(8, full.ffn // 4)),
    }
    shapes = sorted(probes, key=lambda shape: -count_parameters(shape))
    times = np.asarray(cost_model.measure(shapes))
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


def _work(shape: Geometry) -> list[float]:
    layer = sum(
        matrix.rows * matrix.columns
        for matrix in architecture_of(shape).matrices(replace(shape, layers=1))
        if not matrix.table
    )
    return [1.0, shape.layers, shape.layers * layer, shape.vocab * shape.width]


def _file_mb(shape: Geometry, cost_model: CostModel | None) -> float:
    if cost_model is None:
        raise ValueError("a size budget needs a cost model")
    return cost_model.file_mb(shape)


def _nothing_fits(
    whole_parameters: int, budgeted: Geometry, options: PruneOptions, cost_model: CostModel | None
) -> str:
    """Which budget is too small, and the smallest that can be had."""
    least = smallest_shape(budgeted)
    texts = []
    if options.keep is not None:
        share = count_parameters(least) / whole_parameters + 5e-4
        texts.append(f"--keep {options.keep:g}: the smallest is --keep {share:.3f}")
    if options.max_mb is not None and cost_model is not None:
        texts.append(
            f"--max-mb {options.max_mb:g}: the smallest has {cost_model.file_mb(least):.2f} MB ({options.scheme})"
        )
    if options.max_ms_per_token is not None and cost_model is not None:
        fastest = cost_model.measure([least])[0]
        texts.append(f"--max-ms-per-token {options.max_ms_per_token:g}: the fastest takes {fastest:.3f} ms here")
    return f"{'; '.join(texts)}; that is {least} with {count_parameters(least):,} parameters; ask for no less"
