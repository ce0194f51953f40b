"""The shape that a pruned model gets: what GPT2Config can express, what it costs, and which ones a budget buys.

GPT-2 knows one width (`n_embd` = heads x head size), one FFN width (`n_inner`) and a number of layers. The head size
stays, since the softmax scale hangs on it. Pure functions; no model is looked at.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chitchat.errors import BadInput

# Rows of 32 weights are what the quantized kernels read at once; FFNs too small for that get finer steps.
ALIGNMENT = 32
_FFN_STEPS = 8

# What a removed share r of an axis costs after the refit, in nats per token: weight * r^2 / (1 - r). BenchResult on a
# 6 x 320 chat model: half of the FFN 0.013, nine tenths of it 0.19; one layer of six 0.013, two 0.03 to 0.04; a fifth
# of heads and width 0.09. An ordering for a first choice; candidates are then healed and measured.
_FFN_COST, _LAYER_COST, _WIDTH_COST = 0.027, 0.25, 1.7


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

    @property
    def name(self) -> str:
        """The shape in one word: `5x320-ffn288`."""
        return f"{self.layers}x{self.width}-ffn{self.ffn}"


def explicit_shape(
    full: Shape,
    layers: int | None = None,
    width: int | None = None,
    ffn: int | None = None,
    vocab: int | None = None,
    context: int | None = None,
) -> Shape:
    """`full` with the axes that were asked for; one that is None stays. Raises `BadInput` for one that cannot be."""
    asked_for = {"layers": layers, "width": width, "ffn": ffn, "vocab": vocab, "context": context}
    there = (full.layers, full.width, full.ffn, full.vocab, full.positions)
    for (option, asked), most in zip(asked_for.items(), there, strict=True):
        if asked is not None and not 1 <= asked <= most:
            raise BadInput(f"--{option} {asked}: the model has {most}; choose 1 to {most}")
    if width is not None and width % full.head_dim:
        near = _nearest_widths(width, full)
        raise BadInput(f"--width {width}: not a multiple of the head size {full.head_dim}; the nearest are {near}")
    return replace(
        full,
        layers=layers or full.layers,
        heads=full.heads if width is None else width // full.head_dim,
        ffn=ffn or full.ffn,
        vocab=vocab or full.vocab,
        positions=context or full.positions,
    )


def candidate_shapes(full: Shape, fits: Callable[[Shape], bool]) -> list[Shape]:
    """For every number of layers and heads the widest FFN that `fits`, the least expected loss first.

    `fits` must hold for a smaller FFN when it holds for a larger one. Widths and FFNs are multiples of 32 where the
    model is large enough to have such. `full` itself is not among them.
    """
    step = _ffn_step(full)
    widths = [*range(step, full.ffn, step), full.ffn]
    found = []
    for layers in range(1, full.layers + 1):
        for heads in _head_counts(full):
            bare = replace(full, layers=layers, heads=heads)
            place = bisect_left(widths, True, key=lambda ffn: not fits(replace(bare, ffn=ffn)))
            if place and replace(bare, ffn=widths[place - 1]) != full:
                found.append(replace(bare, ffn=widths[place - 1]))
    return sorted(found, key=lambda shape: (quality_cost(shape, full), -shape.parameters))


def smallest_shape(full: Shape) -> Shape:
    """The least that the candidates go down to."""
    return replace(full, layers=1, heads=_head_counts(full)[0], ffn=_ffn_step(full))


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
