"""A small model, and the options of a short healing run with replies of the student's own."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from compress.distill.options import HealOptions


def model(layers: int = 2, width: int = 16, seed: int = 0, dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=300, n_layer=layers, n_embd=width, n_head=2, n_positions=32, initializer_range=0.1,
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        )
    )  # fmt: skip


OPTIONS = HealOptions(heal_epochs=30, batch_size=8, dropout=None, own_replies=0.6)
