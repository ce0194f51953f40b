"""Importance: the arithmetic against plain formulas, and the hooks that feed it."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.architectures.registry import geometry_of
from chitchat.errors import BadInput
from compress.prune.elimination import unit_scores
from compress.prune.importance import (
    Scores,
    activation_scores,
    best,
    by_unit,
    flap_scores,
    magnitude_of,
    magnitude_scores,
    random_scores,
    score_units,
    taylor_scores,
    watch,
)
from serve.geometry import Geometry


def make_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_layer=2, n_embd=32, n_head=4, n_inner=48, n_positions=16)).eval()


def batch(padding: int = 0, rows: int = 3) -> dict[str, torch.Tensor]:
    """Random ids of 9 tokens and `padding` more that the mask hides."""
    ids = torch.randint(0, 50, (rows, 9), generator=torch.Generator().manual_seed(1))
    ids = torch.cat([ids, torch.zeros(rows, padding, dtype=torch.long)], dim=1)
    mask = (torch.arange(9 + padding) < 9).long().expand(rows, -1)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def test_scores_are_the_plain_formulas() -> None:
    """Stops a norm over the wrong axis: a score of weights, not of units."""
    out_weight = np.array([[3.0, 4.0], [1.0, 0.0]])
    np.testing.assert_array_equal(flap_scores(np.array([2.0, 5.0]), out_weight), [50, 5])
    np.testing.assert_array_equal(magnitude_of([out_weight, np.array([[12.0], [0.0]])]), [13, 1])
    np.testing.assert_array_equal(by_unit(np.array([1.0, 2, 3, 4]), 2), [3, 7])


def test_the_magnitude_of_a_unit_is_that_of_all_that_goes_with_it() -> None:
    """Stops a bias of the order by what is left out: a head's queries, a channel's tables, a unit's way out."""
    model = make_model()
    found = magnitude_scores(model)
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    channels = [weights["transformer.wte.weight"].T, weights["transformer.wpe.weight"].T]
    for layer in range(2):
        part = {
            name: weights[f"transformer.h.{layer}.{name}.weight"]
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        }
        channels += [part["attn.c_attn"], part["attn.c_proj"].T, part["mlp.c_fc"], part["mlp.c_proj"].T]
        for unit in range(48):
            own = [*part["mlp.c_fc"][:, unit], *part["mlp.c_proj"][unit]]
            assert found.neurons[layer][unit] == pytest.approx(np.linalg.norm(own))
        for head in range(4):
            at = slice(head * 8, head * 8 + 8)
            reads = [part["attn.c_attn"][:, 32 * third :][:, at].ravel() for third in range(3)]
            own = np.concatenate([*reads, part["attn.c_proj"][at].ravel()])
            assert found.heads[layer][head] == pytest.approx(np.linalg.norm(own))
    expected = [np.sqrt(sum(np.square(rows[channel]).sum() for rows in channels)) for channel in range(32)]
    np.testing.assert_allclose(found.channels, expected)


def test_the_best_units_come_in_order_and_ties_are_stable() -> None:
    """Stops shuffled channels, and choices that differ from machine to machine."""
    assert best(np.array([1.0, 5, 3, 5, 3]), 3) == [1, 2, 3]


def test_activation_statistics_equal_a_run_by_hand() -> None:
    """Stops hooks on the wrong module: the variance is that of the FFN's hidden activations, and of the contexts."""
    model, inputs = make_model(), batch()
    captured = []
    hook = model.transformer.h[1].mlp.act.register_forward_hook(lambda *call: captured.append(call[2]))
    with torch.no_grad():
        model(inputs["input_ids"])
    hook.remove()
    variance = captured[0].flatten(0, 1).double().var(dim=0, correction=0)
    weight = model.transformer.h[1].mlp.c_proj.weight.detach().double()
    expected = variance * weight.square().sum(dim=1)
    found = activation_scores(model, [inputs])
    np.testing.assert_allclose(found.neurons[1], expected.numpy(), rtol=1e-5)
    assert [len(found.channels), len(found.heads), len(found.heads[0]), len(found.neurons[0])] == [32, 2, 4, 48]


def test_padding_counts_for_nothing() -> None:
    """Stops scores that depend on what a window was batched with."""
    model = make_model()
    plain, padded = activation_scores(model, [batch()]), activation_scores(model, [batch(padding=4)])
    np.testing.assert_allclose(plain.channels, padded.channels, rtol=1e-5)
    np.testing.assert_allclose(plain.heads[1], padded.heads[1], rtol=1e-5)
    np.testing.assert_allclose(plain.neurons[0], padded.neurons[0], rtol=1e-5)


def test_hooks_are_removed_even_after_an_error() -> None:
    """Stops a model that goes on collecting, slower and larger with every batch."""
    model = make_model()

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    def interrupted() -> None:
        with watch(model):
            assert hooks() == 2 * 2 + 5
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hooks() == 0


@pytest.mark.parametrize("importance", ["activation", "magnitude"])
def test_units_that_do_nothing_score_lowest(importance: str) -> None:
    """Stops a ranking upside down: a zeroed neuron and a zeroed head must go first."""
    model = make_model()
    with torch.no_grad():
        block = model.transformer.h[0]
        block.mlp.c_fc.weight[:, 7] = 0
        block.mlp.c_proj.weight[7] = 0
        columns = slice(2 * 8, 3 * 8)
        block.attn.c_proj.weight[columns] = 0
        for third in range(3):
            block.attn.c_attn.weight[:, third * 32 + 16 : third * 32 + 24] = 0
    scores = score_units(model, [batch()], importance)
    kept = scores.keep(Geometry(2, 3, 8, 47, 50, 16))
    assert 7 not in kept.neurons[0]
    assert kept.heads[0] == [0, 1, 3]
    assert len(kept.channels) == 24


def test_a_loud_channel_outlives_quiet_ones() -> None:
    """Stops a channel score blind to the LayerNorms' gains."""
    model = make_model()
    with torch.no_grad():
        for block in model.transformer.h:
            block.ln_1.weight[5] = 50
    assert activation_scores(model, [batch()]).channels.argmax() == 5


def test_random_is_drawn_from_the_seed() -> None:
    """Stops a control that cannot be repeated."""
    model = make_model()
    one, same, other = (score_units(model, [], "random", seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.channels, same.channels)
    assert not np.array_equal(one.channels, other.channels)


def test_every_ranking_is_the_one_of_its_name() -> None:
    """Stops a ranking that is asked for by name and not found, or another one in its place."""
    model, inputs = make_model(), [batch()]
    named = {
        "activation": activation_scores(model, inputs),
        "taylor": taylor_scores(model, inputs),
        "magnitude": magnitude_scores(model),
        "random": random_scores(geometry_of(model), 3),
        "obs": Scores(*unit_scores(model, inputs)),
    }
    for name, expected in named.items():
        found = score_units(model, inputs, name, seed=3)
        np.testing.assert_array_equal(found.channels, expected.channels)
        np.testing.assert_array_equal(found.neurons, expected.neurons)
        np.testing.assert_array_equal(found.heads, expected.heads)
    np.testing.assert_allclose(named["obs"].channels, named["activation"].channels, rtol=1e-5)


def test_an_unknown_ranking_is_refused() -> None:
    """Stops a misspelt ranking from becoming the default one."""
    with pytest.raises(BadInput, match=r"--importance fisher.*obs, activation, magnitude, taylor, random"):
        score_units(make_model(), [], "fisher")


def test_taylor_scores_are_the_change_of_the_loss_by_finite_differences() -> None:
    """Stops a gradient of the wrong tensor, of padding, or summed before it is squared over conversations."""
    model, inputs = make_model().double(), batch(padding=2, rows=2)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)

    def loss(row: int, scale: float, layer: int, unit: int) -> float:
        out_proj = model.transformer.h[layer].mlp.c_proj
        kept = out_proj.weight[unit].clone()
        with torch.no_grad():
            out_proj.weight[unit] *= scale  # a scaled activation, seen from behind
            ids = inputs["input_ids"][row : row + 1, :9]
            logits = model(ids).logits[0, :-1]
            found = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            out_proj.weight[unit] = kept
        return found

    scores = taylor_scores(model, [inputs])
    for layer, unit in ((0, 3), (1, 17)):
        slopes = [(loss(row, 1 + 1e-4, layer, unit) - loss(row, 1 - 1e-4, layer, unit)) / 2e-4 for row in (0, 1)]
        assert scores.neurons[layer][unit] == pytest.approx(sum(slope**2 for slope in slopes), rel=1e-3)
    assert [scores.channels.shape, scores.heads[0].shape, scores.neurons[0].shape] == [(32,), (4,), (48,)]


def test_scores_of_some_layers_are_theirs() -> None:
    """Stops a ranking that is renumbered with the layers behind a cut."""
    scores = score_units(make_model(), [batch()], "obs")
    part = scores.of_layers([1])
    assert part.heads == [scores.heads[1]]
    assert part.neurons == [scores.neurons[1]]
