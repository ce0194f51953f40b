"""A Llama with random weights goes through what walks over models: nothing there may assume a GPT-2.

Gated feed-forwards have two in-projections, keys and values fewer heads, heads a size of their own, nothing a bias, and
positions no table (`tests/support/llama.py`).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from chitchat.architectures.registry import ARCHITECTURES, architecture_of, count_parameters, geometry_of
from chitchat.architectures.states import last_hidden
from chitchat.score import torch_scorer
from chitchat.training.objective import LossModel, NextToken
from compress.calibrate.measure import divergence, mean_loss
from compress.calibrate.ranges import calibrate_kv, input_ranges
from compress.prune.importance import IMPORTANCES, score_units
from compress.prune.layers import keep_layers, removal_order
from compress.prune.refit import Sliced, refit
from compress.prune.shape import candidate_shapes, explicit_shape, smallest_shape
from compress.prune.slicing import Kept, slice_model
from compress.prune.vocabulary import trim_positions, trim_vocabulary
from compress.quantize.checkpoint import dequantize
from compress.quantize.model import calibrate_model, checkpoint_of, round_model
from compress.quantize.schemes import SCHEMES, grids
from serve.geometry import Geometry
from tests.support.llama import Llama, random_llama
from tests.support.sublayers import out_inputs


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "llama", Llama())


def batches(model: LlamaForCausalLM) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(model.config.vocab_size, (4, 20), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}]


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    ids = torch.randint(40, (4, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(ids).logits


def test_every_parameter_has_its_name_and_shape() -> None:
    """Parameters and bytes were those of two biases a linear and of one matrix before the activation."""
    for tied in (True, False):
        model = random_llama(tie_word_embeddings=tied)
        geometry = geometry_of(model)
        known = architecture_of(geometry)
        shapes = {f"{matrix.module}.weight": (matrix.rows, matrix.columns) for matrix in known.matrices(geometry)}
        shapes |= {name: (length,) for name, length in known.vectors(geometry)}
        assert shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert count_parameters(geometry) == model.num_parameters()
        assert Geometry.from_json(geometry.as_json()) == geometry


def test_the_walk_over_sublayers_is_the_forward_pass() -> None:
    """Rotary positions and gates live inside the sublayers; the stream begins without a table of positions."""
    model = random_llama()
    known, ids = architecture_of(model), batches(model)[0]["input_ids"]
    with torch.no_grad():
        stream = known.embed(model, ids)
        for sublayer in known.all_sublayers(model):
            assert all(projection.bias is None for projection in (*sublayer.in_projs, sublayer.out_proj))
            added, inputs = sublayer(stream), out_inputs(sublayer, stream)
            torch.testing.assert_close(sublayer.out_proj(inputs), added)
            stream = stream + added
        torch.testing.assert_close(known.final_norm(model)[1](stream), last_hidden(model, ids))


def test_heads_that_share_keys_share_their_columns() -> None:
    """Heads 2 and 3 read the second key and value: taken as four, the columns lay outside the matrix."""
    attention, feed_forward = Llama().sublayers(random_llama(), 0)
    query, key, value = attention.in_columns([2, 3])
    assert query == list(range(32, 64))
    assert key == value == list(range(16, 32))
    assert feed_forward.in_columns([7, 5]) == ([7, 5], [7, 5])
    assert (attention.units, attention.unit_size, feed_forward.units, feed_forward.unit_size) == (4, 16, 40, 1)


def test_layers_rows_and_positions_go_and_the_rest_stays() -> None:
    """Names of layers, tables without positions, and a head of its own."""
    model = random_llama()
    for projection in (sublayer.out_proj for sublayer in Llama().sublayers(model, 1)):
        with torch.no_grad():
            projection.weight.zero_()
    assert removal_order(model, batches(model), 1) == [1]
    assert torch.equal(logits(keep_layers(model, [0, 2])), logits(model))
    small = trim_vocabulary(trim_positions(model, 24), range(40))
    assert (small.config.max_position_embeddings, small.config.vocab_size) == (24, 40)
    torch.testing.assert_close(logits(small), logits(model)[..., :40])


def test_units_of_a_gated_feed_forward_go_from_both_of_its_inputs() -> None:
    """A unit that is idle can go; gate, up and down lose it together."""
    model = random_llama()
    with torch.no_grad():
        for layer in range(3):
            Llama().sublayers(model, layer)[1].out_proj.module.weight[:, 30:] = 0
    small = slice_model(model, Kept(range(48), [range(4)] * 3, [range(30)] * 3))
    assert geometry_of(small) == replace(geometry_of(model), ffn=30)
    torch.testing.assert_close(logits(small), logits(model))


def test_shapes_keep_the_share_of_keys_and_the_width_of_a_head() -> None:
    """Heads were a number that hung on nothing, and the width heads times head size."""
    full = replace(geometry_of(random_llama()), width=96, layers=4)
    found = [*candidate_shapes(full, lambda shape: count_parameters(shape) < 60_000), smallest_shape(full)]
    assert found
    assert {(shape.heads, shape.kv_heads, shape.width, shape.head_dim) for shape in found} <= {
        (4, 2, 96, 16),
        (2, 1, 48, 16),
    }
    assert explicit_shape(full, width=48).kv_heads == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_matrix_is_quantized_and_read_back(scheme: str, tmp_path: Path) -> None:
    """Matrices that stand as [out, in] were transposed, or not, by GPT-2's names."""
    model = random_llama()
    chosen, sequences = grids(geometry_of(model), scheme), batches(model)[0]["input_ids"].tolist()
    rounded = round_model(model, chosen, "mse", input_ranges(model, sequences))
    again = checkpoint_of(rounded, None, chosen, scheme, "mse").dequantized_model()
    assert torch.equal(logits(again), logits(rounded.model))
    for name, tensor in rounded.matrices.items():
        weight = model.get_submodule(name).weight.detach().numpy()
        assert np.abs(dequantize(tensor) - weight).max() <= (0.2 if scheme == "w4" else 0.02)
    assert divergence(model, rounded.model, batches(model)).kl < (0.5 if scheme == "w4" else 0.01)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_its_units_are_ranked(importance: str) -> None:
    """Rankings read the fused matrix of queries, keys and values, and one matrix before the activation."""
    model = random_llama()
    with torch.no_grad():
        for layer in range(3):
            attention, feed_forward = Llama().sublayers(model, layer)
            attention.out_proj.module.weight[:, 16:32] = 0  # head 1
            feed_forward.out_proj.module.weight[:, 7] = 0
    scores = score_units(model, batches(model), importance)
    assert scores.channels.shape == (48,)
    assert [found.shape for found in (*scores.heads, *scores.neurons)] == [(4,)] * 3 + [(40,)] * 3
    if importance not in ("random", "magnitude"):  # what reaches nothing goes first
        assert [int(found.argmin()) for found in (*scores.heads, *scores.neurons)] == [1, 1, 1, 7, 7, 7]


def test_what_was_cut_is_repaired_by_least_squares() -> None:
    """One reader a sublayer and a bias everywhere were taken for granted."""
    model = random_llama(num_hidden_layers=3)
    kept = Kept(range(48), [range(4)] * 2, [range(0, 40, 2)] * 2)
    student = slice_model(keep_layers(model, [0, 2]), kept)
    before = divergence(model, student, batches(model)).kl
    refit([Sliced(student, [0, 2], kept)], model, batches(model))
    assert divergence(model, student, batches(model)).kl < 0.7 * before
    assert all(projection.bias is None for projection in architecture_of(student).projections(student))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_quantized_in_turn(scheme: str) -> None:
    """GPTQ after smoothing: norms without a bias, values of fewer heads, gate and up fitted side by side."""
    model = random_llama()
    chosen, sequences = grids(geometry_of(model), scheme, 16), batches(model)[0]["input_ids"].tolist()
    rounded = calibrate_model(model, chosen, "gptq", batches(model), sequences)
    assert rounded.matrices.keys() == chosen.keys()
    assert divergence(model, rounded.model, batches(model)).kl < (0.3 if scheme == "w4" else 0.01)


def test_the_cache_has_scales_of_its_own_heads() -> None:
    """Keys and values of two heads were cut into four."""
    model = random_llama()
    scales = calibrate_kv(model, batches(model)[0]["input_ids"].tolist())
    assert [(found.key.shape, found.value.shape) for found in scales] == [((1, 2, 1, 16), (1, 2, 1, 16))] * 3
    with torch.no_grad():
        stream = Llama().embed(model, batches(model)[0]["input_ids"])
        attention = Llama().sublayers(model, 0)[0]
        values = attention.part("value").projection(attention.norm(stream)).flatten(0, 1).abs().amax(0)
    np.testing.assert_allclose(scales[0].value.ravel(), values.numpy() * 1.1 / 127, rtol=1e-5)


def test_training_moves_its_own_weights() -> None:
    """What the Trainer is given was a GPT-2 with the weights of another model in it."""
    model = random_llama()
    view = LossModel.wrap(model, NextToken(lambda model, tokens: {}))
    assert isinstance(view, LlamaForCausalLM)
    batch = batches(model)[0]
    view(input_ids=batch["input_ids"], labels=batch["labels"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert view.state_dict().keys() == model.state_dict().keys()


def test_it_is_scored_as_it_computes() -> None:
    """Scoring looked for GPT-2's tables."""
    model = random_llama()
    ids = batches(model)[0]["input_ids"]
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    (nll, _), *_ = torch_scorer(model)(ids.tolist())
    assert mean_loss(model, batches(model)) == pytest.approx(float(expected), rel=1e-5)
    assert len(nll) == 19
