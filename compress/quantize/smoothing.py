"""Moving the size of channels from activations into weights, or back, without changing what a model computes.

GPT-2's LayerNorms give a few channels values a hundred times those of others. An integer grid that a channel shares
with its neighbours then spends its levels on that channel. Dividing a channel of the LayerNorm's gain and bias by s and
multiplying the row of the matrix behind it by s changes nothing in exact arithmetic; so does dividing a column of the
value projection and multiplying the row of `attn.c_proj`. The s of a channel is

    (size of its activations) ** a / (size of its weights) ** (1 - a)

(SmoothQuant, arXiv 2211.10438, with maxima; AWQ, arXiv 2306.00978, searches a). Every a of `EXPONENTS`, and s = 1, is
tried on calibration rows with the rounding that will be done, and the one whose outputs differ least is folded. The
FFN's second matrix reads through GELU, where nothing can be folded.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from compress.calibrate.calibration import Batch
from compress.calibrate.sublayers import Sublayer, embed, sublayers

EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ROWS = 512  # calibration positions that an exponent is tried on

# (inputs [rows, in], weight [in, out]) to the product as the scheme would round it, [rows, out]
QuantizedModel = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def smooth(model: GPT2LMHeadModel, batches: Sequence[Batch], rounded: QuantizedModel) -> dict[str, float]:
    """Rescale the channels of `model` in place for products that are computed by `rounded`.

    Gives the share of the rounding error that is left, by module (1 where nothing was gained). The function of the
    model does not change but for float32 rounding. `batches` are right-padded calibration windows.
    """
    model.eval()
    masks = [batch["attention_mask"].bool() for batch in batches]
    streams = embed(model, batches)
    left: dict[str, float] = {}
    for index, block in enumerate(model.transformer.h):
        for name, half in zip(("attn", "mlp"), sublayers(block), strict=True):
            module = f"transformer.h.{index}.{name}"
            read = _rows([half.norm(stream)[mask] for stream, mask in zip(streams, masks, strict=True)])
            scale, left[f"{module}.{'c_attn' if name == 'attn' else 'c_fc'}"] = search(
                read, half.in_proj.weight, rounded
            )
            _rescale(half.norm, half.in_proj, scale)
            if name == "attn":
                written = _rows([half.with_inputs(s)[1][mask] for s, mask in zip(streams, masks, strict=True)])
                scale, left[f"{module}.c_proj"] = search(written, half.out_proj.weight, rounded)
                _rescale_values(half, scale)
            streams = [stream + half(stream) for stream in streams]
    return left


def search(inputs: Tensor, weight: Tensor, rounded: QuantizedModel) -> tuple[Tensor, float]:
    """The best scales of the input channels, float32 [in], and the share of the squared error that they leave.

    `inputs` [rows, in], `weight` [in, out].
    """
    exact = inputs.double() @ weight.double()

    def error(scale: Tensor) -> float:
        return float((rounded(inputs / scale, weight * scale[:, None]).double() - exact).square().mean())

    best = torch.ones(len(weight))
    least = plain = error(best)
    seen, held = inputs.abs().amax(0), weight.abs().amax(1)
    used = (seen > 0) & (held > 0)  # a channel that is always zero keeps its scale
    for exponent in EXPONENTS:
        scale = torch.where(used, seen.clamp_min(1e-12) ** exponent / held.clamp_min(1e-12) ** (1 - exponent), 1.0)
        scale = scale / scale[used].log().mean().exp() if used.any() else scale
        scale = torch.where(used, scale, 1.0)
        if (found := error(scale)) < least:
            best, least = scale, found
    return best, least / plain if plain > 0 else 1.0


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """At most `ROWS` of all rows, evenly taken."""
    rows = torch.cat(list(parts)).float()
    return rows[:: max(1, len(rows) // ROWS)][:ROWS]


def _rescale(norm: nn.Module, in_proj: nn.Module, scale: Tensor) -> None:
    norm.weight.div_(scale)
    norm.bias.div_(scale)
    in_proj.weight.mul_(scale[:, None])


def _rescale_values(half: Sublayer, scale: Tensor) -> None:
    """Divide the values by `scale`, [width], and multiply what reads their mixture."""
    width = len(scale)
    half.in_proj.weight[:, 2 * width :].div_(scale)
    half.in_proj.bias[2 * width :].div_(scale)
    half.out_proj.weight.mul_(scale[:, None])
