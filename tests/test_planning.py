"""How many steps, evaluations and saves: on a machine whose clock the work itself moves."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.masked_windows import VOCAB, MaskedWindows
from support.timed_machine import Machine, Timed
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.errors import BadInput
from chitchat.training import planning
from chitchat.training.distributed import Distributed
from chitchat.training.objective import LossModel, NextToken
from chitchat.training.options import FitOptions
from chitchat.training.pacer import AIM
from chitchat.training.planning import EVALUATION_SHARE, EVALUATION_TOKENS, EVALUATIONS, make_plan, step_seconds
from chitchat.training.run import FitRun
from chitchat.training.stopwatch import Stopwatch

ID_SECONDS, EVALUATION_SECONDS = 1 / 500, 1 / 3 / 500  # of a padded id in a step, of a token in an evaluation


def fit_run(machine: Machine, ends: float | None = None, closing: float = 0.0, **options) -> FitRun:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_layer=1, n_embd=8, n_head=2, n_positions=16)
    objective = Timed(NextToken(lambda model, tokens: {"loss": 1.0}), machine)
    chosen = FitOptions(learning_rate=1e-3, batch_size=8, **options)
    return FitRun(
        GPT2LMHeadModel(config), MaskedWindows(100), objective, chosen, Distributed(), Stopwatch(machine.clock), ends,
        closing,
    )  # fmt: skip


def plan_of(machine: Machine, step: float = 0.1, begins: float = 0.0, **run):
    made = fit_run(machine, **run)
    return make_plan(made, LossModel.wrap(made.model, made.objective), step, begins)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_steps_seconds_are_those_of_its_mean_padded_ids(accumulation: int) -> None:
    """Stops: a time per window, the padding of other micro-batches, steps that only warm up in the mean."""
    run = fit_run(Machine(), steps=10, grad_accumulation=accumulation)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    ids = []
    for step in range(64):
        windows = [run.windows.lengths[number] for number in run.batches[step]]
        ids.append(sum(max(windows[part::accumulation]) * (8 // accumulation) for part in range(accumulation)))
    assert step_seconds(run) == pytest.approx(sum(ids) / 64 * ID_SECONDS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items()), "it was trained"


@pytest.mark.parametrize(
    ("machine", "slowness"),
    [
        (Machine(stalls=[(0.05, 50.0)]), 1.0),  # in the first step, which does not count
        (Machine(lambda now: 3.0), 3.0),
    ],
)
def test_the_first_steps_of_a_process_do_not_count(machine: Machine, slowness: float) -> None:
    """Stops: a plan of a third of the steps since torch compiled its kernels in the first one."""
    run, steady = fit_run(machine, steps=10), fit_run(Machine(), steps=10)
    assert step_seconds(run) == pytest.approx(slowness * step_seconds(steady))


def test_a_slow_machine_is_timed_for_a_share_of_its_minutes() -> None:
    """Stops: a minute's run that is spent on being timed."""
    machine = Machine(lambda now: 10.0)
    step_seconds(fit_run(machine, max_minutes=1.0))
    assert machine.now < 6 * 10 * 8 * 15 * ID_SECONDS  # five steps, and no sixth one begins after 1.8 s


@pytest.mark.parametrize("given", [{"max_minutes": 1.0}, {"max_minutes": 5.0, "ends": 60.0}])
def test_steps_that_take_most_of_the_minutes_are_not_timed_five_times(given: dict[str, float]) -> None:
    """Stops: half a minute on a busy machine that was over before the first step that counts."""
    machine = Machine(lambda now: 100.0)
    seconds = step_seconds(fit_run(machine, **given))
    longest = 100 * 8 * 15 * ID_SECONDS
    assert machine.now < 2 * longest
    assert 0.5 * longest < seconds < longest


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    """Stops: micro-batches of different sizes, of which the Trainer takes the first as the measure."""
    with pytest.raises(BadInput, match=r"--batch-size 8: .* 1 processes times 3 accumulation steps; .* multiple of 3"):
        fit_run(Machine(), steps=1, grad_accumulation=3)


@pytest.mark.parametrize(
    ("budget", "steps"), [({"steps": 1}, 1), ({"steps": 777}, 777), ({"epochs": 0.01}, 1), ({"epochs": 2.5}, 32)]
)
def test_epochs_and_steps_do_not_ask_the_clock(budget: dict, steps: int) -> None:
    """Stops: two machines that train the same command for another number of steps, or evaluate at others."""
    plans = [plan_of(Machine(lambda now, pace=pace: pace), **budget) for pace in (1.0, 50.0)]
    assert [plan.total_steps for plan in plans] == [steps, steps]
    assert plans[0].eval_every == plans[1].eval_every
    assert plans[0].eval_tokens == plans[1].eval_tokens == EVALUATION_TOKENS[1]
    assert plans[0].before == {"loss": 1.0}
    assert plans[0].ends is None


@pytest.mark.parametrize("minutes", [1.0, 10.0, 300.0])
@pytest.mark.parametrize("eval_tokens", [None, 2_000])
def test_minutes_hold_steps_evaluations_and_what_comes_after(minutes: float, eval_tokens: int | None) -> None:
    """Stops: a run planned beyond its minutes, evaluations that take most of them."""
    machine = Machine()
    machine.now = begins = 100.0
    ends, closing = begins + 60 * minutes, 5.0
    made = fit_run(machine, ends=ends, closing=closing, max_minutes=minutes, eval_tokens=eval_tokens)
    made.stopwatch._begun = 0.0
    plan = make_plan(made, LossModel.wrap(made.model, made.objective), 0.05, begins)
    count = math.ceil(plan.total_steps / plan.eval_every)
    evaluation = plan.eval_tokens * EVALUATION_SECONDS
    assert plan.evaluation_seconds == pytest.approx(evaluation)
    assert EVALUATIONS[0] <= count <= EVALUATIONS[1] or eval_tokens is not None
    used = 100.0 + plan.total_steps * 0.05 + count * (evaluation + plan.save_seconds) + closing
    assert used <= begins + AIM * 60 * minutes
    assert used >= begins + 0.85 * AIM * 60 * minutes or minutes == 1.0
    if minutes == 300.0:
        assert (count + 1) * evaluation <= 1.01 * EVALUATION_SHARE * 60 * minutes


@given(total=st.integers(1, 10**6), evaluations=st.integers(1, 40), step=st.floats(1e-3, 60), save=st.floats(0.0, 30))
def test_intervals_are_multiples_and_reach_the_end(total: int, evaluations: int, step: float, save: float) -> None:
    """Stops: an evaluation without a checkpoint of its model, a run without one, saves that take the time."""
    log_every, save_every, eval_every = planning._intervals(total, evaluations, step, save)
    assert 1 <= log_every <= save_every <= eval_every
    assert eval_every % save_every == save_every % log_every == 0
    assert eval_every * evaluations >= total
    assert math.ceil(total / eval_every) <= evaluations
    assert save_every == eval_every or save_every * step >= 0.999 * max(planning.SECONDS_BETWEEN_SAVES, 20 * save)
