"""GPT-2 as nn.Linear modules for torch-pruning's DependencyGraph, and the way back.

transformers' GPT-2 has `Conv1D` modules, with query, key and value fused. torch-pruning has no rule for `Conv1D` and
silently maps a cut of the fused matrix to the query alone. The view has q, k, v, o, c_fc and c_proj as `nn.Linear` and
computes the same numbers. It is for slicing only: no cache, no padding, no dropout.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from chitchat.architectures.protocol import LinearView


class LinearAttention(nn.Module):
    """Causal self-attention over q, k, v, o; any number of heads of `head_dim` fits."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        width = attention.c_attn.weight.shape[0]
        weights = attention.c_attn.weight.detach().split(width, dim=1)  # Conv1D: [in, 3 x out]
        biases = attention.c_attn.bias.detach().split(width)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        self.o = _linear(attention.c_proj.weight.detach(), attention.c_proj.bias.detach())

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        q, k, v = (self._heads(project(hidden_states)) for project in (self.q, self.k, self.v))
        context = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(context.transpose(1, 2).flatten(2)), None

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to [batch, heads, tokens, head_dim]."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class LinearMLP(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.c_fc = _linear(mlp.c_fc.weight.detach(), mlp.c_fc.bias.detach())
        self.c_proj = _linear(mlp.c_proj.weight.detach(), mlp.c_proj.bias.detach())
        self.act = mlp.act

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(hidden_states)))


def linear_view(model: GPT2LMHeadModel) -> LinearView:
    """A copy of `model` in eval mode whose blocks are made of nn.Linear. The original is not touched."""
    view = copy.deepcopy(model).eval()
    view.config.use_cache = False
    blocks = view.transformer.h
    for block in blocks:
        block.attn = LinearAttention(block.attn)
        block.mlp = LinearMLP(block.mlp)
    return LinearView(
        model=view,
        table=view.transformer.wte,
        head_inputs=tuple(block.attn.o for block in blocks),
        inner_outputs=tuple(block.mlp.c_fc for block in blocks),
    )


def weights_of(view: LinearView) -> dict[str, Tensor]:
    """The state dict of the GPT2LMHeadModel with the view's weights."""
    weights = {}
    for name, value in view.model.state_dict().items():
        if ".attn." not in name and ".mlp." not in name:
            weights[name] = value
    for index, block in enumerate(view.model.transformer.h):
        prefix = f"transformer.h.{index}"
        qkv = (block.attn.q, block.attn.k, block.attn.v)
        weights[f"{prefix}.attn.c_attn.weight"] = torch.cat([linear.weight.detach() for linear in qkv]).T.contiguous()
        weights[f"{prefix}.attn.c_attn.bias"] = torch.cat([linear.bias.detach() for linear in qkv])
        linears = {"attn.c_proj": block.attn.o, "mlp.c_fc": block.mlp.c_fc, "mlp.c_proj": block.mlp.c_proj}
        for name, linear in linears.items():
            weights[f"{prefix}.{name}.weight"] = linear.weight.detach().T.contiguous()
            weights[f"{prefix}.{name}.bias"] = linear.bias.detach()
    return weights


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """nn.Linear from a Conv1D's weight [in, out] and bias [out]."""
    linear = nn.Linear(*weight.shape, device="meta")  # its own weights are never drawn
    linear.weight = nn.Parameter(weight.T.contiguous().clone())
    linear.bias = nn.Parameter(bias.clone())
    return linear
