"""KL, negative log-likelihood and top-1 agreement against sums in Python's exact arithmetic, across chunk borders."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from chitchat import divergence as module
from chitchat.divergence import compare_logits, compare_states, kl_divergence, nll_of_states, score_states

VOCAB, WIDTH = 37, 8
# Logits of a chunk: less than a row, one row, some rows and a part of one, all rows but one, all rows, more.
LIMITS = [1, VOCAB, 3 * VOCAB + 5, 10 * VOCAB, 11 * VOCAB, 2**20]


def log_softmax(row: Sequence[float]) -> list[float]:
    """By the definition, with `math.fsum`."""
    peak = max(row)
    norm = math.log(math.fsum(math.exp(value - peak) for value in row)) + peak
    return [value - norm for value in row]


def kl(reference: Sequence[float], model: Sequence[float]) -> float:
    pairs = zip(log_softmax(reference), log_softmax(model), strict=True)
    return math.fsum(math.exp(log_p) * (log_p - log_q) for log_p, log_q in pairs)


def draw(rows: int, vocab: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of logits with means far from zero, as a trained model's are."""
    random = np.random.default_rng(seed)
    reference, model = random.normal(-90, 5, size=(2, rows, vocab)).astype(np.float32)
    return reference, np.where(random.random((rows, 1)) < 0.5, reference + model * 1e-2, model)


@pytest.mark.parametrize("limit", LIMITS)
def test_kl_and_agreement_of_logits_are_the_definition(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops: the models exchanged, a base other than e, rows lost or doubled at the border of a chunk."""
    monkeypatch.setattr(module, "MAX_NUMPY_LOGITS", limit)
    reference, model = draw(11, VOCAB)
    found, same = compare_logits(reference, model)
    assert found.dtype == np.float64
    assert found == pytest.approx([kl(p, q) for p, q in zip(reference.tolist(), model.tolist(), strict=True)], rel=1e-9)
    assert same.tolist() == [max(p) == p[int(q.argmax())] for p, q in zip(reference, model, strict=True)]
    assert 0 < same.sum() < len(same)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("shift", [0.0, 1e-6])
def test_models_that_nearly_agree_are_told_apart(limit: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops: single precision, which drowns the KL of an 8-bit model, and a KL above zero between equals."""
    monkeypatch.setattr(module, "MAX_NUMPY_LOGITS", limit)
    monkeypatch.setattr(module, "MAX_TORCH_LOGITS", limit)
    random = np.random.default_rng(1)
    heads = [torch.nn.Linear(WIDTH, VOCAB, bias=False, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        heads[0].weight.copy_(torch.from_numpy(random.normal(size=(VOCAB, WIDTH))))
        heads[1].weight.copy_(heads[0].weight * (1 + shift * torch.from_numpy(random.normal(size=(VOCAB, WIDTH)))))
    states, targets = torch.from_numpy(random.normal(size=(11, WIDTH))), torch.arange(11)
    found = compare_states(heads[0], states, heads[1], states, targets).kl.numpy()
    logits = [(states @ head.weight.T).detach().numpy() for head in heads]
    # To the second order KL is half the variance of the difference of the logits under the reference.
    p, change = np.exp(logits[0]) / np.exp(logits[0]).sum(1, keepdims=True), logits[1] - logits[0]
    variance = (p * change**2).sum(1) - (p * change).sum(1) ** 2
    for figures in (found, compare_logits(*logits)[0]):
        assert figures == pytest.approx(variance / 2, rel=1e-3, abs=1e-15)
    assert (found > 0).all() == (shift > 0)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_compared_and_scored_as_their_logits_say(
    limit: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops: one model's states under the other's head, targets of another chunk, sums of half-precision values."""
    monkeypatch.setattr(module, "MAX_TORCH_LOGITS", limit)
    torch.manual_seed(0)
    heads = [torch.nn.Linear(width, VOCAB, bias=False, dtype=dtype) for width in (WIDTH, WIDTH + 3)]
    states = [4 + torch.randn(11, head.in_features, dtype=dtype) for head in heads]
    targets = torch.randint(VOCAB, (11,))
    with torch.no_grad():
        logits = [head(each).double().tolist() for head, each in zip(heads, states, strict=True)]
    found = compare_states(heads[0], states[0], heads[1], states[1], targets)
    assert [column.dtype for column in found] == [torch.float64] * 3 + [torch.bool]
    nlls = [[-log_softmax(row)[target] for row, target in zip(rows, targets, strict=True)] for rows in logits]
    assert found.kl.tolist() == pytest.approx([kl(p, q) for p, q in zip(*logits, strict=True)], rel=1e-5)
    assert found.reference_nll.tolist() == pytest.approx(nlls[0], rel=1e-5)
    assert found.nll.tolist() == pytest.approx(nlls[1], rel=1e-5)
    tops = [[row.index(max(row)) for row in rows] for rows in logits]
    assert found.same.tolist() == [a == b for a, b in zip(*tops, strict=True)]
    nll, hit = score_states(heads[1], states[1], targets)
    assert (nll.dtype, hit.dtype) == (torch.float64, torch.bool)
    assert nll.tolist() == pytest.approx(nlls[1], rel=1e-5)
    assert hit.tolist() == [top == target for top, target in zip(tops[1], targets, strict=True)]
    assert torch.equal(nll_of_states(heads[1], states[1], targets), nll)


@pytest.mark.parametrize("vocab", [2**20 - 1, 2**20, 2**20 + 1])
def test_a_vocabulary_beyond_a_chunk_goes_row_by_row(vocab: int) -> None:
    """Stops: a chunk of no rows."""
    reference, model = draw(2, vocab)
    found, _ = compare_logits(reference, model)
    assert found == pytest.approx([kl(p, q) for p, q in zip(reference.tolist(), model.tolist(), strict=True)], rel=1e-7)


def test_no_position_is_no_figure() -> None:
    """Stops: a crash on a window without a label."""
    head, none = torch.nn.Linear(WIDTH, VOCAB), torch.zeros(0, dtype=torch.int64)
    assert [len(column) for column in compare_logits(np.zeros((0, VOCAB)), np.zeros((0, VOCAB)))] == [0, 0]
    assert [
        len(column) for column in compare_states(head, torch.zeros(0, WIDTH), head, torch.zeros(0, WIDTH), none)
    ] == [0] * 4
    assert [len(column) for column in score_states(head, torch.zeros(0, WIDTH), none)] == [0, 0]


def test_the_gradient_of_the_divergence_is_q_minus_p() -> None:
    """Stops: a divergence that trains the teacher, or towards the wrong side."""
    reference, model = (torch.from_numpy(logits).double() for logits in draw(5, VOCAB))
    model.requires_grad_()
    kl_divergence(reference.log_softmax(-1), model.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(model.grad, model.detach().softmax(-1) - reference.softmax(-1))


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops: logits of all positions at once."""
    monkeypatch.setattr(module, "MAX_TORCH_LOGITS", 4 * VOCAB)
    head = torch.nn.Linear(WIDTH, VOCAB)
    seen: list[int] = []
    head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    score_states(head, torch.zeros(11, WIDTH), torch.zeros(11, dtype=torch.int64))
    assert seen == [4, 4, 3]
