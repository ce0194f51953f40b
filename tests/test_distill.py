"""Healing: the divergences, bounded memory, what it brings, the student's own replies, and exact resume."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.healing import OPTIONS, model
from support.killed_run import kill_after_checkpoint, start
from support.timed_machine import Machine, Timed, slower
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.data.dataset import open_dataset
from chitchat.errors import BadInput, WorkFailed
from chitchat.training.batches import training_batch
from chitchat.training.objective import LossModel
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.trainer import weights_sha256
from chitchat.training.workfolder import TrainingFolder
from compress.distill.heal import heal
from compress.distill.objective import Distillation, skewed_kl
from compress.distill.options import HealOptions
from compress.distill.run import HealRun, default_rate
from compress.distill.samples import SampledWindows


@pytest.fixture
def data(tiny_data):
    return open_dataset(tiny_data)


def test_forward_kl_is_the_textbook_sum():
    """Stops: the reverse divergence, a wrong sign, a mean over the vocabulary."""
    teacher, student = torch.randn(4, 11), torch.randn(4, 11)
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(skewed_kl(teacher, student, 0.0), (p * (p / q).log()).sum(-1), rtol=1e-4, atol=1e-6)
    assert skewed_kl(teacher, teacher, 0.0).abs().max() < 1e-6


def test_skewed_kl_is_to_the_mixture_and_bounded():
    """Stops: the two shares swapped, and a loss that one impossible token of the student's own text explodes."""
    teacher, student = torch.randn(4, 11), torch.randn(4, 11)
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (p * (p / (0.1 * p + 0.9 * q)).log()).sum(-1)
    torch.testing.assert_close(skewed_kl(teacher, student, 0.1), expected, rtol=1e-4, atol=1e-6)
    far = torch.full((1, 11), 0.0).index_fill(1, torch.tensor([3]), 1e4)
    other = torch.full((1, 11), 0.0).index_fill(1, torch.tensor([5]), 1e4).requires_grad_()
    loss = skewed_kl(far, other, 0.1)
    assert loss.item() == pytest.approx(-math.log(0.1))
    loss.sum().backward()
    assert other.grad.isfinite().all()


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("dropped", [False, True])
def test_the_loss_reads_label_positions_only_and_in_pieces_alike(data, dropped, share, monkeypatch):
    """Stops: padding in the loss, a teacher that is trained, pieces that lose their gradient."""
    teacher, student = model(layers=4), model(seed=1)
    windows = data.windows("train", 32, replies_only=True)
    batch = training_batch([windows[number] for number in range(5)])
    view = LossModel.wrap(student, Distillation(teacher, windows, dropped, heal_labels=share))
    with torch.no_grad():
        hidden = [one(input_ids=batch["input_ids"], output_hidden_states=True) for one in (teacher, student)]
        wanted = batch["labels"][:, 1:] != -100
        logits = [one.logits[:, :-1][wanted] for one in hidden]
        labels = torch.nn.functional.cross_entropy(logits[1], batch["labels"][:, 1:][wanted], reduction="sum")
        expected = (1 - share) * skewed_kl(*logits, 0.0).sum() + share * labels
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
    result = heal(student, teacher, data, tmp_path / "work", HealOptions(heal_epochs=3, learning_rate=5e-3))
    assert result.after_kl < 0.6 * result.before_kl
    assert weights_sha256(teacher) == untouched
    windows = data.windows("validation", 32)
    held_out = Distillation(teacher, windows, False).evaluate(student, 10**6)
    assert held_out["loss"] == pytest.approx(result.after_kl, rel=1e-5)
    assert not student.training
    same = Distillation(teacher, windows, False).evaluate(copy.deepcopy(teacher), 10**6)
    assert same["loss"] == pytest.approx(0, abs=1e-6)
    assert same["perplexity"] == pytest.approx(result.teacher_perplexity)


def test_a_share_of_labels_decides_as_it_teaches(data):
    """Stops: best weights that are chosen by another yardstick than the loss, labels that the student made up."""
    teacher, student, windows = model(layers=3), model(layers=2, seed=1), data.windows("validation", 32)
    pure, mixed = (Distillation(teacher, windows, False, heal_labels=share) for share in (0.0, 0.25))
    kl, found = pure.evaluate(student, 10**6), mixed.evaluate(student, 10**6)
    assert found["loss"] == pytest.approx(0.75 * kl["loss"] + 0.25 * math.log(kl["perplexity"]))
    batch = training_batch([windows[number] for number in range(3)])
    own = [
        Distillation(teacher, windows, False, skew=0.1, heal_labels=share).loss_sum(student, **batch).item()
        for share in (0.0, 0.25)
    ]
    assert own[0] == own[1]


def test_cross_entropy_is_the_control(data, tmp_path):
    """Stops: a control that learns from the teacher, or whose best weights are chosen by the teacher's yardstick."""
    teachers, students = [model(layers=3), model(layers=3, seed=7)], [model(seed=1), model(seed=1)]
    options = HealOptions(heal_steps=40, heal_loss="ce", learning_rate=5e-3)
    results = [
        heal(student, teacher, data, tmp_path / str(number), options)
        for number, (student, teacher) in enumerate(zip(students, teachers, strict=True))
    ]
    assert weights_sha256(students[0]) == weights_sha256(students[1])
    assert results[0].after_kl != results[1].after_kl
    assert results[0].after_perplexity < 0.7 * results[0].before_perplexity
    losses = [entry["eval_loss"] for entry in results[0].log if "eval_loss" in entry]
    assert min(losses) == pytest.approx(math.log(results[0].after_perplexity))
    assert results[0].own_steps == results[0].teacher_tokens == 0


def test_the_student_heals_without_dropout_and_keeps_its_own_afterwards(data, tmp_path):
    """Stops: noise in what little capacity is left; a checkpoint that is fine-tuned without dropout later on."""
    plain, dropping, asked = model(seed=1), model(seed=1, dropout=0.5), model(seed=1, dropout=0.5)
    options = HealOptions(heal_steps=4)
    for student, change in ((plain, {}), (dropping, {}), (asked, {"dropout": None})):
        heal(student, model(layers=3), data, tmp_path / "work", replace(options, **change))
    assert weights_sha256(dropping) == weights_sha256(plain) != weights_sha256(asked)
    assert dropping.transformer.drop.p == dropping.transformer.h[1].attn.attn_dropout.p == 0.5
    assert dropping.config.resid_pdrop == 0.5


def test_steps_are_counted_over_all_parts(data, tmp_path):
    """Stops: a budget that is spent twice, rounds that are not in the log or begin at step 0 again."""
    student = model(seed=1)
    result = heal(student, model(layers=3), data, tmp_path / "work", HealOptions(heal_steps=150, own_replies=0.8))
    assert (result.steps, result.own_steps) == (150, 120)
    steps = [entry["step"] for entry in result.log]
    assert steps == sorted(steps)
    assert steps[-1] == 150
    assert sum("eval_loss" in entry and entry["step"] > 30 for entry in result.log) == 6  # two rounds of three
    assert result.best_step in steps
    assert sorted(path.name for path in (tmp_path / "work").iterdir() if path.name != "clock.json") == [
        "heal.json", "main", "round-1", "round-1.npz", "round-2", "round-2.npz",
    ]  # fmt: skip


@pytest.mark.parametrize(("rate", "kept"), [(0.2, 2), (1e4, 0)])
def test_a_round_that_does_not_help_is_taken_back(data, tmp_path, monkeypatch, rate, kept):
    """Stops: own replies that lead the student away from its teacher, and a good round that is thrown away."""
    monkeypatch.setattr("compress.distill.on_policy.OWN_RATE", rate)
    teacher, student = model(layers=3), model(seed=1)
    options = HealOptions(heal_steps=150, own_replies=0.8, learning_rate=1e-3)
    result = heal(student, teacher, data, tmp_path / "work", options)
    assert result.own_rounds == kept
    assert (result.after_kl < result.main_kl) == (kept > 0)
    assert result.own_steps == (120 if kept else 60)  # after a round in vain there is no other
    assert (result.best_step > 30) == (kept > 0)
    found = Distillation(teacher, data.windows("validation", 32), False).evaluate(student, 10**6)
    assert found["kl"] == pytest.approx(result.after_kl, rel=1e-5)


def test_a_start_that_healing_does_not_better_is_kept(data, tmp_path):
    """Stops: a refitted student that leaves healing farther from its teacher than it came."""
    teacher = model(layers=3)
    student = copy.deepcopy(teacher)
    result = heal(student, teacher, data, tmp_path / "work", HealOptions(heal_steps=6, learning_rate=1e-2))
    assert weights_sha256(student) == weights_sha256(teacher)
    assert (result.best_step, result.after_kl) == (0, result.before_kl)
    assert result.main_kl > result.after_kl
    assert result.after_perplexity == result.before_perplexity == pytest.approx(result.teacher_perplexity, rel=1e-6)


def test_the_teachers_conversations_are_read_beside_the_corpus(data, tmp_path):
    """Stops: samples that are written and not read, or read in place of the corpus."""
    students = [model(seed=1), model(seed=1)]
    for student, samples in zip(students, (True, False), strict=True):
        options = HealOptions(heal_steps=60, own_replies=0, teacher_samples=samples)
        result = heal(student, model(layers=3), data, tmp_path / str(samples), options)
        assert (result.teacher_tokens > 0) == samples
        assert result.steps == 60
    assert weights_sha256(students[0]) != weights_sha256(students[1])
    plan = json.loads((tmp_path / "True/main/plan.json").read_text())
    corpus = len(data.windows("train", 32))
    assert plan["key"]["inputs"]["windows"] == corpus + len(SampledWindows.load(tmp_path / "True/teacher.npz"))


def slow_healing(monkeypatch, machine):
    """From now on every step and evaluation of a healing takes its time on the machine."""
    real = HealRun.objective
    monkeypatch.setattr(HealRun, "objective", lambda run, skew=0.0: Timed(real(run, skew), machine))


HEALED_ON = {
    "steady": lambda: Machine(lambda now: 2.0),
    "8 times slower after planning": lambda: Machine(slower(20.0, 8.0)),
    "8 times slower before the own replies": lambda: Machine(lambda now: 2.0 if now < 58.0 else 16.0),
    "4 times faster": lambda: Machine(lambda now: 4.0 if now < 40.0 else 1.0),
    "stopped for a while": lambda: Machine(stalls=[(40.0, 40.0)]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "slower" in name else pytest.mark.slow) for name in HEALED_ON]
)
def test_all_parts_together_take_the_minutes(data, tmp_path, monkeypatch, name):
    """Stops: a healing by the clock whose parts add up to more, or whose plan is found anew when it goes on."""
    monkeypatch.setattr("compress.distill.budget.STEPS_PER_ROUND", 1)
    machine = HEALED_ON[name]()
    slow_healing(monkeypatch, machine)

    def clock():
        machine.now += 0.005  # drawing an id looks at the clock, and takes that long
        return machine.now

    student, options = model(seed=1), HealOptions(heal_minutes=2.0, own_replies=0.5, teacher_samples=True)
    first = heal(student, model(layers=3), data, tmp_path / "work", options, stopwatch=Stopwatch(clock))
    # A round that would not end in time does not begin; at the end one takes a sixth of all.
    least = 0.8 if "own replies" in name else 0.9
    assert least * 120 <= machine.now <= 1.1 * 120
    assert first.minutes == pytest.approx(machine.now / 60, rel=0.02)
    assert first.own_steps > 0 or "slower" in name
    assert first.teacher_tokens > 0
    again = model(seed=1)
    second = heal(again, model(layers=3), data, tmp_path / "work", options, resume=True, stopwatch=Stopwatch(clock))
    assert weights_sha256(again) == weights_sha256(student)
    assert replace(second, minutes=0) == replace(first, minutes=0)


HEAL = """
import sys
from pathlib import Path
from chitchat.data.dataset import open_dataset
from compress.distill.heal import heal
from support.healing import OPTIONS, model
data, work = open_dataset(Path(sys.argv[1])), Path(sys.argv[2])
heal(model(seed=1, dropout=0.1), model(layers=4), data, work, OPTIONS)
"""


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """A run that was left alone: its student's hash, its result, its work folder."""
    student, work = model(seed=1, dropout=0.1), tmp_path_factory.mktemp("whole") / "work"
    result = heal(student, model(layers=4), open_dataset(tiny_data), work, OPTIONS)
    return weights_sha256(student), result, work


@pytest.mark.slow
@pytest.mark.parametrize("part", ["main", "round-1", "round-2"])
def test_a_killed_and_resumed_healing_ends_with_the_same_bits(whole, data, tmp_path, part):
    """Stops: a pipeline whose pruned model depends on where the power went out."""
    bits, expected, folder = whole
    assert expected.teacher_tokens > 0
    assert (folder / "round-2").is_dir()
    resumed = model(seed=1, dropout=0.1)
    work = tmp_path / "killed"
    kill_after_checkpoint(start(HEAL, data.path, work), TrainingFolder(work / part))
    result = heal(resumed, model(layers=4), data, work, OPTIONS, resume=True)
    assert weights_sha256(resumed) == bits
    assert result.log == expected.log
    assert (result.steps, result.best_step, result.own_rounds) == (
        expected.steps, expected.best_step, expected.own_rounds,
    )  # fmt: skip


def test_a_resume_with_other_values_is_refused(data, tmp_path):
    """Stops: half a run by one set of options, half by another; an unfinished run that a mistyped option removes."""
    heal(model(seed=1), model(layers=3), data, tmp_path / "work", HealOptions(heal_steps=4))
    for change in ({"heal_steps": 5}, {"own_replies": 0.5}, {"seed": 1}):
        options = replace(HealOptions(heal_steps=4), **change)
        with pytest.raises(BadInput, match="--resume: the unfinished run"):
            heal(model(seed=1), model(layers=3), data, tmp_path / "work", options, resume=True)
    with pytest.raises(BadInput, match="student"):
        heal(model(seed=2), model(layers=3), data, tmp_path / "work", HealOptions(heal_steps=4), resume=True)
    assert TrainingFolder(tmp_path / "work/main").checkpoints()


def test_a_run_that_fails_at_once_leaves_nothing(data, tmp_path):
    """Stops: a work folder that no one can go on from."""
    broken = model(layers=3)
    with torch.no_grad():
        broken.transformer.wte.weight.fill_(float("nan"))
    with pytest.raises(WorkFailed, match="diverged"):
        heal(model(seed=1), broken, data, tmp_path / "work", HealOptions(heal_steps=4))
    assert not (tmp_path / "work").exists()


def test_ctrl_c_between_parts_says_how_to_go_on(data, tmp_path, monkeypatch):
    """Stops: somebody who starts an hour of healing anew, since nothing told that it was kept."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.distill.on_policy.student_replies", interrupt)
    with pytest.raises(KeyboardInterrupt, match="--resume goes on from here"):
        heal(model(seed=1), model(layers=3), data, tmp_path / "work", HealOptions(heal_steps=64, own_replies=0.95))
    assert TrainingFolder(tmp_path / "work/main").checkpoints()


@pytest.mark.slow
def test_two_processes_heal_as_one_does(data, tmp_path):
    """Stops: processes that write replies of their own, take other decisions, or wait for each other for ever."""
    one = heal(
        model(seed=1),
        model(layers=4),
        data,
        tmp_path / "one",
        HealOptions(heal_steps=66, own_replies=0.95, teacher_samples=True),
    )
    script = tmp_path / "run.py"
    script.write_text(TWO, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    subprocess.run([*command, str(data.path), str(tmp_path / "two")], env=environment, check=True, timeout=300)
    two = json.loads((tmp_path / "two.json").read_text())
    assert (two["steps"], two["own_steps"], two["teacher_tokens"]) == (one.steps, one.own_steps, one.teacher_tokens)
    assert one.own_steps > 0
    assert one.teacher_tokens > 0
    for name in ("main_kl", "after_kl"):
        assert two[name] == pytest.approx(getattr(one, name), rel=1e-4)


TWO = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from chitchat.data.dataset import open_dataset
from chitchat.training.distributed import Distributed
from compress.distill.heal import heal
from compress.distill.options import HealOptions
from support.healing import model
data, work = open_dataset(Path(sys.argv[1])), Path(sys.argv[2])
options = HealOptions(heal_steps=66, own_replies=0.95, teacher_samples=True)
result = heal(model(seed=1), model(layers=4), data, work, options)
if Distributed().is_main:
    work.with_suffix(".json").write_text(json.dumps(asdict(result)))
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"--heal-epochs, --heal-minutes, --heal-steps: none is given"),
        ({"heal_epochs": 1, "heal_minutes": 2}, r"--heal-epochs and --heal-minutes are given; give one"),
        ({"heal_minutes": -1}, r"--heal-minutes -1: give 0 or more"),
        ({"heal_steps": 0}, r"--heal-steps 0"),
        ({"heal_epochs": math.nan}, r"--heal-epochs nan"),
        ({"heal_steps": 1, "heal_loss": "mse"}, r"--heal-loss mse: give kl or ce"),
        ({"heal_steps": 1, "heal_labels": 1.0}, r"--heal-labels 1"),
        ({"heal_steps": 1, "heal_labels": 0.2, "heal_loss": "ce"}, r"--heal-labels 0.2: goes with --heal-loss kl"),
        ({"heal_steps": 1, "own_replies": 1.0}, r"--own-replies 1"),
        ({"heal_steps": 1, "teacher_samples": "some"}, r"--teacher-samples some"),
        ({"heal_steps": 1, "dropout": 1.0}, r"--dropout 1"),
        ({"heal_steps": 1, "loss": "some"}, r"--loss some"),
        ({"heal_steps": 1, "batch_size": 0}, r"--batch-size 0"),
        ({"heal_steps": 1, "learning_rate": 0.0}, r"--learning-rate 0"),
    ],
)
def test_options_that_cannot_be_used_are_named(changes, message):
    """Stops: a traceback after the knife, or a run that ignores what was asked."""
    with pytest.raises(BadInput, match=message):
        HealOptions(**changes)


def test_the_default_rate_follows_the_cut():
    """Stops: a lightly pruned model that is thrown out of its optimum, a halved one that never recovers."""
    teacher = model(layers=8, width=32)
    light, deep = model(layers=7, width=32), model(layers=2, width=16)
    assert default_rate(light, teacher) == pytest.approx(1.6e-4)
    assert default_rate(deep, teacher) == pytest.approx(5e-4)


def test_what_cannot_be_healed_is_named(data, tmp_path):
    """Stops: a shape error in torch for a teacher with another vocabulary."""
    other = GPT2LMHeadModel(GPT2Config(vocab_size=301, n_layer=1, n_embd=16, n_head=2, n_positions=32))
    with pytest.raises(BadInput, match=r"--teacher: has a vocabulary of 301, the student one of 300"):
        heal(model(), other, data, tmp_path / "w", HealOptions(heal_epochs=1))
    with pytest.raises(BadInput, match=r"--context 64.*at most 32"):
        heal(model(), model(), data, tmp_path / "w", HealOptions(heal_epochs=1, context=64))
