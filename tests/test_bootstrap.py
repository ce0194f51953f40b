"""Intervals over conversations: they hold the truth as often as they say, and counts of different things are not
drawn twice."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.evaluate import bootstrap
from bench.evaluate.bootstrap import jackknife_interval, ratio_interval, resampled
from bench.evaluate.reply_stats import ReplyStats, TextReply


def test_an_interval_of_95_percent_holds_the_true_figure_about_so_often() -> None:
    """Tokens were drawn in place of conversations: the interval was three times too narrow."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        tokens = random.integers(5, 60, size=80)
        mood = random.normal(3.0, 0.5, size=80)  # a conversation is easy or hard as a whole
        low, high = ratio_interval(tokens * mood, tokens) or (0, 0)
        held += low <= 3.0 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_all_figures_of_one_number_of_conversations_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models were resampled apart, and the interval of their ratio was as wide as that of either."""
    columns = np.random.default_rng(1).random((2, 50))
    whole = resampled(columns)
    assert whole.shape == (2, bootstrap.DRAWS)
    assert np.array_equal(resampled(columns[1:])[0], whole[1])
    monkeypatch.setattr(bootstrap, "_MAX_DRAWN", 333)
    assert np.array_equal(resampled(columns), whole), "how many are drawn at once changes nothing"


def replies_of(random: np.random.Generator, conversations: int) -> ReplyStats:
    """Replies of twelve words whose frequencies fall as words' do."""
    words = np.minimum(random.zipf(1.4, size=(conversations, 12)), 5_000)
    return ReplyStats([TextReply(place, " ".join(map(str, row)), 12, True) for place, row in enumerate(words)])


def test_the_interval_of_distinct_is_as_wide_as_distinct_varies() -> None:
    """A bootstrap holds conversations twice: its distinct-2 lay 30 % below the figure and varied twice as much."""
    random = np.random.default_rng(2)
    drawn = [replies_of(random, 100).distinct(2) for _ in range(60)]
    true = np.std([np.log(found.figure) for found in drawn])
    said = np.mean([np.log(found.interval[1] / found.interval[0]) / (2 * 1.96) for found in drawn[:20]])
    assert said == pytest.approx(true, rel=0.3)
    assert all(found.interval[0] < found.figure < found.interval[1] for found in drawn[:20])


def test_where_nothing_can_be_said_there_is_no_interval() -> None:
    """One conversation has no spread, and a division by zero gave NaN, which is no JSON."""
    assert ratio_interval([3.0], [2]) is None
    assert ratio_interval([0, 0], [0, 0]) is None
    assert jackknife_interval(0.5, [0.4]) is None
    assert jackknife_interval(0.5, [0.4, np.nan]) is None
    assert jackknife_interval(0.0, [0.0, 0.0]) is None


@given(
    columns=st.integers(2, 40).flatmap(
        lambda count: arrays(np.float64, (2, count), elements=st.floats(0.5, 100, allow_nan=False))
    )
)
def test_a_ratio_is_resampled_conversation_by_conversation(columns: np.ndarray) -> None:
    """Stops numerator and denominator of different draws: here each draw is summed in a loop."""
    above, below = columns
    chosen = np.random.default_rng(0).integers(0, above.size, size=(bootstrap.DRAWS, above.size))
    ratios = sorted(sum(above[row]) / sum(below[row]) for row in chosen)
    low, high = ratio_interval(above, below) or (np.nan, np.nan)
    for value, share in ((low, 0.025), (high, 0.975)):
        place = share * (bootstrap.DRAWS - 1)
        before, after = ratios[int(place)], ratios[int(place) + 1]
        assert value == pytest.approx(before + (place % 1) * (after - before), rel=1e-12)
    assert low <= high


@given(values=st.lists(st.floats(0.01, 10), min_size=2, max_size=30), figure=st.floats(0.01, 10))
def test_the_jackknife_is_tukeys(values: list[float], figure: float) -> None:
    """The spread was that of a mean of independent values, which is n - 1 times too small."""
    count = len(values)
    logs = [math.log(value) for value in values]
    mean = math.fsum(logs) / count
    error = math.sqrt((count - 1) / count * math.fsum((log - mean) ** 2 for log in logs))
    low, high = jackknife_interval(figure, values) or (math.nan, math.nan)
    assert math.log(high / figure) == pytest.approx(1.959964 * error, rel=1e-9, abs=1e-12)
    assert low * high == pytest.approx(figure**2, rel=1e-9), "symmetric in the logarithm"
