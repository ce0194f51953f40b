"""Calibration windows and the distance between two models."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from chitchat import divergence as token_divergence
from chitchat.data.dataset import open_dataset
from chitchat.score import score, torch_scorer
from compress.calibrate.batches import calibration_batches, calibration_sequences, thin
from compress.calibrate.measure import KL_TOKENS, SCORE_TOKENS, divergence, mean_loss, measure


@pytest.mark.parametrize("at_once", [2**22, 300 * 7])
def test_the_distance_is_the_plain_formula(
    tiny_model: GPT2LMHeadModel, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Stops positions that are dropped where the logits are computed in pieces, and KL the wrong way round."""
    monkeypatch.setattr(token_divergence, "MAX_TORCH_LOGITS", at_once)
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.transformer.ln_f.weight.mul_(3)
    data = open_dataset(tiny_data)
    batches = calibration_batches(data.windows("validation", 64), data.dialogue.pad_id, 500)
    kl, same, tokens, loss = 0.0, 0, 0, 0.0
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            with torch.no_grad():
                p, q = (model(ids[None]).logits[0, :-1].double().log_softmax(-1) for model in (tiny_model, other))
            scored = labels[1:] != -100
            kl += float((p.exp() * (p - q)).sum(-1)[scored].sum())
            same += int((p.argmax(-1) == q.argmax(-1))[scored].sum())
            loss -= float(p[torch.arange(len(p)), ids[1:]][scored].sum())
            tokens += int(scored.sum())
    found = divergence(tiny_model, other, batches)
    assert found.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert (found.top1, found.tokens) == (same / tokens, tokens)
    assert mean_loss(tiny_model, batches) == pytest.approx(loss / tokens, rel=1e-4)
    assert divergence(tiny_model, tiny_model, batches).kl == 0


def test_batches_are_bounded_and_repeatable(tiny_data: Path) -> None:
    """Stops a calibration that grows with the corpus, or that a resumed run draws anew."""
    data = open_dataset(tiny_data)
    windows = data.windows("train", 64)

    def drawn(tokens: int, seed: int) -> list[list[int]]:
        batches = calibration_batches(windows, data.dialogue.pad_id, tokens, seed, batch_tokens=128)
        return [
            row[mask.bool()].tolist()
            for batch in batches
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]

    assert drawn(300, seed=1) == drawn(300, seed=1) != drawn(300, seed=2)
    assert 150 < sum(map(len, drawn(300, seed=1))) <= 300
    assert len(drawn(1, seed=1)) == 1
    assert sum(map(len, drawn(10**9, seed=1))) == windows.lengths.sum()
    assert len(drawn(10**9, seed=1)) == len(windows)


def test_sequences_are_the_windows_of_the_batches(tiny_data: Path) -> None:
    """Stops padding, labels or other conversations than a batch of the same seed from being calibrated on."""
    data = open_dataset(tiny_data)
    windows = data.windows("train", 64)
    for tokens, seed in ((1, 0), (200, 0), (200, 1), (10**9, 0)):
        found = calibration_sequences(windows, tokens, seed)
        batches = calibration_batches(windows, data.dialogue.pad_id, tokens, seed)
        rows = [
            ids[mask == 1].tolist()
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert sorted(found) == sorted(rows)
        left = [windows[number]["input_ids"] for number in range(len(windows))]
        for ids in found:
            left.remove(ids)  # each is a window of the split, and none twice
        assert len(found) == 1 or sum(map(len, found)) <= tokens
    assert len(found) == len(windows)
    assert calibration_sequences(windows, 200, 0) != calibration_sequences(windows, 200, 1)


@pytest.mark.parametrize(("tokens", "kept"), [(10**9, 6), (60, 6), (59, 6), (30, 3), (20, 2), (1, 1), (0, 1)])
def test_every_nth_batch_is_left(tokens: int, kept: int) -> None:
    """Stops a search that reads all batches, or none of them."""
    batches = [{"attention_mask": torch.tensor([[1] * 10 + [0] * 5]), "number": number} for number in range(6)]
    found = thin(batches, tokens)  # type: ignore[arg-type]
    assert len(found) == kept
    assert [batch["number"] for batch in found] == list(range(0, 6, 6 // kept))[:kept]


def test_the_figures_of_a_lineage_are_those_of_the_held_out_split(tiny_model: GPT2LMHeadModel, tiny_data: Path) -> None:
    """Stops a record of another split, and a distance that is not of these two models."""
    data = open_dataset(tiny_data)
    windows = data.windows("validation", 64)
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.transformer.ln_f.weight.mul_(3)
    scored = score(torch_scorer(other), windows, max_tokens=SCORE_TOKENS)
    apart = divergence(tiny_model, other, calibration_batches(windows, data.dialogue.pad_id, KL_TOKENS))
    expected = {
        "parameters": other.num_parameters(),
        "perplexity": scored.perplexity,
        "bits_per_byte": scored.bits_per_byte,
        "tokens": scored.tokens,
    }
    assert measure(other, tiny_model, data) == pytest.approx({**expected, "kl": apart.kl, "top1": apart.top1})
    assert measure(other, other, data) == pytest.approx(expected)
    assert apart.as_json() == {"kl": apart.kl, "top1": apart.top1, "tokens": apart.tokens}
