"""Folding: the function stays, outliers go, and only where that pays."""

from functools import partial

import pytest
import torch
from support.outliers import with_outliers
from support.small_gpt2 import batches, make_model

from chitchat.architectures.registry import ARCHITECTURES
from compress.calibrate.measure import divergence
from compress.quantize.rounding import block_product, channel_product
from compress.quantize.smoothing import search, smooth
from tests.support.llama import Llama, random_llama

BLOCKS = partial(block_product, bits=4, block_size=16)


@pytest.mark.parametrize("product", [BLOCKS, channel_product])
@pytest.mark.parametrize("outliers", [False, True])
def test_folding_changes_no_logit(product, outliers: bool) -> None:
    """Stops a channel that is divided in one place and not multiplied in the other."""
    model = make_model()
    changed = with_outliers(model) if outliers else make_model()
    smooth(changed, batches(4), product)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(changed(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_values_that_heads_share_are_folded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a value column that is divided for one head and not for the other that reads it."""
    monkeypatch.setitem(ARCHITECTURES, "llama", Llama())
    model, changed = random_llama(), random_llama()
    windows = batches(4)
    for batch in windows:
        batch["input_ids"] %= model.config.vocab_size
    left = smooth(changed, windows, channel_product).left
    assert {name.split(".", 3)[3] for name in left} == {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"
    }  # fmt: skip
    assert not torch.equal(
        changed.model.layers[0].self_attn.v_proj.weight, model.model.layers[0].self_attn.v_proj.weight
    )
    with torch.no_grad():
        ids = windows[0]["input_ids"]
        torch.testing.assert_close(changed(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_outliers_are_folded_away() -> None:
    """Stops a per-tensor grid from spending its levels on three channels."""
    changed = with_outliers(make_model())
    left = smooth(changed, batches(4), channel_product).left
    in_projs = [share for name, share in left.items() if not name.endswith("c_proj")]
    assert max(in_projs) < 0.01
    assert set(left) == {f"transformer.h.{i}.{m}" for i in range(3) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")}
    for block in changed.transformer.h:
        for norm in (block.ln_1, block.ln_2):
            assert norm.weight.abs().max() < 30 * norm.weight.abs().median()


def test_nothing_is_folded_that_does_not_pay() -> None:
    """A search that takes the last exponent, or the first, makes a product worse."""
    model = make_model()
    for share in smooth(model, batches(4), BLOCKS).left.values():
        assert share <= 1


def test_the_search_takes_the_scales_that_lose_least() -> None:
    """Stops scales that were tried and not taken, and a share that belongs to others."""
    draw = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(64, 32, generator=draw), torch.randn(32, 24, generator=draw)
    inputs[:, 5] *= 300
    scale, share = search(inputs, weight, channel_product)

    def error(by: torch.Tensor) -> float:
        return float((channel_product(inputs / by, weight * by[:, None]) - inputs @ weight).square().mean())

    assert error(scale) / error(torch.ones(32)) == pytest.approx(share, rel=0.02)
    assert share < 0.1
    assert scale[5] == scale.max()


def test_a_wide_weight_is_tried_on_outputs_from_all_over() -> None:
    """Stops a choice by the first outputs alone, and sizes of weights that are taken from some outputs only."""
    draw = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(64, 32, generator=draw), torch.randn(32, 512, generator=draw)
    inputs[:, 5] *= 300
    weight[7, -1] *= 50  # the largest weight of its channel stands among the last outputs
    scale, share = search(inputs, weight, channel_product)
    wide, wide_share = search(inputs, weight.repeat_interleave(4, dim=1), channel_product)
    torch.testing.assert_close(wide, scale)
    assert wide_share == pytest.approx(share, rel=1e-4)


def test_a_silent_channel_keeps_its_scale() -> None:
    """Stops 0 / 0 behind a channel that a LayerNorm has switched off."""
    inputs, weight = torch.randn(64, 32), torch.randn(32, 24)
    inputs[:, 3], weight[7] = 0, 0
    scale, _ = search(inputs * torch.linspace(1, 50, 32), weight, channel_product)
    assert torch.isfinite(scale).all()
    assert scale[3] == scale[7] == 1


def test_what_is_no_channel_of_a_layernorm_stays() -> None:
    """Stops a fold over GELU, which is not linear."""
    model, before = make_model(), make_model()
    smooth(model, batches(4), channel_product)
    for name, value in model.named_parameters():
        if name.endswith(("mlp.c_proj.weight", "mlp.c_proj.bias", "wte.weight", "wpe.weight", "ln_f.weight")):
            torch.testing.assert_close(value, before.get_parameter(name), rtol=0, atol=0)
    assert divergence(before, model, batches(2)).kl < 1e-9
