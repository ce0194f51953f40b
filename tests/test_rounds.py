"""The controller of the bench: turns, warm-up, figures, and workers that go wrong. Fake workers have known times."""

import sys
from pathlib import Path

import pytest

from bench.models.engine import BUNDLE
from bench.run.controller import BenchEntry, BenchPlan
from bench.run.rounds import measure
from bench.run.timing import latency_figures, speed_ratio

COMPARED = [("fast", False), ("slow", True), ("fast", False)]
FAKE = Path(__file__).parent / "support" / "fake_worker.py"


def sample(ttft: float, steps: list[float]) -> dict:
    return {"ttft_ms": ttft, "token_ms": steps, "ids": [0] * (len(steps) + 1)}


def measured(folder: Path, specs: list[str], **options):
    entries = [BenchEntry(spec, spec, BUNDLE, 2) for spec in specs]
    plan = BenchPlan(**{"warmups": [[5]], "prompts": [[6], [7]], "new_tokens": 4, "threads": 1, **options})
    return measure(entries, plan, command=[sys.executable, str(FAKE), str(folder / "log")]).rows


def test_models_take_turns_after_a_warm_up_and_memory_is_read_before_scoring(tmp_path: Path) -> None:
    """All rounds of A before all of B: a slow minute of the machine became a speed-up of B."""
    results = measured(tmp_path, ["fast", "slow"], data=tmp_path, task={"context": 8})
    rounds = ["fast sample", "slow sample"]
    assert (tmp_path / "log").read_text().splitlines() == [
        *("fast load", "fast sample", "slow load", "slow sample"),  # until the first token
        *(rounds * 3),
        *("fast memory", "slow memory"),
        *("fast quality", "slow quality"),
    ]
    for result in results:
        assert [entry["ids"][0] for entry in result.samples] == [6, 7], "the warm-up is no sample, prompts are shared"
        assert (result.load_s, result.peak_rss_mb, result.quality) == (
            *(0.5, 42.0),
            {"bits_per_byte": 2.5, "teacher": None},
        )
    figures = [latency_figures(result.samples) for result in results]
    assert figures[0]["tpot_ms_p50"] >= 2
    assert figures[1]["tpot_ms_p50"] >= 6, "a sleep of 6 ms cannot be measured as less"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("crash", "exit code 3; last words: loading / no kernel for GroupQueryAttention"),
        ("hang", "no answer to sample in 3 s"),
        ("refuse", "token id 7: the vocabulary has 0 to 5"),
        ("babble", "which is not JSON"),
    ],
)
def test_a_worker_that_goes_wrong_loses_its_row_only(tmp_path: Path, spec: str, says: str) -> None:
    """One model that ran out of memory ended the whole run, and nobody learned why."""
    lost, kept = measured(tmp_path, [spec, "fast"], timeout_s=3.0)
    assert lost.error is not None
    assert says in lost.error
    assert "\n" not in lost.error
    assert kept.error is None
    assert len(kept.samples) == 2


def test_a_worker_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    """A missing module was told as 'no answer'."""
    plan = BenchPlan(warmups=[], prompts=[[1]], new_tokens=2, threads=1)
    (result,) = measure([BenchEntry("x", "x", BUNDLE, 2)], plan, [sys.executable, "-c", "import not_there"]).rows
    assert result.error is not None
    assert "No module named 'not_there'" in result.error


def test_figures_are_medians_and_tails_of_the_raw_samples() -> None:
    """A mean hid a pause; tokens/s left the prompt out and flattered long prompts."""
    samples = [sample(10, [1, 1, 1]), sample(20, [2, 2, 2]), sample(90, [3, 3, 30])]
    figures = latency_figures(samples)
    assert figures["ttft_ms_p50"] == 20
    assert figures["tpot_ms_p50"] == 2
    assert figures["tpot_ms_p95"] == pytest.approx(3 + 0.6 * 27)  # 9 steps: place 7.6 between 3 and 30
    assert figures["tokens_per_s"] == pytest.approx(4 / 26 * 1000), "new tokens over prompt and decode time"


def test_the_ratio_is_taken_within_each_round() -> None:
    """The ratio of two medians compared a quiet round of one with a busy round of the other."""
    base = [sample(100, [0]), sample(1000, [0]), sample(110, [0])]
    other = [sample(50, [0]), sample(500, [0]), sample(11, [0])]
    assert speed_ratio(base, other) == 2


def test_only_comparable_models_are_compared_and_only_with_a_living_first_one(tmp_path: Path) -> None:
    """A row was compared with a model of other ids, or loaded the one that had just run out of memory."""
    entries = [BenchEntry(spec, spec, BUNDLE, 2, compared=compared) for spec, compared in COMPARED]
    plan = BenchPlan(warmups=[[5]], prompts=[[6]], new_tokens=4, threads=1, data=tmp_path)
    command = [sys.executable, str(FAKE), str(tmp_path / "log")]
    teachers = [result.quality["teacher"] for result in measure(entries, plan, command).rows]
    assert teachers == [None, {"spec": "fast", "kind": BUNDLE.address}, None]
    lost, after = measure([BenchEntry("crash", "crash", BUNDLE, 2), entries[1]], plan, command).rows
    assert lost.error is not None
    assert after.quality == {"bits_per_byte": 2.5, "teacher": None}
