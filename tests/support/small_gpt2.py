"""A small model whose biases and gains differ from 0 and 1, and batches of conversations for it."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

VOCAB, CONTEXT = 60, 24


def make_model(layers: int = 3, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_layer=layers, n_embd=32, n_head=4, n_inner=64, n_positions=CONTEXT, initializer_range=0.15
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # transformers starts biases at 0 and gains at 1; a slip in fitting those would not show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return model


def batches(count: int = 24, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Random conversations of two lengths, the shorter ones padded with an id that must not be read."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        ids = torch.randint(0, VOCAB, (4, 20), generator=draw)
        mask = torch.ones_like(ids)
        mask[2:, 15:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found
