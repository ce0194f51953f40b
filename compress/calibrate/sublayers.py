"""The halves of GPT-2's layers, attention and feed-forward, as pruning and quantization walk over them.

A half reads the residual stream through a LayerNorm and a `in_proj`, and adds what its `out_proj` gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from compress.calibrate.calibration import Batch


@dataclass(frozen=True)
class Sublayer:
    """`in_proj` is `attn.c_attn` or `mlp.c_fc`, `out_proj` the `c_proj` behind it."""

    norm: nn.Module
    body: nn.Module
    in_proj: nn.Module
    out_proj: nn.Module

    def __call__(self, stream: Tensor) -> Tensor:
        """What the half adds to the stream, [batch, tokens, width]."""
        added = self.body(self.norm(stream))
        return added[0] if isinstance(added, tuple) else added

    def with_inputs(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """What it adds, and the inputs of its writer, [batch, tokens, width or FFN]."""
        seen: list[Tensor] = []
        hook = self.out_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            return self(stream), seen[0]
        finally:
            hook.remove()


def sublayers(block: nn.Module) -> tuple[Sublayer, Sublayer]:
    """The attention and the feed-forward half of a layer, in the order in which they run."""
    return (
        Sublayer(block.ln_1, block.attn, block.attn.c_attn, block.attn.c_proj),
        Sublayer(block.ln_2, block.mlp, block.mlp.c_fc, block.mlp.c_proj),
    )


def embed(model: GPT2LMHeadModel, batches: Sequence[Batch]) -> list[Tensor]:
    """Token and position embeddings of each batch, [batch, tokens, width]: where the residual streams begin."""
    table = model.transformer.wte
    ids = [batch["input_ids"].to(model.device) for batch in batches]
    return [table(each) + model.transformer.wpe.weight[: each.shape[1]] for each in ids]
