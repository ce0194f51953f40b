"""What healing minimises and measures, against plain loops in float64: one window, one position at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.errors import WorkFailed
from compress.distill import objective
from compress.distill.objective import Distillation, held_out_figures, next_token, skewed_kl
from compress.distill.on_policy import _mean_labels

VOCAB = 40


def make_model(seed: int, layers: int = 2) -> GPT2LMHeadModel:
    """A model whose distributions are far from flat."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_layer=layers, n_embd=16, n_head=2, n_positions=24, initializer_range=0.5,
        resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def windows(count: int = 7) -> list[dict[str, Any]]:
    """Windows of other lengths; a third of the positions has no label, and one window has none at all."""
    draw, found = np.random.default_rng(0), []
    for number in range(count):
        ids = draw.integers(0, VOCAB, 6 + number * 2).tolist()
        labels = [token if draw.random() > 0.3 and number != 3 else -100 for token in ids]
        found.append({"input_ids": ids, "labels": labels, "length": len(ids)})
    return found


def rows(model: GPT2LMHeadModel, window: dict[str, Any]) -> np.ndarray:
    """Probabilities float64 [n, vocab] after each id."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([window["input_ids"]])).logits[0].double().numpy()
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def by_hand(student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, read: list[dict[str, Any]]) -> tuple[list[float], ...]:
    """KL(teacher || student) and both negative log-likelihoods at each label, in nats."""
    kl, nll, teacher_nll = [], [], []
    for window in read:
        p, q = rows(teacher, window), rows(student, window)
        for position, label in enumerate(window["labels"][1:]):
            if label != -100:
                kl.append(float((p[position] * np.log(p[position] / q[position])).sum()))
                nll.append(-math.log(q[position][label]))
                teacher_nll.append(-math.log(p[position][label]))
    return kl, nll, teacher_nll


@pytest.mark.parametrize("at_once", [1, 25, 2048])
@pytest.mark.parametrize("max_tokens", [1, 4, 5, 9, 12, 17, 25, 10**6])
def test_held_out_figures_are_means_over_labels(monkeypatch, at_once: int, max_tokens: int) -> None:
    """Stops means over windows, padding that is read, a window too few or too many, and dropout that stays on."""
    monkeypatch.setattr(objective, "_TOKENS_AT_ONCE", at_once)
    student, teacher, held_out = make_model(1).train(), make_model(0).eval(), windows()
    read, tokens = [], 0
    for window in held_out:
        if tokens < max_tokens:
            read.append(window)
            tokens += sum(label != -100 for label in window["labels"][1:])
    found = held_out_figures(student, teacher, held_out, max_tokens)  # type: ignore[arg-type]
    assert student.training
    kl, nll, teacher_nll = by_hand(student, teacher, read)
    assert found["kl"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
    assert found["teacher_perplexity"] == pytest.approx(math.exp(np.mean(teacher_nll)), rel=1e-4)


@pytest.mark.parametrize("skew", [0.0, 0.1, 0.6])
def test_the_skewed_divergence_is_to_the_mixture_of_both(skew: float) -> None:
    """Stops the two shares swapped, and the reverse divergence."""
    draw = np.random.default_rng(0)
    teacher, student = (draw.normal(0, 3, (5, 7)) for _ in range(2))
    p, q = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) for logits in (teacher, student))
    expected = (p * np.log(p / (skew * p + (1 - skew) * q))).sum(axis=1)
    found = skewed_kl(torch.tensor(teacher), torch.tensor(student), skew)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_windows_without_a_label_are_no_figures() -> None:
    """Stops a division by nothing, which would choose any weights as the best."""
    with pytest.raises(WorkFailed, match="no held-out token"):
        held_out_figures(make_model(1), make_model(0), [windows()[3]], 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_loss_and_what_chooses_the_best_weights_are_the_same(share: float) -> None:
    """Stops a best model by another measure than the one that was minimised, and a teacher that is trained."""
    student, teacher, held_out = make_model(1).eval(), make_model(0).train(), windows()
    chosen = Distillation(teacher, held_out, layers_dropped=False, heal_labels=share)  # type: ignore[arg-type]
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    kl, nll, _ = by_hand(student, teacher, held_out)
    expected = (1 - share) * np.mean(kl) + share * np.mean(nll)
    assert chosen.evaluate(student, 10**6)["loss"] == pytest.approx(expected, rel=1e-4)
    total = sum(
        chosen.loss_sum(student, torch.tensor([window["input_ids"]]), torch.tensor([window["labels"]])).item()
        for window in held_out
        if any(label != -100 for label in window["labels"][1:])
    )
    assert total / len(kl) == pytest.approx(expected, rel=1e-4)


def test_the_control_is_the_students_own_likelihood_and_leaves_the_teacher_alone() -> None:
    """Stops a control that is drawn to the teacher all the same."""
    student, teacher, held_out = make_model(1).eval(), make_model(0).train(), windows()
    figures = next_token(teacher, held_out).evaluate(student, 10**6)  # type: ignore[arg-type]
    assert figures["loss"] == pytest.approx(np.mean(by_hand(student, teacher, held_out)[1]), rel=1e-4)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_dropped_layers_draw_the_hidden_states_to_the_teachers() -> None:
    """Stops a cosine of the last states, which the divergence sees already, or of the embeddings."""
    student, teacher, window = make_model(1, layers=3).eval(), make_model(0, layers=4).eval(), windows()[5]
    ids, labels = torch.tensor([window["input_ids"]]), torch.tensor([window["labels"]])
    with torch.no_grad():
        states = [model(ids, output_hidden_states=True).hidden_states[-3][0].double() for model in (teacher, student)]
    cosines = [
        float(states[0][at] @ states[1][at] / states[0][at].norm() / states[1][at].norm())
        for at, label in enumerate(window["labels"][1:])
        if label != -100
    ]
    losses = [
        Distillation(teacher, [window], layers_dropped=dropped).loss_sum(student, ids, labels).item()  # type: ignore[arg-type]
        for dropped in (True, False)
    ]
    assert losses[0] - losses[1] == pytest.approx(sum(1 - cosine for cosine in cosines), rel=1e-3)


def test_an_average_window_has_the_labels_of_the_first_ones() -> None:
    """Stops the budget of a healing from counting positions that have no label, or the first id, which is no target."""
    counts = [sum(label != -100 for label in window["labels"][1:]) for window in windows()]
    assert _mean_labels(windows()) == pytest.approx(np.mean(counts))  # type: ignore[arg-type]
    assert _mean_labels([windows()[3]]) == 1.0  # type: ignore[arg-type]
    one = {"input_ids": [1, 2, 3], "labels": [-100, 2, -100], "length": 3}
    many = [one] * 256 + [windows()[6]] * 100
    assert _mean_labels(many) == 1.0  # type: ignore[arg-type]
    assert _mean_labels([one, windows()[6]]) == (1 + counts[6]) / 2  # type: ignore[arg-type]
