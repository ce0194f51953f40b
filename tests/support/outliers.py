"""GPT-2's outlier channels, put into a model that has none, without changing what it computes."""

import copy

import torch
from transformers import GPT2LMHeadModel


@torch.no_grad()
def with_outliers(model: GPT2LMHeadModel, factors: tuple[float, ...] = (100.0, 1000.0, 100.0)) -> GPT2LMHeadModel:
    """A copy whose LayerNorms give one channel for each of `factors` so many times its size; the matrix behind takes it
    back. In exact arithmetic nothing changes."""
    changed = copy.deepcopy(model).eval()
    width = model.config.n_embd
    for index, block in enumerate(changed.transformer.h):
        for norm, reader in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            for place, factor in enumerate(factors):
                channel = (7 * index + 13 * place + 3) % width
                norm.weight[channel] *= factor
                norm.bias[channel] *= factor
                reader.weight[channel] /= factor
    return changed
