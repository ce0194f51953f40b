"""The scorer against transformers' own loss, and what is counted."""

import math

import numpy as np
import pytest
import torch

from chitchat.data.dataset import open_dataset
from chitchat.errors import WorkFailed
from chitchat.score import conversation_sums, score, torch_scorer


@pytest.fixture(scope="module")
def windows(tiny_data):
    return open_dataset(tiny_data).windows("validation", 32)


def reference(model, windows):
    """Sum of nats, labels and hits by transformers' loss, one window at a time."""
    nats, tokens, hits = 0.0, 0, 0
    for number in range(len(windows)):
        row = windows[number]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            output = model(input_ids=ids, labels=labels)
        count = int((labels[:, 1:] != -100).sum())
        nats += output.loss.item() * count
        tokens += count
        hits += int((output.logits[:, :-1].argmax(-1) == labels[:, 1:]).sum())
    return nats, tokens, hits


def test_the_score_is_what_transformers_loss_gives(tiny_model, windows):
    """Stops: a shift by one, padding that counts, start ids that count, an accuracy over other positions."""
    nats, tokens, hits = reference(tiny_model, windows)
    found = score(torch_scorer(tiny_model, batch_tokens=100), windows)
    assert found.tokens == tokens
    assert found.nll_per_token == pytest.approx(nats / tokens, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found.token_accuracy == hits / tokens
    assert found.bytes == windows.text_bytes.sum()
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / windows.text_bytes.sum(), rel=1e-5)


def test_masked_turns_do_not_count(tiny_model, tiny_data):
    """Stops: a score with `replies_only` that still sums over all turns."""
    replies = open_dataset(tiny_data).windows("validation", 32, replies_only=True)
    nats, tokens, _ = reference(tiny_model, replies) if all_have_labels(replies) else (None, None, None)
    found = score(torch_scorer(tiny_model), replies)
    everything = score(torch_scorer(tiny_model), open_dataset(tiny_data).windows("validation", 32))
    assert 0 < found.tokens < everything.tokens
    if tokens:
        assert (found.tokens, found.nll_per_token) == (tokens, pytest.approx(nats / tokens, rel=1e-5))


def all_have_labels(windows) -> bool:
    return all(any(label != -100 for label in windows[number]["labels"][1:]) for number in range(len(windows)))


def test_sums_are_kept_by_conversation(tiny_model, windows):
    """Stops: a bootstrap that would draw windows, which depend on each other, instead of conversations."""
    sums = conversation_sums(torch_scorer(tiny_model), windows)
    assert list(sums.conversation) == sorted(set(windows.conversation))
    assert sums.score() == score(torch_scorer(tiny_model), windows)
    one = windows.conversation == sums.conversation[3]
    assert sums.bytes[3] == windows.text_bytes[one].sum()
    assert sums.tokens[3] == sum(windows.lengths[one] - 1)


def test_a_bounded_score_is_the_score_of_the_first_windows(tiny_model, windows):
    """Stops: a bound that cuts a window, or that reads the whole split anyway."""
    found = score(torch_scorer(tiny_model), windows, max_tokens=40)
    counts = np.cumsum(windows.lengths - 1)
    assert found.tokens == counts[np.searchsorted(counts, 40)]


def test_batching_changes_nothing_and_the_mode_comes_back(tiny_model):
    """Stops: right padding that leaks into a sequence, results in another order, a model left in eval mode."""
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, 300, size).tolist() for size in (5, 40, 1, 17, 40, 2)]
    tiny_model.train()
    together = torch_scorer(tiny_model, batch_tokens=1000)(sequences)
    assert tiny_model.training
    tiny_model.eval()
    for sequence, (nll, hit) in zip(sequences, together, strict=True):
        (alone, alone_hit), *_ = torch_scorer(tiny_model)([sequence])
        assert nll.shape == hit.shape == (len(sequence) - 1,)
        np.testing.assert_allclose(nll, alone, rtol=1e-5)
        assert (hit == alone_hit).all()


def test_what_cannot_be_scored_is_said(tiny_model, windows):
    """Stops: a division by zero, and an index error deep in torch for a sequence beyond the context."""
    with pytest.raises(ValueError, match="does not fit the context of 64"):
        torch_scorer(tiny_model)([list(range(65))])
    with pytest.raises(WorkFailed, match="no token to score"):
        score(torch_scorer(tiny_model), windows, max_tokens=0)
