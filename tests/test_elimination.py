"""Optimal Brain Surgeon: costs and order against brute force."""

import itertools

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from compress.prune.elimination import (
    DAMPING,
    METRIC_DAMPING,
    elimination_scores,
    stream_metrics,
    unit_scores,
)


def problem(inputs: int, outputs: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A covariance of correlated inputs, and weights."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((200 + inputs, inputs)) @ random.standard_normal((inputs, inputs))
    return np.cov(rows.T, bias=True), random.standard_normal((inputs, outputs))


def loss_without(covariance: np.ndarray, weight: np.ndarray, gone: list[int]) -> float:
    """The squared error, damped as in the module, that the best refit of the other inputs leaves."""
    damped = covariance + DAMPING * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    stay = [place for place in range(len(covariance)) if place not in gone]
    fitted = np.zeros_like(weight)
    fitted[stay] = np.linalg.solve(damped[np.ix_(stay, stay)], damped[stay] @ weight)
    change = fitted - weight
    return float(np.trace(change.T @ damped @ change))


def plain_scores(covariance: np.ndarray, weight: np.ndarray, size: int, at_once: int) -> np.ndarray:
    """The order of leaving with H^-1 and W written out after every step."""
    units = np.arange(len(covariance)).reshape(-1, size)
    inverse = np.linalg.inv(covariance + DAMPING * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    weight, left, scores = weight.copy(), list(range(len(units))), np.zeros(len(units))
    while left:
        costs = [
            np.trace(
                weight[units[unit]].T @ np.linalg.solve(inverse[np.ix_(units[unit], units[unit])], weight[units[unit]])
            )
            for unit in left
        ]
        leaving = [left[index] for index in np.argsort(costs, kind="stable")[:at_once]]
        scores[leaving] = len(units) - len(left) + np.arange(len(leaving))
        left = [unit for unit in left if unit not in leaving]
        rows = units[leaving].ravel()
        solved = np.linalg.solve(inverse[np.ix_(rows, rows)], np.hstack([weight[rows], inverse[rows]]))
        weight -= inverse[:, rows] @ solved[:, : weight.shape[1]]
        inverse = inverse - inverse[:, rows] @ solved[:, weight.shape[1] :]
    return scores


@pytest.mark.parametrize(("inputs", "size", "at_once"), [(450, 1, 2), (448, 16, 1), (330, 1, 2)])
def test_the_order_is_that_of_the_definition(inputs: int, size: int, at_once: int) -> None:
    """Stops a factor that forgets the units of earlier rounds, and costs that are not brought up to date."""
    covariance, weight = problem(inputs, 8)
    found = elimination_scores(covariance, weight, size)
    np.testing.assert_array_equal(found, plain_scores(covariance, weight, size, at_once))


@pytest.mark.parametrize("size", [1, 2])
def test_the_cheapest_unit_leaves_first_at_every_step(size: int) -> None:
    """Stops costs of the uncut model: after the first one has left, the others must do its work as well."""
    covariance, weight = problem(8)
    scores = elimination_scores(covariance, weight, size)
    units = np.arange(8).reshape(-1, size)
    gone: list[int] = []
    for unit in np.argsort(scores):
        left = [each for each in range(len(units)) if units[each][0] not in gone]
        losses = {each: loss_without(covariance, weight, gone + units[each].tolist()) for each in left}
        assert min(losses, key=losses.__getitem__) == unit
        gone += units[unit].tolist()
    assert sorted(scores) == list(range(len(units)))


def test_what_another_unit_can_replace_goes_before_what_is_small() -> None:
    """Stops a ranking by size: a large copy is worth nothing, a small unit of its own is."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((500, 3))
    rows = np.column_stack([5 * rows[:, 0], 5 * rows[:, 0], 0.5 * rows[:, 1], rows[:, 2]])
    scores = elimination_scores(np.cov(rows.T, bias=True), np.ones((4, 2)), 1)
    assert int(np.argmin(scores)) in (0, 1)


def test_a_greedy_choice_of_two_is_near_the_best_pair() -> None:
    """Stops an update that drifts: greedy cannot beat the best pair, and must stay close to it."""
    covariance, weight = problem(7, seed=3)
    scores = elimination_scores(covariance, weight, 1)
    greedy = loss_without(covariance, weight, np.argsort(scores)[:2].tolist())
    best = min(loss_without(covariance, weight, list(pair)) for pair in itertools.combinations(range(7), 2))
    assert best - 1e-9 <= greedy <= 1.5 * best


def test_an_idle_unit_of_a_model_leaves_first() -> None:
    """Stops scores of the wrong layer, of padding, or of the wrong half."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_layer=2, n_embd=32, n_head=4, n_inner=48, n_positions=16))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[7] = 0
        model.transformer.h[0].attn.c_proj.weight[8:16] = 0
    ids = torch.randint(0, 50, (6, 12))
    mask = torch.ones_like(ids)
    mask[3:, 8:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    _, heads, neurons = unit_scores(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    assert (np.argmin(neurons[1]), np.argmin(heads[0])) == (7, 1)
    ids[3:, 8:] = 0
    _, again, _ = unit_scores(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    np.testing.assert_array_equal(again[0], heads[0])


def test_the_metric_is_the_covariance_of_the_gradient() -> None:
    """Stops gradients of the wrong place, of padding, and a factor of something else than what was damped."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_layer=2, n_embd=16, n_head=2, n_inner=24, n_positions=16)
    ).eval()
    ids = torch.randint(0, 40, (3, 9))
    mask = torch.ones_like(ids)
    mask[2, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    factor = stream_metrics(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])[3]
    shift = torch.zeros(3, 9, 16, requires_grad=True)
    hook = model.transformer.h[1].mlp.c_proj.register_forward_hook(lambda _module, _inputs, output: output + shift)
    logits = model(ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").backward()
    hook.remove()
    rows = shift.grad[mask.bool()].double()
    expected = rows.T @ rows
    expected = expected / expected.diagonal().mean() + METRIC_DAMPING * torch.eye(16)
    torch.testing.assert_close(factor @ factor.T, expected, rtol=0, atol=1e-4)
