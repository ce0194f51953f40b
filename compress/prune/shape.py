"""The shape that a pruned model gets: which geometries can be had of a model, and what they are expected to lose.

Layers, heads, feed-forward units, rows of the vocabulary and positions can go. The head's size stays, since the scale
of the softmax hangs on it, and the width goes with the heads. Pure functions; no model is looked at.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from chitchat.architectures.registry import count_parameters
from chitchat.errors import BadInput
from serve.geometry import Geometry

# Rows of 32 weights are what the quantized kernels read at once; FFNs too small for that get finer steps.
ALIGNMENT = 32
_FFN_STEPS = 8

# What a removed share r of an axis costs after the refit, in nats per token: weight * r^2 / (1 - r). Measured on a
# 6 x 320 chat model: half of the FFN 0.013, nine tenths of it 0.19; one layer of six 0.013, two 0.03 to 0.04; a fifth
# of heads and width 0.09. An ordering for a first choice; candidates are then healed and measured.
_FFN_COST, _LAYER_COST, _WIDTH_COST = 0.027, 0.25, 1.7


def shape_figures(shape: Geometry) -> dict[str, int]:
    """The figures that people compare."""
    return {
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "ffn": shape.ffn,
        "vocab": shape.vocab,
        "positions": shape.context,
        "parameters": count_parameters(shape),
    }


def explicit_shape(
    full: Geometry,
    layers: int | None = None,
    width: int | None = None,
    ffn: int | None = None,
    vocab: int | None = None,
    context: int | None = None,
) -> Geometry:
    """`full` with the axes that were asked for; one that is None stays. Raises `BadInput` for one that cannot be."""
    asked_for = {"layers": layers, "width": width, "ffn": ffn, "vocab": vocab, "context": context}
    for option, asked in asked_for.items():
        most = getattr(full, option)
        if asked is not None and not 1 <= asked <= most:
            raise BadInput(f"--{option} {asked}: the model has {most}; choose 1 to {most}")
    step = full.width // full.heads
    if width is not None and width % step:
        below = width // step * step
        near = " and ".join(str(value) for value in (below, below + step) if 0 < value <= full.width)
        raise BadInput(f"--width {width}: not a multiple of the head size {step}; the nearest are {near}")
    return replace(
        full if width is None else full.with_heads(width // step),
        layers=layers or full.layers,
        ffn=ffn or full.ffn,
        vocab=vocab or full.vocab,
        context=context or full.context,
    )


def candidate_shapes(full: Geometry, fits: Callable[[Geometry], bool]) -> list[Geometry]:
    """For every number of layers and heads the widest FFN that `fits`, the least expected loss first.

    `fits` must hold for a smaller FFN when it holds for a larger one. Widths and FFNs are multiples of 32 where the
    model is large enough to have such. `full` itself is not among them.
    """
    step = _ffn_step(full)
    widths = [*range(step, full.ffn, step), full.ffn]
    found = []
    for layers in range(1, full.layers + 1):
        for heads in _head_counts(full):
            bare = replace(full.with_heads(heads), layers=layers)
            index = bisect_left(widths, True, key=lambda ffn: not fits(replace(bare, ffn=ffn)))
            if index and replace(bare, ffn=widths[index - 1]) != full:
                found.append(replace(bare, ffn=widths[index - 1]))
    return sorted(found, key=lambda shape: (quality_cost(shape, full), -count_parameters(shape)))


def smallest_shape(full: Geometry) -> Geometry:
    """The least that the candidates go down to."""
    return replace(full.with_heads(_head_counts(full)[0]), layers=1, ffn=_ffn_step(full))


def quality_cost(shape: Geometry, full: Geometry) -> float:
    """Expected loss of quality in nats per token; the weights' origin stands beside them."""
    return (
        _cut(shape.ffn, full.ffn, _FFN_COST)
        + _cut(shape.layers, full.layers, _LAYER_COST)
        + _cut(shape.width, full.width, _WIDTH_COST)
    )


def _cut(kept: int, of: int, cost: float) -> float:
    removed = 1 - kept / of
    return cost * removed * removed / (kept / of)


def _ffn_step(full: Geometry) -> int:
    """32, or the largest power of two that leaves a small FFN eight steps."""
    step = ALIGNMENT
    while step > 1 and step * _FFN_STEPS > full.ffn:
        step //= 2
    return step


def _head_counts(full: Geometry) -> list[int]:
    """Numbers of heads whose width is a multiple of 32; all of them where no smaller width is."""
    share, step = full.heads // full.kv_heads, full.width // full.heads
    counts = range(share, full.heads + 1, share)
    aligned = [heads for heads in counts if heads * step % ALIGNMENT == 0]
    if not aligned or aligned == [full.heads]:
        return list(counts)
    return aligned if full.heads in aligned else [*aligned, full.heads]
