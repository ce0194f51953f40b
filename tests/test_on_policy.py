"""The rounds on the student's own replies: what they read, at which rate, for how long."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.healing import model
from support.masked_windows import MaskedWindows

from chitchat.data.dataset import open_dataset
from compress.distill import on_policy
from compress.distill.budget import share_budget
from compress.distill.heal import heal
from compress.distill.objective import SKEW, Distillation
from compress.distill.options import HealOptions
from compress.distill.run import BIG_CUT, BIG_CUT_RATE, SMALL_CUT, SMALL_CUT_RATE, HealRun, default_rate


def test_a_round_reads_replies_and_as_many_windows_as_before_at_a_low_rate(tiny_data, tmp_path, monkeypatch):
    """Stops: rounds on replies alone, on windows that no one read, at the rate of the first part, without the skew."""
    seen, real = [], HealRun.fit

    def spy(run, windows, objective, options, part, ends, key=None):
        seen.append((windows, objective, options, part, ends))
        return real(run, windows, objective, options, part, ends, key)

    monkeypatch.setattr(HealRun, "fit", spy)
    data, student, teacher = open_dataset(tiny_data), model(seed=1), model(layers=3)
    options = HealOptions(heal_steps=150, own_replies=0.8, batch_size=4, heal_labels=0.2, seed=7)
    peak = default_rate(student, teacher)
    result = heal(student, teacher, data, tmp_path / "work", options)
    corpus = data.windows("train", 32)
    budget = share_budget(150, int(corpus.lengths.sum()), len(corpus), options)
    (joined, first, main, part, _), *rounds = seen
    assert part == "main"
    assert (main.steps, main.learning_rate) == (150 - budget.rounds * budget.round_steps, pytest.approx(peak))
    assert isinstance(first, Distillation)
    assert (first.skew, first.heal_labels, first.hidden) == (0.0, 0.2, True)
    assert 1 <= len(rounds) <= budget.rounds
    assert result.own_steps == len(rounds) * budget.round_steps
    for number, (windows, objective, chosen, part, ends) in enumerate(rounds, 1):
        replies, read_before = windows.datasets
        read = budget.round_steps * options.batch_size
        assert (part, ends, chosen.steps) == (f"round-{number}", None, budget.round_steps)
        assert len(replies) == read // 2
        assert len(read_before) == min(read - read // 2, len(joined))
        assert len(set(read_before.indices)) == len(read_before)
        assert objective.skew == SKEW
        assert chosen.learning_rate == pytest.approx(0.2 * peak)
        labels = [
            sum(label != -100 for label in read_before[i]["labels"][1:]) for i in range(min(256, len(read_before)))
        ]
        assert chosen.labels_per_step == pytest.approx(4 * sum(labels) / len(labels))
    if len(rounds) > 1:
        assert rounds[0][0].datasets[0].ids != rounds[1][0].datasets[0].ids
        assert list(rounds[0][0].datasets[1].indices) != list(rounds[1][0].datasets[1].indices)


@given(st.integers(1, 300), st.integers(0, 5))
def test_mean_labels_are_those_of_the_first_windows(count: int, seed: int) -> None:
    """Stops: labels that nothing predicts, or a division by the number of all windows."""
    windows = MaskedWindows(count, seed)
    labels = [sum(label != -100 for label in row["labels"][1:]) for row in windows.rows[:256]]
    assert on_policy._mean_labels(windows) == pytest.approx(max(1.0, np.mean(labels)))


class Sized:
    """A model as the default rate sees it."""

    def __init__(self, parameters: float, width: int = 400) -> None:
        self.config = type("Config", (), {"hidden_size": width})
        self.num_parameters = lambda: parameters


@given(st.floats(0.0, 0.99))
def test_the_rate_grows_evenly_with_what_was_cut(removed: float) -> None:
    """Stops: a small cut that is healed at the rate of a large one, which first makes it worse."""
    rate = default_rate(Sized(1e6 * (1 - removed)), Sized(1e6)) / 1e-3  # 0.4 / 400 from scratch
    if removed <= SMALL_CUT:
        assert rate == pytest.approx(SMALL_CUT_RATE)
    elif removed >= BIG_CUT:
        assert rate == pytest.approx(BIG_CUT_RATE)
    else:
        share = (removed - SMALL_CUT) / (BIG_CUT - SMALL_CUT)
        logs = (1 - share) * math.log(SMALL_CUT_RATE) + share * math.log(BIG_CUT_RATE)
        assert math.log(rate) == pytest.approx(logs)
