"""What training and healing minimise, against sums in double precision over whole tables of logits."""

import copy
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.masked_windows import VOCAB, MaskedWindows
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.training import objective as module
from chitchat.training.batches import training_batch
from chitchat.training.objective import label_positions, next_token_loss, sum_by_parts
from compress.distill import objective as distill
from compress.distill.objective import HIDDEN_WEIGHT, Distillation, held_out_figures, next_token, skewed_kl

# Logits of a part: less than a row, one row, some rows and a piece of one, all rows but one (of 39), all, more.
LIMITS = [1, VOCAB, 7 * VOCAB + 3, 38 * VOCAB, 39 * VOCAB, 2**26]


def model(layers: int = 2, width: int = 16, seed: int = 0) -> GPT2LMHeadModel:
    """Lively logits with means far from zero."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_layer=layers, n_embd=width, n_head=2, n_positions=32, initializer_range=0.4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    made = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        made.transformer.ln_f.bias.add_(0.5)
    return made


@dataclass
class Row:
    """One position with a label: log-probabilities and middle states in float64, and the label."""

    log_p: np.ndarray
    middle: np.ndarray
    label: int


def positions(of: GPT2LMHeadModel, rows: list[dict]) -> list[Row]:
    """Every position with a label, one window at a time, without padding, in double precision."""
    exact, found = copy.deepcopy(of).double(), []
    for row in rows:
        with torch.no_grad():
            output = exact(torch.tensor([row["input_ids"]]), output_hidden_states=True)
        middle = output.hidden_states[max(-3, -len(output.hidden_states))][0].numpy()
        for index, label in enumerate(row["labels"][1:]):
            if label != -100:
                logits = output.logits[0, index].numpy()
                shifted = logits - logits.max()
                found.append(Row(shifted - math.log(math.fsum(np.exp(shifted))), middle[index], label))
    return found


def kl(p: np.ndarray, q: np.ndarray, skew: float = 0.0) -> float:
    """KL(p || skew p + (1 - skew) q) of log-probabilities."""
    mixture = skew * np.exp(p) + (1 - skew) * np.exp(q)
    return math.fsum(np.exp(p) * (p - np.log(mixture)))


@pytest.mark.parametrize("limit", LIMITS)
def test_the_loss_of_next_tokens_is_the_sum_over_labels(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops: a label of another position, padding that counts, rows lost or doubled at the border of a part."""
    student, windows = model(), MaskedWindows(7)
    monkeypatch.setattr(module, "MAX_LOGITS", limit)
    batch = training_batch(windows.rows)
    expected = -math.fsum(row.log_p[row.label] for row in positions(student, windows.rows))
    loss = next_token_loss(student, batch["input_ids"], batch["labels"])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@cache
def healed_pair() -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """A teacher and a student; copy them before a gradient."""
    return model(layers=4), model(layers=3, seed=1)


@cache
def rows_of_the_pair() -> list[tuple[Row, Row]]:
    """The teacher's and the student's rows over seven windows."""
    return list(zip(*(positions(one, MaskedWindows(7).rows) for one in healed_pair()), strict=True))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(("skew", "share"), [(0.0, 0.0), (0.1, 0.0), (0.5, 0.3), (0.0, 0.3), (0.0, 0.9)])
@pytest.mark.parametrize("dropped", [False, True])
def test_the_loss_of_healing_is_its_definition(
    limit: int, skew: float, share: float, dropped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops: the reverse divergence, shares swapped, labels of its own words, a hidden loss of another layer."""
    monkeypatch.setattr(module, "MAX_LOGITS", limit)
    windows, teacher, student = MaskedWindows(7), *copy.deepcopy(healed_pair())
    batch, pairs = training_batch(windows.rows), rows_of_the_pair()
    divergence = math.fsum(kl(theirs.log_p, ours.log_p, skew) for theirs, ours in pairs)
    nll = -math.fsum(ours.log_p[ours.label] for _, ours in pairs)
    expected = divergence if skew else (1 - share) * divergence + share * nll
    if dropped:
        norms = [np.linalg.norm(theirs.middle) * np.linalg.norm(ours.middle) for theirs, ours in pairs]
        cosines = [theirs.middle @ ours.middle / norm for (theirs, ours), norm in zip(pairs, norms, strict=True)]
        expected += HIDDEN_WEIGHT * math.fsum(1 - cosine for cosine in cosines)
    objective = Distillation(teacher, windows, dropped, skew, share)
    assert objective.loss_sum(student, **batch).item() == pytest.approx(expected, rel=1e-5)
    objective.loss_sum(student, **batch).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.transformer.h[0].mlp.c_fc.weight.grad.abs().max() > 0


def test_a_model_of_one_layer_has_a_hidden_loss_of_its_embeddings() -> None:
    """Stops: an index before the first of the hidden states."""
    teacher, student, windows = model(layers=3), model(layers=1, seed=1), MaskedWindows(3)
    rows = [positions(one, windows.rows) for one in (teacher, student)]
    plain, hidden = (
        Distillation(teacher, windows, dropped).loss_sum(student, **training_batch(windows.rows)).item()
        for dropped in (False, True)
    )
    cosines = [
        theirs.middle @ ours.middle / np.linalg.norm(theirs.middle) / np.linalg.norm(ours.middle)
        for theirs, ours in zip(*rows, strict=True)
    ]
    assert hidden - plain == pytest.approx(math.fsum(1 - cosine for cosine in cosines), rel=1e-4)


@pytest.mark.parametrize("skew", [0.0, 0.1, 0.5, 0.9])
def test_the_gradient_of_the_divergence_is_that_of_finite_differences(skew: float) -> None:
    """Stops: a mixture that the gradient does not flow through, or that trains the teacher's share."""
    torch.manual_seed(0)
    teacher = 3 * torch.randn(5, VOCAB, dtype=torch.float64) - 20
    student = (3 * torch.randn(5, VOCAB, dtype=torch.float64) + 20).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: skewed_kl(teacher, logits, skew), student)


@pytest.mark.parametrize("tokens_at_once", [1, 14, 40, 2048])
@pytest.mark.parametrize("max_tokens", [1, 30, 10**6])
def test_held_out_figures_are_means_over_whole_windows(
    tokens_at_once: int, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops: a window cut at the bound, a mean of means, the student's figures under the teacher's name."""
    monkeypatch.setattr(distill, "_TOKENS_AT_ONCE", tokens_at_once)
    teacher, student, windows = model(layers=4), model(seed=1).train(), MaskedWindows(23)
    rows, tokens = [], 0
    for row in windows.rows:
        if tokens < max_tokens:
            rows.append(row)
            tokens += sum(label != -100 for label in row["labels"][1:])
    pairs = list(zip(positions(teacher, rows), positions(student, rows), strict=True))
    assert len(pairs) == tokens >= min(max_tokens, 60)
    figures = held_out_figures(student, teacher, windows, max_tokens)
    nlls = [-math.fsum(row[side].log_p[row[side].label] for row in pairs) / tokens for side in (0, 1)]
    assert figures["kl"] == pytest.approx(math.fsum(kl(a.log_p, b.log_p) for a, b in pairs) / tokens, rel=1e-5)
    assert math.log(figures["teacher_perplexity"]) == pytest.approx(nlls[0], rel=1e-5)
    assert math.log(figures["perplexity"]) == pytest.approx(nlls[1], rel=1e-5)
    assert student.training
    mixed = Distillation(teacher, windows, False, heal_labels=0.25).evaluate(student, max_tokens)
    assert mixed["loss"] == pytest.approx(0.75 * figures["kl"] + 0.25 * nlls[1], rel=1e-5)
    assert next_token(teacher, windows).evaluate(student, max_tokens)["loss"] == pytest.approx(nlls[1], rel=1e-5)


@given(st.lists(st.lists(st.sampled_from([-100, 0, 5]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_label_positions_are_those_before_a_label(labels: list[list[int]]) -> None:
    """Stops: a shift by one, or an order of labels that is not that of the positions."""
    wanted, targets = label_positions(torch.tensor(labels))
    expected = [[label != -100 for label in row[1:]] for row in labels]
    assert wanted.tolist() == expected
    assert targets.tolist() == [label for row in labels for label in row[1:] if label != -100]


@given(rows=st.integers(0, 20), per_part=st.integers(1, 25))
def test_a_sum_by_parts_is_the_sum(rows: int, per_part: int) -> None:
    """Stops: rows that are left out or read twice, slices of the tensors that do not belong together."""
    values, weights = torch.arange(1.0, rows + 1), torch.arange(rows).float() ** 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_LOGITS", 10 * per_part)
        found = sum_by_parts(lambda a, b: (a * b).sum(), 10, values, weights)
    assert found.item() == sum((number + 1) * number**2 for number in range(rows))
