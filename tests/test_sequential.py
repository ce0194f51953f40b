"""Quantizing in turn: what each layer is fitted to and measured on, and what all of it wins."""

from functools import partial

import numpy as np
import pytest
import torch
from support.flows import flows, ridge
from support.small_gpt2 import batches, make_model
from transformers import GPT2LMHeadModel

from chitchat.architectures.registry import ARCHITECTURES, architecture_of, geometry_of
from chitchat.architectures.states import last_hidden
from compress.calibrate.measure import divergence
from compress.quantize.blockwise import dequantize_blocks, quantize_blocks
from compress.quantize.methods import quantize_matrix, quantize_matrix_or_search
from compress.quantize.model import QuantizedModel, calibrate_model, checkpoint_of, round_model
from compress.quantize.schemes import Grid, grids
from compress.quantize.sequential import DAMPING, quantize_in_turn
from tests.support.llama import Llama, random_llama

CALIBRATION, HELD_OUT = batches(), batches(8, seed=2)


def shapes_of(model: GPT2LMHeadModel) -> dict[str, tuple[int, int]]:
    matrices = architecture_of(model).matrices(geometry_of(model))
    return {matrix.module: (matrix.rows, matrix.columns) for matrix in matrices}


def four_bits(model: GPT2LMHeadModel) -> dict[str, Grid]:
    return grids(geometry_of(model), "w4", 16)


def untied(seed: int = 3) -> GPT2LMHeadModel:
    model = make_model(seed=seed)
    config = model.config
    config.tie_word_embeddings = False
    changed = GPT2LMHeadModel(config).eval()
    changed.load_state_dict(
        {**model.state_dict(), "lm_head.weight": torch.randn(config.vocab_size, config.n_embd) * 0.1}
    )
    return changed


@torch.no_grad()
def of_head(model, windows) -> torch.Tensor:
    """The mean of x x^T over what the head reads."""
    rows = torch.cat([last_hidden(model, batch["input_ids"])[batch["attention_mask"].bool()] for batch in windows])
    return rows.double().T @ rows.double() / len(rows)


def test_the_table_is_decided_for_what_the_head_reads() -> None:
    """Stops states before the last norm, padding among them, and a table that is decided without them."""
    model, given = make_model(), dict[str, np.ndarray | None]()

    def decide(name: str, weight: np.ndarray, _grid: object, _method: str, covariance: np.ndarray | None) -> object:
        given[name] = covariance
        return quantize_blocks(weight, 4, 16)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("compress.quantize.model.quantize_matrix_or_search", decide)
        calibrate_model(model, four_bits(model), "gptq", CALIBRATION, [])
    found, wanted = given["transformer.wte"], of_head(model, CALIBRATION).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert given["transformer.wpe"] is None


@pytest.mark.parametrize("make", [make_model, untied])
def test_every_matrix_is_decided_once_and_put_back(make) -> None:
    """Stops a matrix that stays float in the model, and integers that are not what the model computes with."""
    original = make()
    model, names = make(), []

    def settle(name: str, weight: np.ndarray, covariance: np.ndarray | None) -> object:
        names.append(name)
        assert weight.shape == shapes_of(original)[name]
        if covariance is not None:
            assert covariance.shape == (weight.shape[1],) * 2
            assert np.linalg.eigvalsh(covariance).min() > -1e-6
        return quantize_blocks(weight, 4, 16)

    matrices = quantize_in_turn(model, original, CALIBRATION, of_head(original, CALIBRATION), settle)
    assert sorted(names) == sorted(shapes_of(original))
    for name, tensor in matrices.items():
        weight = model.get_submodule(name).weight.detach().numpy()
        np.testing.assert_array_equal(
            weight.T if architecture_of(original).is_transposed(name) else weight, dequantize_blocks(tensor)
        )
    assert (model.lm_head.weight is model.transformer.wte.weight) == original.config.tie_word_embeddings


@pytest.mark.parametrize("make", [make_model, random_llama], ids=["gpt2", "llama"])
def test_every_matrix_is_fitted_before_it_is_decided_and_its_bias_after(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a fit on the original's streams, targets of another projection, a covariance of something else, and a bias
    that suits the floats. Without a bias the mean of the inputs is part of what an error costs."""
    monkeypatch.setitem(ARCHITECTURES, "llama", Llama())
    original, model = make(), make()
    windows = batches(12)
    for batch in windows:
        batch["input_ids"] %= original.config.vocab_size
    seen: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}

    def settle(name: str, weight: np.ndarray, covariance: np.ndarray | None) -> object:
        seen[name] = weight.copy(), covariance
        return quantize_blocks(weight, 4, 16)

    matrices = quantize_in_turn(model, original, windows, of_head(original, windows), settle)

    def check(projection, before, x: np.ndarray, y: np.ndarray) -> None:
        weight, covariance = seen[projection.name]
        with_bias = before.bias is not None
        expected = ridge(x, y, before.weight.detach().double().numpy(), DAMPING, with_bias)
        np.testing.assert_allclose(weight.T, expected, atol=2e-3)
        costs = np.cov(x.T, bias=True) if with_bias else x.T @ x / len(x)
        np.testing.assert_allclose(covariance, costs, atol=1e-3 * np.abs(costs).max())
        if with_bias:
            bias = y.mean(0) - x.mean(0) @ dequantize_blocks(matrices[projection.name]).T
            np.testing.assert_allclose(projection.bias.detach(), bias, atol=2e-3)

    known = architecture_of(original)
    walked = zip(known.all_sublayers(original), known.all_sublayers(model), strict=True)
    streams = zip(flows(model, windows), flows(original, windows), strict=True)
    for (before, after), (ours, theirs) in zip(walked, streams, strict=True):
        begin = 0
        for projection, old in zip(after.in_projs, before.in_projs, strict=True):
            end = begin + projection.weight.shape[1]
            check(projection, old, ours.read, theirs.targets[:, begin:end])
            begin = end
        check(after.out_proj, before.out_proj, ours.inputs, theirs.after - ours.before)


def test_gptq_beats_rounding_on_an_architecture_without_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a walk, a smoothing of shared values or a fit that only GPT-2's biases and heads make right."""
    monkeypatch.setitem(ARCHITECTURES, "llama", Llama())
    model = random_llama()
    windows, held_out = batches(16), batches(6, seed=2)
    for batch in [*windows, *held_out]:
        batch["input_ids"] %= model.config.vocab_size
    chosen = grids(geometry_of(model), "w4", 16)
    nearest = divergence(model, round_model(model, chosen, "rtn").model, held_out).kl
    assert divergence(model, calibrate_model(model, chosen, "gptq", windows, []).model, held_out).kl < 0.7 * nearest


def test_rounding_that_loses_nothing_changes_nothing() -> None:
    """Stops a fit, a bias or a LayerNorm that moves without a cause."""
    original, model = make_model(), make_model()

    class Exact:
        """A tensor that stands for the very floats."""

    import compress.quantize.sequential as module

    kept: dict[int, np.ndarray] = {}

    def settle(name: str, weight: np.ndarray, covariance: np.ndarray | None) -> Exact:
        tensor = Exact()
        kept[id(tensor)] = weight.copy()
        return tensor

    before = module.dequantize
    try:
        module.dequantize = lambda tensor: kept[id(tensor)]  # type: ignore[assignment]
        quantize_in_turn(model, original, CALIBRATION, of_head(original, CALIBRATION), settle)  # type: ignore[arg-type]
    finally:
        module.dequantize = before
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, original.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_in_turn_beats_each_matrix_by_itself() -> None:
    """Stops calibration that costs minutes and gives nothing on conversations that it did not see."""
    model = make_model()
    chosen = four_bits(model)
    kl = {
        "rtn": divergence(model, round_model(model, chosen, "rtn").model, HELD_OUT).kl,
        "mse": divergence(model, round_model(model, chosen, "mse").model, HELD_OUT).kl,
        "gptq": divergence(model, calibrate_model(model, chosen, "gptq", CALIBRATION, []).model, HELD_OUT).kl,
    }
    assert kl["mse"] < kl["rtn"]
    assert kl["gptq"] < 0.6 * kl["rtn"]


def test_later_layers_make_up_for_earlier_ones() -> None:
    """Stops calibration on the original's own streams: then no layer knows what those before it lost."""
    model = make_model()
    chosen = four_bits(model)
    gptq = partial(_settle, chosen)
    whole = make_model()
    quantize_in_turn(whole, model, CALIBRATION, of_head(model, CALIBRATION), gptq)
    alone = make_model()
    for index in range(model.config.n_layer):  # each layer as if all others were exact
        only = make_model()

        def settle(name: str, weight: np.ndarray, covariance: np.ndarray | None, at: int = index) -> object:
            if f".h.{at}." in name:
                return gptq(name, weight, covariance)
            return quantize_blocks(weight, 8, 16)

        quantize_in_turn(only, model, CALIBRATION, of_head(model, CALIBRATION), settle)
        alone.transformer.h[index].load_state_dict(only.transformer.h[index].state_dict())
    assert divergence(model, whole, HELD_OUT).kl < divergence(model, alone, HELD_OUT).kl


def _settle(chosen: dict[str, Grid], name: str, weight: np.ndarray, covariance: np.ndarray | None) -> object:
    return quantize_matrix(weight, chosen[name], "gptq", covariance)


def test_a_checkpoint_of_it_has_the_floats_that_suit_its_integers() -> None:
    """Stops the biases and LayerNorms of the original beside integers that were fitted to others."""
    model = make_model()
    chosen = four_bits(model)
    rounded = calibrate_model(model, chosen, "gptq", CALIBRATION, [])
    assert isinstance(rounded, QuantizedModel)
    stored = checkpoint_of(rounded, None, chosen, "w4", "gptq")  # type: ignore[arg-type]
    back = stored.dequantized_model()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, rounded.model(ids).logits, rtol=0, atol=0)
    assert not any(name.endswith("_proj.weight") for name in stored.floats)


def test_the_model_that_is_quantized_stays_as_it_is() -> None:
    """Stops figures "before" that are taken on a folded or rounded model."""
    model, same = make_model(), make_model()
    calibrate_model(model, four_bits(model), "gptq", CALIBRATION[:4], [])
    round_model(model, four_bits(model), "rtn")
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, same.get_parameter(name), rtol=0, atol=0)


def test_inputs_that_are_all_alike_fall_back_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """Stops a crash, or NaN, after minutes; the line names the layer and the remedy."""
    weight = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    found = quantize_matrix_or_search("transformer.h.1.mlp.c_fc", weight, Grid(4, 16), "gptq", np.zeros((32, 32)))
    expected = quantize_matrix(weight, Grid(4, 16), "mse")
    np.testing.assert_array_equal(found.q, expected.q)
    assert "transformer.h.1.mlp.c_fc" in caplog.text
    assert "--data" in caplog.text
