"""Minutes are a promise: whole runs on a machine whose clock the work itself moves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.timed_machine import Machine, Timed, slower
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.data.dataset import open_dataset
from chitchat.score import score, torch_scorer
from chitchat.training.callbacks import Schedule
from chitchat.training.objective import NextToken
from chitchat.training.options import FitOptions
from chitchat.training.pacer import Pacer
from chitchat.training.rate import Decision, RateSchedule
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.trainer import fit, weights_sha256
from chitchat.training.workfolder import TrainingFolder, TrainingPlan

MINUTE = 60.0


@pytest.fixture
def run(tiny_data, tmp_path):
    """`run(machine)` trains the same small model for a minute of that machine."""
    data = open_dataset(tiny_data)
    held_out = data.windows("validation", 32)

    def evaluate(model, max_tokens):
        return {"loss": score(torch_scorer(model), held_out, max_tokens).nll_per_token}

    def run(machine, name="work", minutes=1.0, resume=False, evaluate=evaluate, **options):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=data.vocab_size, n_layer=1, n_embd=16, n_head=2, n_positions=32)
        model, work = GPT2LMHeadModel(config), TrainingFolder(tmp_path / name)
        options = FitOptions(learning_rate=1e-3, batch_size=8, max_minutes=minutes, eval_tokens=300, **options)
        result = fit(
            model, data.windows("train", 32), Timed(NextToken(evaluate), machine), options, work.path, {},
            resume=resume, stopwatch=Stopwatch(machine.clock),
        )  # fmt: skip
        return result, work, model

    return run


MACHINES = {
    "steady": Machine,
    "8 times slower after planning": lambda: Machine(slower(8.0, 8.0)),
    "8 times slower in the middle": lambda: Machine(slower(30.0, 8.0)),
    "8 times slower in the decay": lambda: Machine(slower(50.0, 8.0)),
    "8 times faster after planning": lambda: Machine(lambda now: 4.0 if now < 20.0 else 0.5),
    "8 times faster in the decay": lambda: Machine(slower(50.0, 0.125)),
    "slow for a while": lambda: Machine(lambda now: 6.0 if 15.0 < now < 40.0 else 1.0),
    "in bursts": lambda: Machine(lambda now: 6.0 if now > 10.0 and now % 5.0 < 1.0 else 1.0),
    "slower and slower": lambda: Machine(lambda now: 1.0 + now / 6.0),
    "stopped in the middle": lambda: Machine(stalls=[(25.0, 25.0)]),
    "stopped while it warms up": lambda: Machine(stalls=[(8.0, 40.0)]),
    "stopped in the decay": lambda: Machine(stalls=[(46.0, 10.0)]),
    "stopped thrice": lambda: Machine(stalls=[(15.0, 8.0), (30.0, 8.0), (44.0, 8.0)]),
}


FAST = (
    *("8 times slower after planning", "8 times slower in the decay", "8 times faster after planning"),
    *("slow for a while", "slower and slower", "stopped in the decay"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in MACHINES]
)
def test_a_run_takes_its_minutes_whatever_the_machine_does(run, name):
    """Stops: 45 minutes for `--max-minutes 5.5`, a run that ends undecayed, a decayed end that nobody evaluates."""
    machine = MACHINES[name]()
    result, work, _ = run(machine)
    assert 0.9 * MINUTE <= machine.now <= 1.1 * MINUTE
    rates = [entry["learning_rate"] for entry in result.log if "loss" in entry]
    assert rates[-1] < 0.4 * 1e-3
    assert [entry["step"] for entry in result.log if "eval_loss" in entry][-1] == result.steps
    assert result.minutes == pytest.approx(machine.now / 60, rel=0.01)
    decisions = work.read_decisions()
    assert len(decisions) < 40
    assert not decisions or decisions[-1].end == result.steps


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("name", ["8 times slower in the middle", "8 times faster after planning"])
def test_minutes_are_kept_under_every_schedule(run, schedule, name):
    """Stops: a clock that waits for a decay that has long begun, or never does."""
    machine = MACHINES[name]()
    result, work, _ = run(machine, schedule=schedule)
    assert 0.9 * MINUTE <= machine.now <= 1.1 * MINUTE
    assert any(decision.cause == "clock" for decision in work.read_decisions())
    rates = [entry["learning_rate"] for entry in result.log if "loss" in entry]
    assert (rates[-1] == 1e-3) if schedule == "constant" else (rates[-1] < 0.4 * 1e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_spent_patience_ends_a_run_under_every_schedule(run, schedule):
    """Stops: patience without effect where the decay has begun with the first step."""
    machine = Machine()
    result, work, _ = run(machine, patience=1, minutes=3.0, evaluate=lambda *_: {"loss": 5.0}, schedule=schedule)
    assert result.stopped_early
    assert [each.cause for each in work.read_decisions()] == ["plan", "patience"]
    assert machine.now < 0.9 * 3 * MINUTE


def test_a_machine_that_stops_beyond_the_end_leaves_a_short_decay(run):
    """Stops: a run that ends where it was stopped, at its highest rate."""
    machine = Machine(stalls=[(25.0, 100.0)])
    result, _, _ = run(machine)
    assert machine.now < 125.0 + 0.1 * MINUTE
    rates = [entry["learning_rate"] for entry in result.log if "loss" in entry]
    assert rates[-1] < 0.4 * 1e-3


def test_spent_patience_never_makes_a_run_longer(run):
    """Stops: an early stop whose decay the clock then stretches to the last minute."""
    machine = Machine()
    result, work, _ = run(machine, patience=1, minutes=3.0, evaluate=lambda *_: {"loss": 5.0})
    assert result.stopped_early
    assert [each.cause for each in work.read_decisions()] == ["plan", "patience"]
    assert machine.now < 0.9 * 3 * MINUTE


def test_a_killed_and_resumed_run_by_minutes_takes_the_same_decisions(run, monkeypatch):
    """Stops: a decay that is planned anew after a kill, and minutes that begin anew."""
    _, whole, expected = run(Machine(slower(20.0, 2.0)), "whole", minutes=2.0)
    moved, every = whole.read_decisions()[-1], json.loads((whole.path / "plan.json").read_text())["eval_every"]
    assert moved.cause == "clock"
    saved = (moved.step // every + 1) * every
    assert saved + 2 < moved.end
    machine = Machine(slower(20.0, 2.0))
    real = Schedule.on_step_end

    def kill(self, args, state, control, **kwargs):
        if state.global_step == saved + 2:
            raise KeyboardInterrupt
        return real(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Schedule, "on_step_end", kill)
        with pytest.raises(KeyboardInterrupt):
            run(machine, "killed", minutes=2.0)
    machine.now += 1.0  # the second start
    result, work, model = run(machine, "killed", minutes=2.0, resume=True)
    assert work.read_decisions() == whole.read_decisions()
    assert result.steps == moved.end
    assert weights_sha256(model) == weights_sha256(expected)
    assert machine.now <= 1.1 * 2 * MINUTE


def test_a_killed_run_has_the_minutes_that_are_left(run, monkeypatch):
    """Stops: a run that is killed in its middle and then has all its minutes again."""
    machine, real = Machine(), Schedule.on_step_end

    def kill(self, args, state, control, **kwargs):
        if machine.now > 35.0:
            raise KeyboardInterrupt
        return real(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Schedule, "on_step_end", kill)
        with pytest.raises(KeyboardInterrupt):
            run(machine)
    run(machine, resume=True)
    assert machine.now <= 1.1 * MINUTE


def test_what_was_decided_before_a_kill_is_not_decided_again():
    """Stops: a resumed run that moves the end at steps where the run before it had not yet."""
    plan = TrainingPlan(100, 1, 1, 10, 100, 1.0, {}, ends=100.0)
    now = iter([0, *range(0, 10_000, 50)])
    schedule = RateSchedule([Decision(0, 100, "plan"), Decision(20, 25, "clock")], 0.0)
    pacer = Pacer(plan, schedule, lambda _: 100, Stopwatch(lambda: float(next(now))))
    assert [pacer.stepped(step) for step in (18, 19, 20)] == [None] * 3
    assert pacer.stepped(21) == Decision(21, 21, "clock")


def test_one_slow_step_at_the_beginning_moves_nothing():
    """Stops: a warm-up that is cut short since the first step of a process is the slowest."""
    plan = TrainingPlan(1000, 1, 10, 100, 100, 0.1, {}, ends=100.0, closing_seconds=1.0)
    now = iter([0.0, 0.0, 0.0, 5.0, 5.0, 9.0, 9.0, 9.1, 9.1])
    pacer = Pacer(plan, RateSchedule([Decision(0, 1000, "plan")], 0.0), lambda _: 100, Stopwatch(lambda: next(now)))
    pacer.begin()
    assert [pacer.stepped(step) for step in (1, 2, 3)] == [None] * 3


RUN = """
import json, sys, time
from pathlib import Path
import torch
from chitchat.training.distributed import Distributed
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.options import TrainOptions
from chitchat.training.train import train
torch.set_num_threads(1)
first = Distributed().is_main
# The clock of the second process runs away: it must not be asked.
stopwatch = Stopwatch(time.monotonic if first else lambda: 1000 * time.monotonic())
options = TrainOptions(layers=1, width=16, heads=2, context=32, max_minutes=0.1)
figures = train(Path(sys.argv[1]), Path(sys.argv[2]), options, stopwatch=stopwatch)
Path(sys.argv[3], "first" if first else "second").write_text(json.dumps(figures["steps"]))
"""


@pytest.mark.slow
def test_all_processes_end_at_the_step_that_the_first_decides(tiny_data, tmp_path):
    """Stops: processes that each look at their own clock, and wait for each other for ever."""
    script = tmp_path / "run.py"
    script.write_text(RUN, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [str(tiny_data), str(tmp_path / "out"), str(tmp_path)]
    subprocess.run([*command, *arguments], env=environment, check=True, timeout=120)
    assert json.loads((tmp_path / "first").read_text()) == json.loads((tmp_path / "second").read_text()) > 0
