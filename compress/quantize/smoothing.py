"""Moving the size of channels from activations into weights, or back, without changing what a model computes.

The norms give a few channels values a hundred times those of others. An integer grid that a channel shares
with its neighbours then spends its levels on that channel. Dividing a channel of the norm's gain and bias by s and
multiplying the row of the matrix behind it by s changes nothing in exact arithmetic; so does dividing a column of the
value projection and multiplying the row of attention's out-projection. The s of a channel is

    (size of its activations) ** a / (size of its weights) ** (1 - a)

(SmoothQuant, arXiv 2211.10438, with maxima; AWQ, arXiv 2306.00978, searches a). Every a of `EXPONENTS`, and s = 1, is
tried on calibration rows with the rounding that will be done, and the one whose outputs differ least is folded. A
feed-forward's out-projection reads through its activation, where nothing can be folded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chitchat.architectures.sublayers import Sublayer
from compress.calibrate.batches import Batch, thin
from compress.calibrate.moments import Moments
from compress.calibrate.walk import Streams

EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ROWS = 512  # calibration positions that an exponent is tried on
COLUMNS = 768  # and outputs, or somewhat more
TOKENS = 8 * ROWS  # of which they are taken, evenly

# (inputs [rows, in], weight [in, out]) to the product as the scheme would round it, [rows, out]
RoundedProduct = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Smoothed:
    """`left` is the share of the rounding error that rescaling left, by module (1 where nothing was gained);
    `head_inputs` the mean of x x^T over what the head reads, float64 [width, width]: the walk comes by there."""

    left: dict[str, float]
    head_inputs: Tensor


@torch.no_grad()
def smooth(model: PreTrainedModel, batches: Sequence[Batch], rounded: RoundedProduct) -> Smoothed:
    """Rescale the channels of `model` in place for products that are computed by `rounded`.

    The function of the model does not change but for float32 rounding. `batches` are right-padded calibration windows.
    """
    streams = Streams(model, thin(batches, TOKENS))
    left: dict[str, float] = {}
    for sublayer in streams.sublayers():
        read = _rows(list(streams.read(sublayer)))
        written = _rows(list(streams.through(sublayer)))
        scale, share = search(read, torch.cat([projection.weight for projection in sublayer.in_projs], dim=1), rounded)
        left |= {projection.name: share for projection in sublayer.in_projs}
        _rescale(sublayer, scale)
        if sublayer.linear_value is not None:
            columns = _value_columns(sublayer)
            scale, left[sublayer.out_proj.name] = search(written, sublayer.out_proj.weight, rounded, columns)
            _rescale_values(sublayer, scale, columns)
    moments = Moments(streams.states[0].shape[-1])
    for rows in streams.head_inputs():
        moments.add(rows)
    return Smoothed(left, moments.second)


def search(
    inputs: Tensor, weight: Tensor, rounded: RoundedProduct, channels: Tensor | None = None
) -> tuple[Tensor, float]:
    """The best scales of the input channels, float32 [in], and the share of the squared error that they leave.

    `inputs` [rows, in], `weight` [in, out]. Inputs with the same number in `channels`, int64 [in], get one scale.
    """
    channels = torch.arange(len(weight)) if channels is None else channels
    tried = weight[:, :: max(1, weight.shape[1] // COLUMNS)]
    exact = inputs.double() @ tried.double()

    def error(scale: Tensor) -> float:
        return float((rounded(inputs / scale, tried * scale[:, None]).double() - exact).square().mean())

    best = torch.ones(len(weight))
    least = plain = error(best)
    seen, held = (_largest(size, channels) for size in (inputs.abs().amax(0), weight.abs().amax(1)))
    used = (seen > 0) & (held > 0)  # a channel that is always zero keeps its scale
    for exponent in EXPONENTS:
        scale = torch.where(used, seen.clamp_min(1e-12) ** exponent / held.clamp_min(1e-12) ** (1 - exponent), 1.0)
        scale = scale / scale[used].log().mean().exp() if used.any() else scale
        scale = torch.where(used, scale, 1.0)
        if (found := error(scale)) < least:
            best, least = scale, found
    return best, least / plain if plain > 0 else 1.0


def _largest(sizes: Tensor, channels: Tensor) -> Tensor:
    """For each input the largest of the sizes [in] of those with its number."""
    largest = sizes.new_zeros(int(channels.max()) + 1).scatter_reduce(0, channels, sizes, "amax")
    return largest[channels]


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """At most `ROWS` of all rows, evenly taken."""
    rows = torch.cat(list(parts)).float()
    return rows[:: max(1, len(rows) // ROWS)][:ROWS]


def _rescale(sublayer: Sublayer, scale: Tensor) -> None:
    """Divide what the in-projections read by `scale`, [width], and multiply what they read it with."""
    sublayer.norm.weight.div_(scale)
    if getattr(sublayer.norm, "bias", None) is not None:
        sublayer.norm.bias.div_(scale)
    for projection in sublayer.in_projs:
        projection.weight.mul_(scale[:, None])


def _value_columns(sublayer: Sublayer) -> Tensor:
    """Which column of the values each input of the out-projection is a mixture of, int64 [in]."""
    share = sublayer.heads // sublayer.kv_heads
    columns = torch.arange(sublayer.kv_heads * sublayer.unit_size).unflatten(0, (sublayer.kv_heads, 1, -1))
    return columns.expand(-1, share, -1).flatten()


def _rescale_values(sublayer: Sublayer, scale: Tensor, columns: Tensor) -> None:
    """Divide the values by `scale`, [in], and multiply what reads their mixture."""
    values = sublayer.linear_value
    assert values is not None
    by_column = torch.ones(int(columns.max()) + 1).scatter(0, columns, scale)
    values.projection.weight[:, values.columns].div_(by_column)
    if values.projection.bias is not None:
        values.projection.bias[values.columns].div_(by_column)
    sublayer.out_proj.weight.mul_(scale[:, None])
