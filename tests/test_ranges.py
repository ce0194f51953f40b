"""What is observed on calibration conversations: against torch's own activations and cache."""

import copy

import numpy as np
import pytest
import torch
from support.bundles import random_gpt2, random_ids
from transformers import DynamicCache

from chitchat.errors import BadInput
from compress.calibrate.ranges import HEADROOM, calibrate_kv, input_ranges

WARNS = "warn_if_padding_and_no_attention_mask"  # of transformers' models


def test_the_scales_of_the_cache_are_those_of_torchs_keys_and_values() -> None:
    """Queries for keys, heads in another order, or padding among the rows give scales of the right size."""
    model = random_gpt2()
    sequences = [random_ids(model, seed)[: 20 + seed] for seed in range(3)]
    scales = calibrate_kv(model, sequences)
    for layer, found in enumerate(scales):
        largest = []
        for ids in sequences:
            cache = DynamicCache()
            with torch.no_grad():
                model(torch.tensor([ids]), cache, use_cache=True)
            parts = cache.layers[layer].keys, cache.layers[layer].values
            largest.append([part.abs().amax(dim=2, keepdim=True).numpy() for part in parts])
        for scale, part in ((found.key, 0), (found.value, 1)):
            want = np.max([each[part] for each in largest], axis=0) * HEADROOM / 127
            assert scale.shape == (1, 4, 1, 8)
            assert scale.dtype == np.float32
            np.testing.assert_allclose(scale, want, rtol=1e-5)


def test_a_sequence_that_ends_with_the_padding_id_is_read_whole_and_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DialoGPT pads with its end of turn, and transformers told users of the library to pass a mask."""
    model, masks = random_gpt2(), []
    ids = random_ids(model, 0)
    plain = input_ranges(model, [ids])
    model.config.pad_token_id = ids[-1]
    monkeypatch.setattr(type(model.base_model), WARNS, lambda self, ids, mask: masks.append(mask))
    assert input_ranges(model, [ids]) == plain
    assert [mask.tolist() for mask in masks] == [[[1] * len(ids)]]


def test_the_ranges_are_those_of_every_linear_layers_input() -> None:
    """A range of the output, or of the last sequence alone, clips what users say."""
    model = random_gpt2()
    sequences = [random_ids(model, seed) for seed in range(3)]
    ranges = input_ranges(model, sequences)
    assert len(ranges) == 4 * 2
    normed = []
    for ids in sequences:
        with torch.no_grad():
            normed.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[0])
    with torch.no_grad():
        first = model.transformer.h[0].ln_1(torch.cat(normed))
    assert ranges["transformer.h.0.attn.c_attn"] == pytest.approx((float(first.min()), float(first.max())), rel=1e-5)
    low, high = ranges["transformer.h.1.mlp.c_proj"]  # behind a GELU
    assert -0.18 < low < 0 < high


def test_observing_leaves_no_hook_behind_even_after_an_error() -> None:
    """Hooks that stay slow every later run down and keep its tensors alive."""
    model = random_gpt2()
    input_ranges(model, [[1, 2, 3]])
    with pytest.raises(IndexError):
        calibrate_kv(model, [[100_000]])
    assert not [module for module in model.modules() if module._forward_hooks]


def test_a_channel_that_is_always_zero_gets_a_scale_that_divides() -> None:
    """A scale of zero makes NaN in the kernel, and NaN spreads over the whole reply."""
    model = random_gpt2()
    with torch.no_grad():
        attention = model.transformer.h[0].attn.c_attn
        attention.weight[:, 32 + 5] = 0
        attention.bias[32 + 5] = 0
    scale = calibrate_kv(model, [random_ids(model)])[0].key
    assert (scale > 0).all()
    assert np.isfinite(1 / scale).all()


@pytest.mark.parametrize("observe", [input_ranges, calibrate_kv])
def test_nothing_to_observe_is_refused_by_one_line(observe) -> None:
    """A data set without conversations would give empty tables and a traceback far away."""
    with pytest.raises(BadInput, match="--data: has no conversation"):
        observe(random_gpt2(), [])


@pytest.mark.parametrize("observe", [input_ranges, calibrate_kv])
def test_activations_that_overflow_are_refused_by_name(observe) -> None:
    """Scales of NaN would be written into the graph."""
    model = copy.deepcopy(random_gpt2())
    with torch.no_grad():
        model.transformer.h[1].ln_1.weight[3] = float("inf")
    with pytest.raises(BadInput, match=r"transformer\.h\.1\.attn\.c_attn: gives NaN or Inf"):
        observe(model, [[1, 2, 3]])
