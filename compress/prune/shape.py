"""The shape that a pruned model gets: what GPT2Config can express, what it costs, and which one a budget buys.

GPT-2 knows one width (`n_embd` = heads x head size), one FFN width (`n_inner`) and a number of layers. The head size
stays, since the softmax scale hangs on it. Pure functions; no model is looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chitchat.errors import BadInput

# Rows of 32 weights are what the quantized kernels read at once; FFNs too small for that get finer steps.
ALIGNMENT = 32
_FFN_STEPS = 8

# What a removed share r of an axis costs, in nats per token: weight * r^2 / (1 - r). Measured on a 6 x 320 chat model:
# slicing half of the FFN cost 0.07, half of the layers 0.125, and a fifth of the heads and width 0.13 after a repair
# by least squares (0.25 before it). An ordering for a first choice, not a prediction of the healed model.
_FFN_COST, _LAYER_COST, _WIDTH_COST = 0.14, 0.25, 2.6


@dataclass(frozen=True)
class Shape:
    """The geometry of a GPT-2. `width` and the number of parameters follow from it."""

    layers: int
    heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int
    tied: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """The shape in a `config.json`; an absent `n_inner` means four times the width."""
        width, heads = config["n_embd"], config["n_head"]
        return cls(
            layers=config["n_layer"],
            heads=heads,
            head_dim=width // heads,
            ffn=config.get("n_inner") or 4 * width,
            vocab=config["vocab_size"],
            positions=config["n_positions"],
            tied=config.get("tie_word_embeddings", True),
        )

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Parameters of the `GPT2LMHeadModel`, a tied table counted once."""
        width, ffn = self.width, self.ffn
        attention = 4 * width * width + 4 * width
        mlp = 2 * width * ffn + ffn + width
        norms = 4 * width
        tables = (self.vocab * (1 if self.tied else 2) + self.positions) * width
        return tables + self.layers * (attention + mlp + norms) + 2 * width

    def as_json(self) -> dict[str, int]:
        """The figures that people compare."""
        return {
            "layers": self.layers,
            "width": self.width,
            "heads": self.heads,
            "ffn": self.ffn,
            "vocab": self.vocab,
            "positions": self.positions,
            "parameters": self.parameters,
        }

    def __str__(self) -> str:
        return f"{self.layers} layers x {self.width} wide ({self.heads} heads), FFN {self.ffn}"


def explicit_shape(full: Shape, layers: int | None, width: int | None, ffn: int | None) -> Shape:
    """`full` with the axes that were asked for; one that is None stays. Raises `BadInput` for one that cannot be."""
    for option, asked, most in (("layers", layers, full.layers), ("width", width, full.width), ("ffn", ffn, full.ffn)):
        if asked is not None and not 1 <= asked <= most:
            raise BadInput(f"--{option} {asked}: the model has {most}; choose 1 to {most}")
    if width is not None and width % full.head_dim:
        near = _nearest_widths(width, full)
        raise BadInput(f"--width {width}: not a multiple of the head size {full.head_dim}; the nearest are {near}")
    heads = full.heads if width is None else width // full.head_dim
    shape = replace(full, layers=layers or full.layers, heads=heads, ffn=ffn or full.ffn)
    if shape == full:
        raise BadInput(f"--layers, --width, --ffn: {shape} is the model's own shape; ask for less of at least one")
    return shape


def choose_shape(full: Shape, keep: float) -> Shape:
    """The shape of at most `keep` of the parameters that is expected to cost the least quality.

    For every number of layers and heads the widest FFN within the budget is a candidate; `quality_cost` picks among
    them. Widths and FFNs are multiples of 32 where the model is large enough to have such. Raises `BadInput` for a
    share outside (0, 1) and for a budget below the smallest shape.
    """
    if not 0 < keep < 1:
        raise BadInput(f"--keep {keep:g}: a share of the parameters, between 0 and 1 (0.5 keeps half)")
    budget = int(full.parameters * keep)
    shapes = list(candidate_shapes(full, budget))
    if not shapes:
        least = replace(full, layers=1, heads=_head_counts(full)[0], ffn=_ffn_step(full))
        raise BadInput(
            f"--keep {keep:g}: no shape has so few parameters ({budget:,}); the smallest is {least} with "
            f"{least.parameters:,}, --keep {least.parameters / full.parameters + 5e-4:.3f}"
        )
    return min(shapes, key=lambda shape: (quality_cost(shape, full), -shape.parameters))


def candidate_shapes(full: Shape, budget: int) -> Iterator[Shape]:
    """Every number of layers and heads with the widest FFN that keeps the parameters within `budget`."""
    step = _ffn_step(full)
    for layers in range(1, full.layers + 1):
        for heads in _head_counts(full):
            bare = replace(full, layers=layers, heads=heads, ffn=0)
            per_neuron = layers * (2 * bare.width + 1)
            widest = min(full.ffn, (budget - bare.parameters) // per_neuron)
            ffn = widest if widest == full.ffn else widest // step * step
            shape = replace(bare, ffn=ffn)
            if ffn >= step and shape != full:
                yield shape


def quality_cost(shape: Shape, full: Shape) -> float:
    """Expected loss of quality in nats per token; the weights' origin stands beside them."""
    return (
        _cut(shape.ffn, full.ffn, _FFN_COST)
        + _cut(shape.layers, full.layers, _LAYER_COST)
        + _cut(shape.width, full.width, _WIDTH_COST)
    )


def _cut(kept: int, of: int, cost: float) -> float:
    removed = 1 - kept / of
    return cost * removed * removed / (kept / of)


def _ffn_step(full: Shape) -> int:
    """32, or the largest power of two that leaves a small FFN eight steps."""
    step = ALIGNMENT
    while step > 1 and step * _FFN_STEPS > full.ffn:
        step //= 2
    return step


def _head_counts(full: Shape) -> list[int]:
    """Numbers of heads whose width is a multiple of 32; all of them where no smaller width is."""
    aligned = [heads for heads in range(1, full.heads + 1) if heads * full.head_dim % ALIGNMENT == 0]
    if not aligned or aligned == [full.heads]:
        return list(range(1, full.heads + 1))
    return aligned if full.heads in aligned else [*aligned, full.heads]


def _nearest_widths(width: int, full: Shape) -> str:
    below = width // full.head_dim * full.head_dim
    return " and ".join(str(value) for value in (below, below + full.head_dim) if 0 < value <= full.width)
