"""The fine-tune through the rounding: gradients, integers that come out as they went in, and what it wins."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.architectures.registry import architecture_of, geometry_of
from chitchat.data.dataset import open_dataset
from chitchat.training.stopwatch import Stopwatch
from compress.calibrate.batches import calibration_batches
from compress.calibrate.measure import divergence
from compress.quantize.blockwise import BlockTensor, dequantize_blocks, quantize_blocks
from compress.quantize.finetune import FakeQuant, _latent, finetune
from compress.quantize.model import round_model
from compress.quantize.options import QuantizeOptions
from compress.quantize.schemes import grids


def tensor(bits: int = 4, seed: int = 0) -> tuple[np.ndarray, BlockTensor]:
    """[24, 40] in blocks of 16: the last block is half empty."""
    weight = (np.random.default_rng(seed).standard_normal((24, 40)) * 0.1).astype(np.float32)
    return weight, quantize_blocks(weight, bits, 16)


@pytest.mark.parametrize("bits", [4, 8])
def test_it_begins_with_the_very_integers(bits: int) -> None:
    """Stops a fine-tune that forgets what calibration decided."""
    weight, stored = tensor(bits)
    rounding, latent = FakeQuant(stored), torch.from_numpy(_latent(stored, weight).T.copy())
    np.testing.assert_array_equal(rounding(latent).detach().numpy().T, dequantize_blocks(stored))
    again = rounding.tensor(latent)
    np.testing.assert_array_equal(again.q, stored.q)
    np.testing.assert_array_equal(again.scales, stored.scales)


def test_a_latent_weight_lies_as_near_to_its_float_as_its_integer_allows() -> None:
    """Stops weights that must move half a step before anything happens, and ones that flip at the first."""
    weight, stored = tensor()
    latent = _latent(stored, weight)
    np.testing.assert_array_equal(quantize_blocks(weight, 4, 16).q, stored.q)
    inside = np.abs(weight - dequantize_blocks(stored)) < 0.4 * np.abs(np.repeat(stored.scales, 16, 1)[:, :40])
    np.testing.assert_array_equal(latent[inside], weight[inside])
    moved = stored.q.copy()
    moved[0, 0, 0] ^= 1  # the neighbouring integer of the first weight
    other = BlockTensor(moved, stored.scales, 40, 4, 16)
    change = np.abs(_latent(other, weight) - latent)
    assert change[0, 0] > 0
    assert not change[1:].any()


def test_gradients_pass_the_rounding_and_stop_at_the_bounds() -> None:
    """Straight-through for weights, LSQ's for scales: checked against their definitions."""
    weight, stored = tensor()
    rounding = FakeQuant(stored)
    latent = torch.from_numpy(weight.T.copy()).requires_grad_()
    latent.data[0, 0] = 100 * float(stored.scales[0, 0])  # far beyond the largest integer
    upstream = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    (rounding(latent) * upstream).sum().backward()
    scales = torch.from_numpy(np.repeat(stored.scales, 16, 1)[:, :40].T.copy())
    levels = latent.detach() / scales
    beyond = (levels < -8) | (levels > 7)
    assert beyond[0, 0]
    assert not beyond.all()
    assert latent.grad is not None
    torch.testing.assert_close(latent.grad, torch.where(beyond, 0.0, upstream))
    bounded = levels.clamp(-8, 7)
    per_weight = torch.where(beyond, bounded, bounded.round() - levels) * scales * upstream
    blocks = torch.nn.functional.pad(per_weight.T, (0, 8)).unflatten(1, (-1, 16)).sum(-1)
    assert rounding.stretch.grad is not None
    torch.testing.assert_close(rounding.stretch.grad, blocks, rtol=1e-4, atol=1e-5)


def model_that_rounding_hurts() -> GPT2LMHeadModel:
    """A random GPT-2 of the tiny data's vocabulary, whose weights are large enough to matter."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=300, n_layer=2, n_embd=32, n_head=4, n_positions=64, initializer_range=0.15,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def test_a_fine_tune_comes_nearer_to_the_original(tmp_path: Path, tiny_data: Path) -> None:
    """Stops a loss that teaches something else, and a model that is not what its integers stand for."""
    original, data = model_that_rounding_hurts(), open_dataset(tiny_data)
    rounded = round_model(original, grids(geometry_of(original), "w4", 32), "rtn")
    linears = {name: each for name, each in rounded.matrices.items() if architecture_of(original).is_transposed(name)}
    floats = {name: original.get_submodule(name).weight.detach().numpy().T.copy() for name in linears}
    batches = calibration_batches(data.windows("validation", 32), data.dialogue.pad_id, 4096)
    before = divergence(original, rounded.model, batches).kl
    ticks = itertools.count()
    stopwatch = Stopwatch(lambda: next(ticks) / 10)  # a machine that is as fast however much runs beside the test
    options = QuantizeOptions(kd_minutes=0.2)
    tuned = finetune(rounded.model, original, linears, floats, data, tmp_path / "work", options, stopwatch=stopwatch)
    assert divergence(original, rounded.model, batches).kl < 0.7 * before
    assert tuned.matrices.keys() == linears.keys()
    for name, each in tuned.matrices.items():
        weight = rounded.model.get_submodule(name).weight
        np.testing.assert_allclose(weight.detach().numpy().T, dequantize_blocks(each), rtol=1e-6, atol=1e-9)
        assert each.q.shape == linears[name].q.shape
    assert sum((each.q != linears[name].q).mean() for name, each in tuned.matrices.items()) > 0
    np.testing.assert_array_equal(
        rounded.model.transformer.wte.weight.detach().numpy(), dequantize_blocks(rounded.matrices["transformer.wte"])
    )
    assert all(parameter.requires_grad for parameter in rounded.model.parameters())
    assert not [name for name in rounded.model.state_dict() if "parametrizations" in name]
