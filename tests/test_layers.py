"""Layers: which ones go, and that nothing else changes."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from compress.calibrate.measure import mean_loss
from compress.prune.layers import keep_layers, removal_order
from tests.support.some_layers import only_layers


def make_model(tied: bool = True) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_layer=4, n_embd=32, n_head=4, n_positions=16, initializer_range=0.3, tie_word_embeddings=tied
    )
    return GPT2LMHeadModel(config).eval()


def batches(model: GPT2LMHeadModel) -> list[dict[str, torch.Tensor]]:
    """Greedy continuations by `model` itself, so that every layer it uses is worth something."""
    ids = torch.randint(0, 50, (8, 2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def silence(model: GPT2LMHeadModel, layer: int) -> None:
    """Make a layer add nothing to the residual stream."""
    with torch.no_grad():
        for projection in (model.transformer.h[layer].attn.c_proj, model.transformer.h[layer].mlp.c_proj):
            projection.weight.zero_()
            projection.bias.zero_()


def test_layers_that_do_nothing_go_first() -> None:
    """Stops a choice by position: the idle layers go, wherever they stand."""
    model = make_model()
    silence(model, 1)
    silence(model, 3)
    assert sorted(removal_order(model, batches(model), 2)) == [1, 3]
    assert removal_order(model, batches(model), 0) == []


def test_the_order_is_that_of_trying_each_in_whole_runs() -> None:
    """Stops streams that are shared between trials, padding among what is scored, and a norm left out."""
    model, inputs = make_model(), batches(make_model())
    inputs[0]["attention_mask"][4:, 9:] = 0
    inputs[0]["labels"] = inputs[0]["input_ids"].masked_fill(inputs[0]["attention_mask"] == 0, -100)
    left, order = [0, 1, 2, 3], []
    while len(left) > 1:
        losses = {}
        for tried in left[1:]:
            with only_layers(model, [layer for layer in left if layer != tried]):
                losses[tried] = mean_loss(model, inputs)
        order.append(min(losses, key=losses.__getitem__))
        left.remove(order[-1])
    assert removal_order(model, inputs, 3) == order
    assert removal_order(model, inputs, 3, order[:1]) == order
    assert removal_order(model, inputs, 1, order[:2]) == order[:1]


def test_the_first_layer_is_the_last_to_go() -> None:
    """Stops the one cut that destroys a model: even an idle first layer stays."""
    model = make_model()
    silence(model, 0)
    assert sorted(removal_order(model, batches(model), 3)) == [1, 2, 3]


def test_a_removed_idle_layer_changes_no_logit() -> None:
    """Stops wrong renumbering: the layers behind the cut must be the old ones, bit for bit."""
    for tied in (True, False):
        model = make_model(tied)
        silence(model, 1)
        small = keep_layers(model, [0, 2, 3])
        ids = batches(model)[0]["input_ids"]
        with torch.no_grad():
            assert torch.equal(small(ids).logits, model(ids).logits)
        assert small.config.n_layer == 3
        assert [block.attn.layer_idx for block in small.transformer.h] == [0, 1, 2]
        assert (small.lm_head.weight is small.transformer.wte.weight) == tied
        assert model.config.n_layer == 4


def test_the_cache_of_a_shortened_model_works() -> None:
    """Stops layer numbers with gaps, which address the wrong slot of transformers' KV cache."""
    small = keep_layers(make_model(), [0, 3])
    ids = torch.tensor([[1, 2, 3]])
    cached = small.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=True)
    plain = small.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(cached, plain)
