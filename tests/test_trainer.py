"""The exact Trainer: kill, resume, early stop, several processes, minutes."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.killed_run import kill_after_checkpoint, start
from transformers import GPT2Config, GPT2LMHeadModel, TrainerControl, TrainerState

from chitchat.data.dataset import open_dataset
from chitchat.errors import BadInput, WorkFailed
from chitchat.score import score, torch_scorer
from chitchat.training import trainer as trainer_module
from chitchat.training.batches import GlobalBatches, training_batch
from chitchat.training.callbacks import Schedule, patience_spent
from chitchat.training.curve import save_curve
from chitchat.training.objective import LossModel, NextToken, fused_gelu
from chitchat.training.options import FitOptions, TrainOptions
from chitchat.training.pacer import Pacer
from chitchat.training.rate import Decision, RateSchedule
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.train import train
from chitchat.training.trainer import fit, weights_sha256
from chitchat.training.workfolder import TrainingFolder, TrainingPlan
from serve.digest import sha256

TINY = {"layers": 2, "width": 32, "heads": 4, "context": 32, "batch_size": 8, "dropout": 0.1}
RUN = "import sys, json; from pathlib import Path; from chitchat.training.options import TrainOptions; " \
    "from chitchat.training.train import train; " \
    "train(Path(sys.argv[1]), Path(sys.argv[2]), TrainOptions(**json.loads(sys.argv[3])), resume=True)"  # fmt: skip


def test_a_killed_and_resumed_run_ends_with_the_same_bits(tiny_data, tmp_path):
    """Stops: a resume that loses data order, dropout state, optimizer, schedule, best model, or reads a torn file."""
    options = {**TINY, "epochs": 8, "patience": None}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(tiny_data, whole, TrainOptions(**options))
    work = TrainingFolder(tmp_path / ".killed.training")
    step = kill_after_checkpoint(start(RUN, tiny_data, killed, json.dumps(options)), work)
    torn = work.path / "checkpoint-9999"  # as if the next kill had come in the middle of a write
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"\x08\x00")
    figures = train(tiny_data, killed, TrainOptions(**options), resume=True)
    assert figures["steps"] > step
    assert sha256(killed / "model.safetensors") == sha256(whole / "model.safetensors")
    assert (killed / "training-log.json").read_text() == (whole / "training-log.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tiny_data, tmp_path):
    """Stops: processes that read the same windows, a loss averaged per process, a batch that grows with processes."""
    options = {**TINY, "dropout": 0.0, "epochs": 1}
    train(tiny_data, tmp_path / "one", TrainOptions(**options))
    script = tmp_path / "run.py"
    script.write_text(RUN.replace("; ", "\n"), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([*command, str(tiny_data), str(tmp_path / "two"), json.dumps(options)], env=environment, check=True)
    one, two = (json.loads((tmp_path / name / "training-log.json").read_text()) for name in ("one", "two"))
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
    for name in ("loss", "eval_loss"):
        losses = [[entry[name] for entry in log if name in entry] for log in (one, two)]
        assert len(losses[0]) > 2
        # The Trainer rounds the logged training loss to four decimals.
        np.testing.assert_allclose(*losses, rtol=1e-5, atol=1.1e-4 if name == "loss" else 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "run.py", "two"]


@pytest.fixture
def task(tiny_data):
    """A fresh model, windows, objective and the resulting evaluation."""
    data = open_dataset(tiny_data)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=data.vocab_size, n_layer=1, n_embd=16, n_head=2, n_positions=32,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    held_out = data.windows("validation", 32)

    def evaluate(model, max_tokens):
        return {"loss": score(torch_scorer(model), held_out, max_tokens).nll_per_token}

    return GPT2LMHeadModel(config), data.windows("train", 32), NextToken(evaluate)


def test_accumulation_gives_the_gradient_of_the_whole_batch(task, tmp_path):
    """Stops: a mean of means where micro-batches have different numbers of labels."""
    model, windows, objective = task
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logs = []
    for accumulation in (1, 4):
        model.load_state_dict(first)
        options = FitOptions(learning_rate=1e-3, batch_size=8, grad_accumulation=accumulation, epochs=0.5)
        logs.append(fit(model, windows, objective, options, tmp_path / str(accumulation), {}).log)
    for one, four in zip(*logs, strict=True):
        assert one.get("loss", 0) == pytest.approx(four.get("loss", 0), abs=2e-4)
        assert one.get("eval_loss", 0) == pytest.approx(four.get("eval_loss", 0), rel=1e-5)


def test_a_batch_in_which_nothing_is_predicted_changes_no_weight_to_nan(task, tmp_path):
    """Stops: a loss of 0 divided by 0 labels; a dialogpt conversation may be cut to windows of one id."""

    class Ones:
        lengths = np.ones(8, dtype=np.int64)

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"input_ids": [5], "labels": [5], "length": 1}

    model, _, objective = task
    options = FitOptions(learning_rate=1e-3, batch_size=4, steps=2)
    fit(model, Ones(), objective, options, tmp_path / "work", {})
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_labels_weigh_the_same_in_every_step_where_that_is_asked(task, tmp_path):
    """Stops: steps of a few labels that pull as hard as steps of thousands."""
    model, windows, objective = task
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logs = []
    for number, labels in enumerate((None, 50.0, 100.0)):
        model.load_state_dict(first)
        options = FitOptions(learning_rate=1e-9, batch_size=8, steps=3, labels_per_step=labels)
        log = fit(model, windows, objective, options, tmp_path / str(number), {}).log
        logs.append([entry["loss"] for entry in log if "loss" in entry])
    batches = GlobalBatches(windows.lengths, 8, 0)
    labels_read = [windows.lengths[batches[step]].sum() - 8 for step in range(3)]
    assert len(set(labels_read)) > 1
    assert logs[1] == pytest.approx(
        [loss * count / 50 for loss, count in zip(logs[0], labels_read, strict=True)], rel=1e-3
    )
    assert logs[2] == pytest.approx([loss / 2 for loss in logs[1]], abs=2e-4)


def test_the_best_model_is_kept_and_spent_patience_begins_the_decay_also_after_a_kill(task, tmp_path):
    """Stops: the last model instead of the best, an early stop without the decay that brings most, and a resumed run
    that trains past its end."""
    model, windows, _ = task
    scripted = itertools.chain([9.0, 5.0, 3.0, 4.0, 4.0], itertools.repeat(3.5))
    snapshots = []

    def evaluate(one, _):
        snapshots.append(weights_sha256(one.transformer))
        return {"loss": next(scripted)}

    work = TrainingFolder(tmp_path / "work")
    options = FitOptions(learning_rate=1e-2, batch_size=8, epochs=12, patience=2)
    result = fit(model, windows, NextToken(evaluate), options, work.path, {})
    plan, decision = work.read_decisions()
    assert decision.cause == "patience"
    assert result.stopped_early
    assert decision.step < result.steps == decision.end < plan.end
    rates = {entry["step"]: entry["learning_rate"] for entry in result.log if "loss" in entry}
    assert list(rates.values())[-1] < 0.2 * max(rates.values())
    assert [entry["step"] for entry in result.log if "eval_loss" in entry][-1] == result.steps
    assert (result.before["loss"], result.after["loss"]) == (9.0, 3.0)
    assert weights_sha256(model.transformer) == snapshots[2]
    evaluated = len(snapshots)
    again = fit(model, windows, NextToken(evaluate), options, work.path, {}, resume=True)
    assert (again.steps, again.after, again.log) == (result.steps, result.after, result.log)
    assert weights_sha256(model.transformer) == snapshots[2]
    assert len(snapshots) == evaluated  # nothing was evaluated again


def test_minutes_bound_the_run_and_the_plan_stays(task, tmp_path):
    """Stops: a number of steps that does not follow from the step time, or is found anew by every resume."""
    model, windows, objective = task
    options = FitOptions(learning_rate=1e-3, batch_size=8, max_minutes=0.05)
    work = TrainingFolder(tmp_path / "work")
    result = fit(model, windows, objective, options, work.path, {})
    plan = TrainingPlan(**{k: v for k, v in json.loads((work.path / "plan.json").read_text()).items() if k != "key"})
    assert result.steps == work.read_decisions()[-1].end if work.read_decisions() else plan.total_steps
    assert plan.total_steps * plan.step_seconds <= 0.97 * 3 or plan.total_steps == 1
    assert plan.eval_every % plan.save_every == plan.save_every % plan.log_every == 0
    assert fit(model, windows, objective, options, work.path, {}, resume=True).steps == result.steps
    longer = FitOptions(learning_rate=1e-3, batch_size=8, max_minutes=5)
    with pytest.raises(BadInput, match=r"max_minutes 0.05, now 5"):
        fit(model, windows, objective, longer, work.path, {}, resume=True)
    assert work.checkpoints()


def test_ctrl_c_keeps_only_what_one_can_go_on_from(task, tmp_path, monkeypatch):
    """Stops: an empty work folder left behind, or a message that does not say how to go on."""
    model, windows, objective = task
    work = TrainingFolder(tmp_path / "work")
    options = FitOptions(learning_rate=1e-3, batch_size=8, epochs=4)
    stop_at = 1

    def interrupt(self, args, state, control, **_):
        if state.global_step == stop_at:
            raise KeyboardInterrupt
        return real(self, args, state, control)

    real = Schedule.on_step_end
    monkeypatch.setattr(Schedule, "on_step_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(model, windows, objective, options, work.path, {})
    assert not work.path.exists()
    stop_at = 20
    with pytest.raises(KeyboardInterrupt, match="--resume goes on from step 1"):
        fit(model, windows, objective, options, work.path, {})
    assert work.checkpoints()


def test_a_diverging_run_says_so(task, tmp_path):
    """Stops: a checkpoint of NaNs, or a `best` model that never was."""
    model, windows, _ = task
    losses = iter([5.0, float("nan")])
    with pytest.raises(WorkFailed, match="smaller --learning-rate"):
        fit(model, windows, NextToken(lambda *_: {"loss": next(losses)}), FitOptions(1e-3, 8, epochs=1),
            tmp_path / "work", {})  # fmt: skip
    assert not (tmp_path / "work").exists()


def test_a_full_disk_is_one_line(task, tmp_path, monkeypatch):
    """Stops: a traceback of torch's archive writer, and a half-written checkpoint."""
    model, windows, objective = task

    def full(self, output_dir):
        Path(output_dir).mkdir(exist_ok=True)
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(trainer_module.ExactTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(BadInput, match="the disk is full"):
        fit(model, windows, objective, FitOptions(1e-3, 8, epochs=1), tmp_path / "work", {})
    assert not (tmp_path / "work").exists()


def test_a_batch_that_cannot_be_shared_out_is_refused(task, tmp_path):
    """Stops: a silent change of the batch size."""
    model, windows, objective = task
    options = FitOptions(1e-3, 10, grad_accumulation=4, epochs=1)
    with pytest.raises(BadInput, match=r"--batch-size 10.*multiple of 4"):
        fit(model, windows, objective, options, tmp_path / "work", {})


def test_a_large_vocabulary_is_scored_in_pieces_with_the_same_gradient(task, monkeypatch):
    """Stops: pieces that are left out of the loss or of the backward pass; and a fused GELU of another function."""
    model, windows, objective = task
    rows = [windows[number] for number in range(6)]
    batch = training_batch(rows)
    expected = sum(
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        * (len(row["input_ids"]) - 1)
        for row in rows
    )
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    view = LossModel.wrap(model, objective)
    for limit in (2**26, 300 * 7):
        monkeypatch.setattr("chitchat.training.objective.MAX_LOGITS", limit)
        model.zero_grad()
        with fused_gelu(model):
            loss = view(**batch)
            loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    assert type(model.transformer.h[0].mlp.act).__name__ == "NewGELUActivation"


def test_patience_counts_evaluations_since_the_best():
    """Stops: an off-by-one, and a tie that counts as better."""
    log = [{"loss": 1.0}, *({"eval_loss": value} for value in (3.0, 2.0, 2.0, 2.5))]
    assert [patience_spent(log, patience) for patience in (1, 2, 3, None)] == [True, True, False, False]
    assert not patience_spent([{"loss": 1.0}], 1)


def test_saves_come_between_evaluations(tmp_path):
    """Stops: an hour of work that is lost because evaluations are rare."""
    plan = TrainingPlan(10, 1, 2, 4, 100, 0.1, {})
    rates = RateSchedule([Decision(0, 10, "plan")], 0.0)
    pacer = Pacer(plan, rates, lambda _: 100, Stopwatch())
    schedule = Schedule(plan, TrainingFolder(tmp_path), pacer)
    asked = []
    for step in range(1, 11):
        control = schedule.on_step_end(None, TrainerState(global_step=step), TrainerControl())
        asked.append((control.should_save, control.should_evaluate))
    assert [step for step, (save, _) in enumerate(asked, 1) if save] == [2, 4, 6, 8, 10]
    assert asked[-1] == (True, True)


def test_the_same_log_gives_the_same_picture(tmp_path):
    """Stops: a date in the picture, which would change the identity of a checkpoint that is the same."""
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5}]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_curve(tmp_path / name, log)
    assert (tmp_path / "a/training-curve.png").read_bytes() == (tmp_path / "b/training-curve.png").read_bytes()
    assert json.loads((tmp_path / "a/training-log.json").read_text()) == log


def test_tokens_are_those_of_the_steps(task):
    """Stops: a token count of the plan instead of what was read."""
    _, windows, _ = task
    batches = GlobalBatches(windows.lengths, 8, 0)
    assert batches.tokens(2) == windows.lengths[batches[0]].sum() + windows.lengths[batches[1]].sum()
