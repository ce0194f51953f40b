"""What raw samples say: percentiles, ratios by round, intervals, and the mark of a busy machine."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.run.timing import ceiling_share, is_busy, latency_figures, ratio_interval, round_ratios, speed_ratio, spread


def sample(ttft: float, steps: list[float]) -> dict:
    return {"ttft_ms": ttft, "token_ms": steps, "ids": list(range(1 + len(steps)))}


def run(times: list[float]) -> list[dict]:
    return [sample(time / 2, [time / 4, time / 4]) for time in times]


def test_figures_are_medians_and_tails_of_the_raw_samples() -> None:
    """A mean hid a pause; tokens/s left the prompt out and flattered long prompts."""
    figures = latency_figures([sample(10, [1, 1, 1]), sample(20, [2, 2, 2]), sample(90, [3, 3, 30])])
    assert figures["ttft_ms_p50"] == 20
    assert figures["tpot_ms_p50"] == 2
    assert figures["tpot_ms_p95"] == pytest.approx(3 + 0.6 * 27)  # 9 steps: place 7.6 between 3 and 30
    assert figures["tpot_ms_p99"] == pytest.approx(3 + 0.92 * 27)
    assert figures["tokens_per_s"] == pytest.approx(4 / 26 * 1000), "new tokens over prompt and decode time"


def test_the_ratio_is_taken_within_each_round() -> None:
    """The ratio of two medians compared a quiet round of one with a busy round of the other."""
    base, other = run([100, 1000, 110]), run([50, 500, 11])
    assert round_ratios(base, other).tolist() == [2, 2, 10]
    assert speed_ratio(base, other) == 2


def test_an_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    """Stops an interval of one run's noise that is told as certainty: 95 % of 200 runs, drawn with a known ratio."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        days = random.lognormal(0, 0.5, 15)  # falls on both rows of a round alike
        base = run((100 * days * random.lognormal(0, 0.05, 15)).tolist())
        other = run((50 * days * random.lognormal(0, 0.05, 15)).tolist())
        interval = ratio_interval(base, other)
        assert interval is not None
        held += interval[0] <= 2 <= interval[1]
    assert 0.89 <= held / 200 <= 0.99


def test_one_round_has_no_interval() -> None:
    """Stops an interval of no width, which looks like certainty."""
    assert ratio_interval(run([100]), run([50])) is None


@pytest.mark.parametrize(
    ("times", "busy"),
    [
        ([100, 101, 99, 102, 100, 98, 101, 100], False),
        ([100, 101, 99, 250, 100, 98, 101, 100], False),  # one pause is not a busy machine
        ([100, 101, 99, 102, 130, 128, 131, 129], True),  # the second half is slower
        ([100, 140, 99, 150, 100, 135, 101, 160], True),  # every other one
        ([100, 300, 100], False),  # too few to tell
    ],
)
def test_a_busy_machine_shows(times: list[float], busy: bool) -> None:
    """Stops a table that was taken beside other work and does not say so."""
    assert is_busy(run(times)) is busy


def test_spread_is_the_middle_half_over_the_median() -> None:
    """Stops a spread that one outlier decides."""
    assert spread(run([90, 95, 100, 105, 1000])) == pytest.approx(0.1)


TIMES = st.floats(0.1, 1e4)
SAMPLES = st.lists(st.tuples(TIMES, st.lists(TIMES, min_size=1, max_size=6)), min_size=2, max_size=12)


@given(drawn=SAMPLES)
def test_figures_are_those_of_a_plain_count(drawn: list[tuple[float, list[float]]]) -> None:
    """Stops a percentile over the wrong axis, and a rate of further tokens only."""
    samples = [{**sample(first, steps), "cpu_s": first / 1e3} for first, steps in drawn]
    figures = latency_figures(samples)
    steps = sorted(step for _, times in drawn for step in times)
    assert figures["ttft_ms_p50"] == pytest.approx(statistics.median(first for first, _ in drawn))
    assert figures["tpot_ms_p50"] == pytest.approx(statistics.median(steps))
    assert figures["tpot_ms_p95"] == pytest.approx(quantile(steps, 0.95))
    assert figures["tpot_ms_p99"] == pytest.approx(quantile(steps, 0.99))
    rates = [1000 * (1 + len(times)) / (first + sum(times)) for first, times in drawn]
    assert figures["tokens_per_s"] == pytest.approx(statistics.median(rates))
    tokens = sum(1 + len(times) for _, times in drawn)
    assert figures["cpu_s_per_token"] == pytest.approx(sum(first for first, _ in drawn) / 1e3 / tokens)


def quantile(values: list[float], share: float) -> float:
    """Of sorted values, with linear interpolation (Hyndman and Fan's type 7)."""
    place = share * (len(values) - 1)
    below, above = values[int(place)], values[min(int(place) + 1, len(values) - 1)]
    return below + (place - int(place)) * (above - below)


@given(pairs=st.lists(st.tuples(TIMES, TIMES), min_size=2, max_size=15), factor=st.floats(0.5, 4))
def test_a_ratio_and_its_interval_scale_with_the_times(pairs: list[tuple[float, float]], factor: float) -> None:
    """Stops a ratio that is upside down, or taken of medians."""
    base, other = run([time for time, _ in pairs]), run([time for _, time in pairs])
    ratio = speed_ratio(base, other)
    assert ratio == pytest.approx(statistics.median(before / after for before, after in pairs))
    low, high = ratio_interval(base, other) or (np.nan, np.nan)
    assert low <= high
    assert min(before / after for before, after in pairs) <= low * (1 + 1e-9)
    slower = run([time * factor for _, time in pairs])
    assert speed_ratio(base, slower) == pytest.approx(ratio / factor)
    assert ratio_interval(base, slower) == pytest.approx([low / factor, high / factor])


def test_the_ceiling_is_the_time_of_reading_all_weights_once_a_token() -> None:
    """Stops gigabytes for bytes, seconds for milliseconds, and the bandwidth of another round."""
    samples = [sample(5, [2.0, 4.0, 4.0]), sample(5, [8.0]), sample(5, [])]
    # 20 MB at 10 GB/s take 2 ms of 4; at 5 GB/s 4 ms of 8.
    assert ceiling_share(samples, 20_000_000, [10.0, 5.0, 1.0]) == pytest.approx(0.5)
    assert ceiling_share(samples, 20_000_000, []) is None
