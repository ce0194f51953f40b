"""The learning rate as a function of the decisions."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chitchat.training.rate import DECAY_SHARE, Decision, RateSchedule, patient_end, warmup_steps

KINDS = ("wsd", "linear", "cosine", "constant")


def rates(*decisions: tuple[int, int], warmup: float = 0.05, kind: str = "wsd") -> list[float]:
    """The shares of the peak, step by step to the end."""
    made = [Decision(step, end, "plan" if number == 0 else "clock") for number, (step, end) in enumerate(decisions)]
    schedule = RateSchedule(made, warmup, kind)
    return [schedule.factor(step) for step in range(made[-1].end)]


def test_a_planned_run_warms_up_stays_and_decays():
    """Stops: a peak that is never reached, a decay that begins with a leap, an end that is not decayed."""
    found = rates((0, 1000))
    begin = 1000 - round(DECAY_SHARE * 1000)
    assert found[:2] == [0.0, 0.01]
    assert found[100:begin] == [1.0] * (begin - 100)
    assert found[:101] == sorted(found[:101])
    assert found[begin - 1 :] == sorted(found[begin - 1 :], reverse=True)
    assert 0 < found[-1] < 0.01


def test_the_other_schedules_are_those_of_transformers_but_for_a_last_step_above_0():
    """Stops: a schedule that goes by a name of the field and is another one."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for kind, name in (("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")):
        factor = get_scheduler(name, optimizer, num_warmup_steps=100, num_training_steps=1001).lr_lambdas[0]
        assert rates((0, 1000), kind=kind) == pytest.approx([factor(step) for step in range(1000)], abs=2e-3), kind


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("moves", [[(500, 600)], [(300, 2000)], [(700, 900), (880, 1200)]])
def test_a_moved_end_bends_the_other_decays_too(kind, moves):
    """Stops: a rate that leaps when a run by minutes is shorter or longer than planned."""
    found = rates((0, 1000), *moves, kind=kind)
    assert found[100:] == sorted(found[100:], reverse=True)
    assert 0 < found[-1] < 0.02
    assert max(abs(after - before) for before, after in itertools.pairwise(found)) < 0.05


def test_spent_patience_begins_the_end_once_whatever_the_schedule():
    """Stops: patience without effect under a schedule that decays all the time, or one that cuts the run twice."""
    for kind, end in (("wsd", patient_end(200)), ("linear", patient_end(200)), ("constant", 201)):
        schedule = RateSchedule([Decision(0, 1000, "plan")], 0.05, kind)
        assert schedule.patient_end(200) == end
        schedule.decisions.append(Decision(200, end, "patience"))
        assert schedule.patient_end(200) is None
    decaying = RateSchedule([Decision(0, 1000, "plan")], 0.05)
    assert decaying.patient_end(800) is None


@pytest.mark.parametrize("moves", [[(500, 600)], [(800, 830)], [(800, 2000)], [(40, 200)], [(700, 900), (880, 1200)]])
def test_a_moved_end_bends_the_rate_and_never_makes_it_jump_up(moves):
    """Stops: a rate that leaps when the machine gets slower or faster, and an end that is not decayed."""
    found = rates((0, 1000), *moves)
    assert len(found) == moves[-1][1]
    assert 0 < found[-1] < 0.2
    peak = found.index(max(found))
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert max(after - before for before, after in itertools.pairwise(found)) < 0.1


def test_the_rate_of_a_step_depends_on_earlier_decisions_alone():
    """Stops: a resumed run that knows of a decision before it was taken, and takes other steps than it did."""
    before, after = rates((0, 1000)), rates((0, 1000), (700, 800), (790, 900))
    assert before[:700] == after[:700]
    assert rates((0, 1000), (700, 800))[:790] == after[:790]


def test_a_decay_that_patience_begins_has_the_usual_share():
    """Stops: a decay of a planned length after a short run, longer than the run itself."""
    for step in (1, 10, 137, 650):
        end = patient_end(step)
        found = rates((0, 10_000), (step, end), warmup=0.0)
        assert found[step - 1] == 1.0
        assert found[min(step + 1, end - 1)] < 1.0
        assert (end - step) / end == pytest.approx(DECAY_SHARE, abs=0.5 / end + 1e-9) or end == step + 1


def test_a_short_run_warms_up_long_enough():
    """Stops: a few steps of warm-up, after which a model from scratch never leaves the frequencies of words."""
    assert [warmup_steps(*case) for case in ((0.05, 132), (0.05, 800), (0.05, 10_000), (0.0, 50))] == [33, 100, 500, 0]


@st.composite
def histories(draw):
    """Decisions as a run takes them: each after a step before the end as it stood, to another end."""
    made = [Decision(0, draw(st.integers(1, 400)), "plan")]
    for _ in range(draw(st.integers(0, 4))):
        last = made[-1]
        if last.end <= last.step + 1:
            break
        step = draw(st.integers(last.step + 1, last.end - 1))
        made.append(Decision(step, draw(st.integers(step, step + 400)), "clock"))
    return made


@given(histories(), st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from(KINDS))
def test_whatever_is_decided_the_rate_stays_within_its_peak_and_falls_once_it_decays(made, warmup, kind):
    """Stops: a rate below 0 or above the peak, a step of the run without one, a decay that ends before its time."""
    schedule = RateSchedule(made, warmup, kind)
    factors = [schedule.factor(step) for step in range(made[-1].end)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert all(factor > 0 for factor in factors[1:])
    decays = [schedule.decays(step) for step in range(made[-1].end)]
    assert decays == sorted(decays)
    for number in range(1, len(made)):
        earlier = RateSchedule(made[:number], warmup, kind)
        assert [earlier.factor(step) for step in range(made[number].step)] == factors[: made[number].step]
        assert earlier.end(made[number].step - 1) == schedule.end(made[number].step - 1) == made[number - 1].end
