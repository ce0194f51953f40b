"""Healing: the divergence, its bounded memory, what it brings, and exact resume."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.data.dataset import open_dataset
from chitchat.errors import BadInput
from chitchat.training.objective import Trainable
from chitchat.training.trainer import _collate, weights_sha256
from chitchat.training.workfolder import WorkFolder
from compress.distill.heal import default_rate, heal
from compress.distill.objective import Distillation, forward_kl
from compress.distill.options import HealOptions

from test_trainer import kill_after_checkpoint, start  # isort: skip


def model(layers: int = 2, width: int = 16, seed: int = 0, dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=300, n_layer=layers, n_embd=width, n_head=2, n_positions=32, initializer_range=0.1,
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        )
    )  # fmt: skip


@pytest.fixture
def data(tiny_data):
    return open_dataset(tiny_data)


def test_forward_kl_is_the_textbook_sum():
    """Stops: the reverse divergence, a wrong sign, a mean over the vocabulary."""
    teacher, student = torch.randn(4, 11), torch.randn(4, 11)
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(forward_kl(teacher, student), (p * (p / q).log()).sum(-1), rtol=1e-4, atol=1e-6)
    assert forward_kl(teacher, teacher).abs().max() < 1e-6


@pytest.mark.parametrize("dropped", [False, True])
def test_the_loss_reads_label_positions_only_and_in_pieces_alike(data, dropped, monkeypatch):
    """Stops: padding in the loss, a teacher that is trained, pieces that lose their gradient."""
    teacher, student = model(layers=4), model(seed=1)
    windows = data.windows("train", 32, replies_only=True)
    batch = _collate([windows[number] for number in range(5)])
    view = Trainable.around(student, Distillation(teacher, windows, dropped))
    with torch.no_grad():
        hidden = [one(input_ids=batch["input_ids"], output_hidden_states=True) for one in (teacher, student)]
        wanted = batch["labels"][:, 1:] != -100
        logits = [one.logits[:, :-1][wanted] for one in hidden]
        expected = forward_kl(*logits).sum()
        if dropped:
            middle = [one.hidden_states[-3][:, :-1][wanted] for one in hidden]
            expected += (1 - torch.cosine_similarity(*middle, dim=-1)).sum()
    gradients = []
    for limit in (2**26, 300 * 5):
        monkeypatch.setattr("chitchat.training.objective.MAX_LOGITS", limit)
        student.zero_grad()
        loss = view(**batch)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        gradients.append(student.transformer.wte.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_healing_brings_the_student_to_the_teacher(data, tmp_path):
    """Stops: a student that learns nothing, figures of another model, a teacher that changed."""
    teacher, student = model(layers=3), model(layers=2, seed=1)
    untouched = weights_sha256(teacher)
    result = heal(student, teacher, data, tmp_path / "work", HealOptions(epochs=3, learning_rate=5e-3))
    assert result.after_kl < 0.6 * result.before_kl
    assert weights_sha256(teacher) == untouched
    windows = data.windows("validation", 32)
    held_out = Distillation(teacher, windows, False).evaluate(student, 10**6)
    assert held_out["loss"] == pytest.approx(result.after_kl, rel=1e-5)
    assert not student.training
    same = Distillation(teacher, windows, False).evaluate(copy.deepcopy(teacher), 10**6)
    assert same["loss"] == pytest.approx(0, abs=1e-6)
    assert same["perplexity"] == pytest.approx(result.teacher_perplexity)


HEAL = """
import sys
from pathlib import Path
from chitchat.data.dataset import open_dataset
from compress.distill.heal import heal
from test_distill import OPTIONS, model
data, work = open_dataset(Path(sys.argv[1])), Path(sys.argv[2])
heal(model(seed=1, dropout=0.1), model(layers=4), data, work, OPTIONS)
"""
OPTIONS = HealOptions(epochs=6, dropout=None)


def test_a_killed_and_resumed_healing_ends_with_the_same_bits(data, tmp_path):
    """Stops: a pipeline whose pruned model depends on where the power went out."""
    whole, resumed = model(seed=1, dropout=0.1), model(seed=1, dropout=0.1)
    teacher = model(layers=4)
    heal(whole, teacher, data, tmp_path / "whole", OPTIONS)
    work = WorkFolder(tmp_path / "killed")
    kill_after_checkpoint(start(HEAL, data.path, work.path), work)
    result = heal(resumed, teacher, data, work.path, OPTIONS, resume=True)
    assert weights_sha256(resumed) == weights_sha256(whole)
    plans = [json.loads((Path(folder) / "plan.json").read_text()) for folder in (tmp_path / "whole", work.path)]
    assert plans[0]["key"] == plans[1]["key"]
    assert result.steps == plans[0]["total_steps"]


def test_the_default_rate_follows_the_cut():
    """Stops: a lightly pruned model that is thrown out of its optimum, a halved one that never recovers."""
    teacher = model(layers=8, width=32)
    light, deep = model(layers=7, width=32), model(layers=2, width=16)
    assert default_rate(light, teacher) == pytest.approx(4e-4)
    assert default_rate(deep, teacher) == pytest.approx(2e-3)


def test_what_cannot_be_healed_is_named(data, tmp_path):
    """Stops: a shape error in torch for a teacher with another vocabulary."""
    other = GPT2LMHeadModel(GPT2Config(vocab_size=301, n_layer=1, n_embd=16, n_head=2, n_positions=32))
    with pytest.raises(BadInput, match=r"--teacher: has a vocabulary of 301, the student one of 300"):
        heal(model(), other, data, tmp_path / "w", HealOptions(epochs=1))
    with pytest.raises(BadInput, match=r"--context 64.*at most 32"):
        heal(model(), model(), data, tmp_path / "w", HealOptions(epochs=1, context=64))
