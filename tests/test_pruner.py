"""What the pruner hands on: the scores of the layers that stay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.architectures.registry import geometry_of
from chitchat.data.dataset import open_dataset
from compress.prune.pruner import Pruner
from compress.prune.shape import explicit_shape


def test_the_units_that_go_are_those_of_the_layers_that_stay(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops scores of the first layers for whichever stay: the wrong units of every layer behind the cut would go."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_layer=4, n_embd=32, n_head=4, n_positions=64)).eval()
    monkeypatch.setattr("compress.prune.pruner.removal_order", lambda *_: [1])
    pruner = Pruner(model, open_dataset(tiny_data), importance="magnitude", refits=False)
    full, scores = geometry_of(model), pruner.scores()
    pruned = pruner.prune(explicit_shape(full, layers=3, ffn=full.ffn // 2))
    assert pruned.layers == [0, 2, 3]
    for new, old in enumerate(pruned.layers):
        kept = np.sort(np.argsort(-scores.neurons[old], kind="stable")[: full.ffn // 2])
        cut = pruned.student.transformer.h[new].mlp.c_fc.weight
        assert torch.equal(cut, model.transformer.h[old].mlp.c_fc.weight[:, kept])
