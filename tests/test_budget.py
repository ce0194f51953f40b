"""What a healing spends its budget on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.distill.budget import MAX_ROUNDS, MAX_SAMPLED, PASSES, STEPS_PER_ROUND, Budget, share_budget
from compress.distill.options import HealOptions


def shared(steps, **options):
    """The budget over a training split of 1,000 windows and 100,000 ids, 8 windows a step."""
    return share_budget(steps, 100_000, 1000, HealOptions(heal_steps=steps, batch_size=8, **options))


@pytest.mark.parametrize(
    ("steps", "teacher_tokens"),
    [
        (400, 0),  # 3.2 passes
        (500, 0),  # 4
        (1000, 100_000),  # 8: as much again
        (1500, 200_000),  # 12
        (100_000, 300_000),  # never more than three times the split
    ],
)
def test_the_teacher_writes_when_the_corpus_would_be_read_more_than_four_times(steps, teacher_tokens):
    """Stops: hours over a small corpus that is learnt by heart, and minutes of writing that nobody needs."""
    assert shared(steps, own_replies=0.0).teacher_tokens == teacher_tokens
    assert shared(steps, own_replies=0.0, teacher_samples=False).teacher_tokens == 0


def test_a_teacher_that_is_told_to_write_writes_no_more_than_is_read():
    """Stops: a corpus of millions written anew for a run of a few hundred steps."""
    assert shared(10, own_replies=0.0, teacher_samples=True).teacher_tokens == 4_000  # half of what 80 windows hold
    assert shared(400, own_replies=0.0, teacher_samples=True).teacher_tokens == 100_000
    assert shared(1500, own_replies=0.0, teacher_samples=True).teacher_tokens == 200_000


def test_the_share_of_own_replies_is_cut_into_rounds():
    """Stops: rounds that add up to more than the share, a round too short to learn in, replies that grow stale."""
    assert shared(390, own_replies=0.15) == Budget(0, 0.0, 0, 0)
    assert shared(410, own_replies=0.15) == Budget(0, 0.15, 1, 61)
    assert shared(400, own_replies=0.5) == Budget(0, 0.5, 3, 66)
    assert shared(400, own_replies=0.0) == Budget(0, 0.0, 0, 0)


def test_the_control_reads_the_corpus_alone():
    """Stops: cross-entropy that is compared with the help of the teacher's text."""
    assert shared(100_000, heal_loss="ce", teacher_samples=True, own_replies=0.5) == Budget(0, 0.0, 0, 0)


@given(
    steps=st.integers(0, 10**5), tokens=st.integers(1, 10**6), windows=st.integers(1, 10**4), batch=st.integers(1, 16),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.95]), samples=st.sampled_from(["auto", True, False]),
)  # fmt: skip
def test_no_part_takes_more_than_its_share(steps, tokens, windows, batch, share, samples):
    """Stops: rounds beyond their share, a teacher that writes what nobody reads, rounds of a few steps."""
    options = HealOptions(heal_steps=max(1, steps), batch_size=batch, own_replies=share, teacher_samples=samples)
    budget = share_budget(steps, tokens, windows, options)
    own = budget.rounds * budget.round_steps
    assert own <= share * steps
    assert (budget.rounds == 0) == (share * steps < STEPS_PER_ROUND) == (budget.own_share == 0)
    assert budget.rounds == 0 or (budget.round_steps >= STEPS_PER_ROUND and budget.rounds <= MAX_ROUNDS)
    assert 0 <= budget.teacher_tokens <= MAX_SAMPLED * tokens
    if samples is False:
        assert budget.teacher_tokens == 0
    passes = (steps - own) * batch * tokens / windows / (tokens + budget.teacher_tokens)  # of all that there is to read
    if samples == "auto" and 0 < budget.teacher_tokens < MAX_SAMPLED * tokens:
        assert passes == pytest.approx(PASSES, rel=0.05, abs=0.1)
