"""The harness measured itself: a runtime of known times and sizes, the turns of every scenario, and stopping early."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.models.engine import BUNDLE
from bench.models.kind import RuntimeKind
from bench.models.torch import CHECKPOINT
from bench.peers.registry import PEERS
from bench.run import controller, rounds
from bench.run.agreement import is_tie
from bench.run.controller import BenchEntry, BenchPlan
from bench.run.rounds import BenchResult, measure
from bench.run.scenarios import (
    CONCURRENCY,
    ROUNDS,
    SCENARIOS,
    STARTS,
    TURNS,
    _turn_sizes,
    prompt_lengths,
    scenario_figures,
    thread_counts,
)
from bench.run.timing import latency_figures

TIMED = Path(__file__).parent / "support" / "timed_worker.py"
PROMPTS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def run(folder: Path, specs: list[str], *, kinds: tuple[RuntimeKind, ...] = (), **options: Any) -> BenchResult:
    kinds = kinds or (BUNDLE,) * len(specs)
    entries = [BenchEntry(spec.split()[0], spec, kind, 2) for spec, kind in zip(specs, kinds, strict=True)]
    plan = {"warmups": [[1, 1, 1]], "prompts": PROMPTS, "new_tokens": 4, "threads": 1, "context": 64, **options}
    return measure(entries, BenchPlan(**plan), [sys.executable, str(TIMED), str(folder / "log")])


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between models: the timed worker has no threads that go on spinning."""
    for module in (controller, rounds):
        monkeypatch.setattr(module, "wait_for_idle_threads", lambda: None)


def test_known_times_are_measured_within_three_percent(tmp_path: Path) -> None:
    """Stops a figure that holds the waiting between models, the protocol, or half of the first token."""
    measured = run(tmp_path, ["a 60 20 0", "b 30 10 0"], new_tokens=6)
    for row in measured.rows:
        slept = [
            entry["slept"] for entry in log(tmp_path) if entry["name"] == row.entry.name and entry["op"] == "sample"
        ]
        known = slept[2:]  # the first two started and warmed up
        figures = latency_figures(row.samples)
        assert figures["ttft_ms_p50"] == pytest.approx(np.median([each[0] for each in known]), rel=0.03)
        assert figures["tpot_ms_p50"] == pytest.approx(np.median([s for each in known for s in each[1:]]), rel=0.03)
        rates = [len(each) / sum(each) * 1000 for each in known]
        assert figures["tokens_per_s"] == pytest.approx(np.median(rates), rel=0.03)
        assert figures["cpu_s_per_token"] < 0.01, "a sleep costs no CPU"


@pytest.mark.usefixtures("unhurried")
def test_a_known_size_is_measured_within_five_percent(tmp_path: Path) -> None:
    """Stops a memory figure of the controller, of the machine, or of the model before."""
    large, none = run(tmp_path, ["large 1 1 400", "none 1 1 0"]).rows
    assert large.peak_rss_mb is not None
    assert none.peak_rss_mb is not None
    assert large.peak_rss_mb - none.peak_rss_mb == pytest.approx(400, rel=0.05)


def test_the_memory_of_processes_that_a_runtime_starts_counts(tmp_path: Path) -> None:
    """Stops a runtime that looks small because a child of its holds the weights."""
    from subprocess import PIPE, Popen

    from bench.machine.memory import peak_rss_mb

    before = peak_rss_mb()
    code = "import numpy as n; x = n.ones(25_000_000); print(1, flush=True); input()"
    with Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        grown = peak_rss_mb() - before
        child.communicate(b"\n")
    assert 200 < grown < 300  # 25 million doubles, and an interpreter


def test_gpu_memory_is_the_drivers_count_for_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops another process's memory in the figure, and a figure where there is no GPU."""
    import os

    from bench.machine.memory import device_mb

    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_mb() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{os.getpid()}, 1000'\necho '1, 7'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert device_mb() == pytest.approx(1048.576)


@pytest.mark.usefixtures("unhurried")
def test_all_scenarios_take_turns_and_leave_raw_samples(tmp_path: Path) -> None:
    """Stops a scenario that runs one model after the other, or whose samples nobody can look at."""
    measured = run(tmp_path, ["a 1 1 0", "b 1 1 0"], kinds=(BUNDLE, PEERS["openvino"]), scenarios=list(SCENARIOS))
    a, b = measured.rows
    assert (a.error, b.error) == (None, None)
    assert len(a.extra["cold-start"]) == 1 + STARTS
    assert [len(talk) for talk in a.extra["turns"]] == [TURNS] * ROUNDS
    assert {width: len(rounds) for width, rounds in a.extra["together"].items()} == {
        str(w): ROUNDS for w in CONCURRENCY
    }
    assert [len(rounds[0]["samples"]) for rounds in a.extra["together"].values()] == list(CONCURRENCY)
    assert "together" not in b.extra, "its runtime has no call for it"
    assert list(a.extra["prompts"]) == [str(length) for length in prompt_lengths(64)]
    assert list(a.extra["threads"]) == [str(threads) for threads in thread_counts()]
    names = [entry["name"] for entry in log(tmp_path) if entry["op"] == "sample" and len(entry["slept"]) == 4]
    own = names[: 2 * (1 + len(PROMPTS))]
    assert own == ["a", "b"] * (1 + len(PROMPTS))
    assert {entry["slots"] for entry in log(tmp_path) if entry["op"] == "load" and entry["name"] == "a"} == set(
        CONCURRENCY
    )
    figures = scenario_figures(a.extra)
    assert figures["cold_start_s"] > 0.02, "an interpreter starts in it"
    assert figures["together_4_tokens_per_s"] > 0
    assert figures["turns_ms"] >= TURNS * 4


@pytest.mark.usefixtures("unhurried")
def test_a_conversation_grows_by_the_reply_and_the_next_turn(tmp_path: Path) -> None:
    """Stops turns that are all of one length, whose prefix nobody could reuse, and a reuse of another conversation."""
    run(tmp_path, ["a 0 0 0"], scenarios=["turns"])
    turns = [entry for entry in log(tmp_path) if entry["op"] == "sample"][2 + len(PROMPTS) :]
    assert [entry["reuse"] for entry in turns] == ([False] + [True] * (TURNS - 1)) * ROUNDS
    for place in range(1, TURNS):
        before, now = turns[place - 1], turns[place]
        said = [(sum(before["prompt"]) + number) % 50 for number in range(len(before["slept"]))]
        assert now["prompt"][: len(before["prompt"]) + len(said)] == before["prompt"] + said
        assert len(now["prompt"]) > len(before["prompt"]) + len(said)
    assert len(turns[TURNS - 1]["prompt"]) + len(turns[TURNS - 1]["slept"]) <= 64, "it fits the context"


@pytest.mark.usefixtures("unhurried")
def test_wrong_answers_are_found_before_anything_is_timed(tmp_path: Path) -> None:
    """Stops a peer that is fast because it computes something else, and one form's verdict on another peer."""
    entries = [
        BenchEntry("reference", "reference 0 0 0", CHECKPOINT, 2),
        BenchEntry("q8", "q8 0 0 0", PEERS["llama.cpp"], 2, full_precision="wrong 0 0 0"),
        BenchEntry("q4", "q4 0 0 0", PEERS["llama.cpp"], 2, full_precision="wrong 0 0 0"),
        BenchEntry("int8", "int8 0 0 0", PEERS["openvino"], 2, full_precision="right 0 0 0"),
    ]
    plan = BenchPlan([[1, 1]], [[1, 2], [3, 4], [5, 6]], 4, threads=1)
    reference, q8, q4, int8 = measure(entries, plan, [sys.executable, str(TIMED), str(tmp_path / "log")]).rows
    assert reference.agreement is None
    assert q8.agreement is not None
    assert not q8.agreement["agrees"]
    assert "after 2 new ids it says 6 where torch says 5" in q8.agreement["why"]
    assert q4.agreement is q8.agreement, "the form was asked once"
    assert int8.agreement == {"agrees": True, "compared": 12, "ties": 0, "why": None}
    assert [entry["name"] for entry in log(tmp_path)].count("wrong") == 2  # loaded, and one answer was enough


@pytest.mark.usefixtures("unhurried")
def test_a_tie_is_no_wrong_answer_and_ends_the_comparison_of_its_reply(tmp_path: Path) -> None:
    """Where two ids are as good as equal the rest is another text, and every peer was wrong sooner or later."""
    entries = [
        BenchEntry("undecided", "undecided 0 0 0", CHECKPOINT, 2),
        BenchEntry("q8", "q8 0 0 0", PEERS["llama.cpp"], 2, full_precision="wrong 0 0 0"),
    ]
    plan = BenchPlan([[1, 1]], [[1, 2], [3, 4], [5, 6]], 4, threads=1)
    _, q8 = measure(entries, plan, [sys.executable, str(TIMED), str(tmp_path / "log")]).rows
    assert q8.agreement == {"agrees": True, "compared": 6, "ties": 3, "why": None}, "two ids of each of three replies"


@given(context=st.integers(4 * 3, 4096))
def test_all_turns_fit_the_context(context: int) -> None:
    """The last turn of a small context was refused, and the row with it."""
    fresh, new_tokens = _turn_sizes(context)
    assert fresh >= 1
    assert 2 <= new_tokens <= 32
    assert TURNS * (fresh + new_tokens) <= context
    assert all(length + 2 <= context for length in prompt_lengths(context))
    assert prompt_lengths(context) == sorted(set(prompt_lengths(context)))


def test_figures_of_scenarios_are_those_counted_by_hand() -> None:
    """A rate was the mean of rates, and the tail that of the slowest conversation."""
    sample = {"ttft_ms": 4.0, "token_ms": [1.0, 2.0], "ids": [1, 2, 3]}
    other = {"ttft_ms": 9.0, "token_ms": [5.0, 6.0], "ids": [1, 2, 3]}
    replies = [{"ms": 10.0, "first_ms": 3.0, "tokens": 4}, {"ms": 30.0, "first_ms": 5.0, "tokens": 36}]
    raw = {
        "cold-start": [3.0, 1.0, 2.0],
        "replies": replies,
        "turns": [[sample] * TURNS, [sample] * (TURNS - 1) + [other], [sample]],
        "together": {"2": [{"samples": [sample, other], "ms": 20.0}, {"samples": [sample, sample], "ms": 10.0}]},
        "prompts": {"16": [1.0]},
    }
    steps = sorted([1, 2, 5, 6, 1, 2, 1, 2])
    assert scenario_figures(raw) == {
        "cold_start_s": 2.0,
        "reply_first_ms_p50": 4.0,
        "reply_ms_p50": 20.0,
        "reply_ms_p95": pytest.approx(29.0),
        "reply_tokens_per_s": pytest.approx(1000.0),
        "turns_last_ttft_ms": 6.5,
        "turns_ms": pytest.approx((7 * TURNS + 7 * (TURNS - 1) + 20) / 2),
        "together_2_tokens_per_s": pytest.approx((300 + 600) / 2),
        "together_2_tpot_ms_p99": pytest.approx(steps[6] + 0.93 * (steps[7] - steps[6])),
    }


def test_two_ids_as_good_as_equal_are_a_tie() -> None:
    """Stops a verdict on the last bit of a sum."""
    assert is_tie({"margin": 0.0009, "spread": 1.0})
    assert not is_tie({"margin": 0.0011, "spread": 1.0})
    assert not is_tie({"margin": -0.5, "spread": 1.0}), "torch's own choice may be the less likely one only by rounding"


def test_a_run_that_is_stopped_keeps_its_complete_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops ratios of rounds that only one model ran, and an hour of samples lost to Ctrl-C."""
    settled = 0

    def wait_for_idle_threads() -> None:
        nonlocal settled
        settled += 1
        if settled == 2 + 3 + 3 + 2:  # a round of warm-up, two rounds and the bandwidths after them, half of a third
            raise KeyboardInterrupt

    for module in (controller, rounds):
        monkeypatch.setattr(module, "wait_for_idle_threads", wait_for_idle_threads)
    measured = run(tmp_path, ["a 0 0 0", "b 0 0 0"])
    assert measured.partial
    assert [len(row.samples) for row in measured.rows] == [2, 2]
    assert len(measured.bandwidth) == 2


def test_stopped_before_the_first_round_there_is_nothing_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a report of no samples."""

    def wait_for_idle_threads() -> None:
        raise KeyboardInterrupt

    for module in (controller, rounds):
        monkeypatch.setattr(module, "wait_for_idle_threads", wait_for_idle_threads)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ["a 0 0 0"])


@pytest.mark.usefixtures("unhurried")
def test_a_job_that_cannot_be_measured_keeps_its_reason_and_is_asked_nothing(tmp_path: Path) -> None:
    """Stops a missing GPU or package from ending the run, or from a row of zeros."""
    entries = [
        BenchEntry("a", "a 0 0 0", BUNDLE, 2),
        BenchEntry("gpu", "gpu 0 0 0", BUNDLE, 2, error="skipped: no GPU"),
    ]
    plan = BenchPlan([], PROMPTS, 4, threads=1, context=64, scenarios=["cold-start", "turns"])
    a, gpu = measure(entries, plan, [sys.executable, str(TIMED), str(tmp_path / "log")]).rows
    assert (a.error, gpu.error) == (None, "skipped: no GPU")
    assert {entry["name"] for entry in log(tmp_path)} == {"a"}
    assert not gpu.samples
    assert not gpu.extra
