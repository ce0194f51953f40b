"""Two reports: what changed beyond noise, and what cannot be compared."""

import copy
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command_line import type_in
from support.reports import record, report

from bench.report.compare import _between, compare
from chitchat.errors import BadInput


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def changed(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> dict[tuple[str, str], bool]:
    found = compare(write(folder, "a.json", before), write(folder, "b.json", after))
    return {(change.row, change.figure): change.beyond_noise for change in found.changes}


def test_a_slower_day_is_no_change(tmp_path: Path) -> None:
    """Stops a regression that is the machine's."""
    found = changed(tmp_path, report({"t": 100, "q": 50}), report({"t": 100, "q": 50}, day=1.6, seed=1))
    assert not any(found.values())
    assert ("q", "speed against t") in found


def test_a_faster_model_is_one_also_on_a_slower_day(tmp_path: Path) -> None:
    """Stops an improvement that the weather hides."""
    found = changed(tmp_path, report({"t": 100, "q": 50}), report({"t": 100, "q": 43}, day=1.6, seed=1))
    assert [key for key, counts in found.items() if counts] == [("q", "speed against t")]


def test_noise_is_called_noise_about_as_often_as_it_should() -> None:
    """Stops a tool that cries wolf: 60 pairs of runs of equal models."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cries = sum(
            changed(Path(folder), report({"t": 9, "q": 5}, seed=2 * i), report({"t": 9, "q": 5}, seed=2 * i + 1))[
                "q", "speed against t"
            ]
            for i in range(60)
        )
    assert cries <= 8


def test_sizes_count_without_noise(tmp_path: Path) -> None:
    """Stops a file that grew unseen."""
    after = report({"t": 100, "q": 50}, seed=1)
    after["rows"][1]["file_mb"] = 10.3
    after["rows"][0]["peak_rss_mb"] = 103.0
    found = changed(tmp_path, report({"t": 100, "q": 50}), after)
    assert found["q", "file size"]
    assert not found["t", "peak memory"]


def test_quality_is_paired_by_conversation(tmp_path: Path) -> None:
    """A loss of half a percent is far below the spread of conversations, and yet every one of them has it."""
    after = report({"t": 100, "q": 50}, seed=1)
    after["quality"]["q"] = record(0.005)
    found = changed(tmp_path, report({"t": 100, "q": 50}), after)
    assert found["q", "perplexity"]
    assert not found["t", "perplexity"]


def test_what_differs_around_them_is_said(tmp_path: Path) -> None:
    """Stops a comparison of other work on another machine that reads like one of models."""
    before, after = report({"t": 100, "q": 50, "old": 1}), report({"t": 100, "q": 50, "new": 1}, seed=1)
    after["settings"] |= {"prompt_tokens": 32, "data": "other"}
    after["environment"] |= {"cpu": "d", "versions": {"onnxruntime": "1.33.0"}}
    found = compare(write(tmp_path, "a.json", before), write(tmp_path, "b.json", after))
    said = "\n".join(found.lines())
    for part in (
        *("only in the first report: old", "only in the second report: new", "the work differs: data, prompt_tokens"),
        *("another machine: cpu c, then d", "onnxruntime 1.32.0, then 1.33.0", "quality is not compared"),
    ):
        assert part in said
    assert not [change for change in found.changes if change.figure == "perplexity"]
    json.dumps(found.as_json())


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    """Stops a traceback over a file that is no report."""
    good = write(tmp_path, "a.json", report({"t": 100}))
    old = copy.deepcopy(report({"t": 100})) | {"format": 0}
    for name, content, message in (
        ("text", "hello", "is no report"),
        ("other", {"rows": []}, "is no report"),
        ("old", old, "has format 0"),
        ("none", report({"x": 100}), "no row of the same name"),
    ):
        with pytest.raises(BadInput, match=message):
            compare(good, write(tmp_path, name, content))
    with pytest.raises(BadInput, match="cannot be read"):
        compare(good, tmp_path / "absent.json")


def test_the_command_line_compares_two_reports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Stops an option that is parsed and then measures something, or a refusal with a traceback."""
    paths = [str(write(tmp_path, name, report({"t": 100, "q": ms}))) for name, ms in (("a.json", 50), ("b.json", 25))]
    assert type_in("bench", "--compare", *paths, "--json") == 0
    said = capfd.readouterr().out
    assert "beyond noise:\n  q: speed against t x 2.0" in said
    changes = json.loads(said.splitlines()[-1])["changes"]
    assert {change["row"] for change in changes if change["beyond_noise"]} == {"q"}
    assert type_in("bench", "--compare", paths[0], tmp_path / "absent.json", "--json") == 2
    assert capfd.readouterr().err.count("\n") == 1


@settings(max_examples=15)
@given(
    before=st.lists(st.floats(1, 100), min_size=2, max_size=9),
    after=st.lists(st.floats(1, 100), min_size=2, max_size=9),
)
def test_a_change_is_the_ratio_of_medians_with_both_runs_resampled(before: list[float], after: list[float]) -> None:
    """Stops an interval of one run's noise only, and a ratio that is upside down."""
    ratio, interval = _between(np.array(before), np.array(after))
    assert ratio == pytest.approx(statistics.median(after) / statistics.median(before))
    assert interval is not None
    assert min(after) / max(before) * (1 - 1e-9) <= interval[0] <= interval[1] <= max(after) / min(before) * (1 + 1e-9)
    random = np.random.default_rng(0)
    draws = [[statistics.median(run[i] for i in row) for row in random.integers(0, len(run), (2000, len(run)))]
             for run in (after, before)]  # fmt: skip
    ratios = [above / below for above, below in zip(*draws, strict=True)]
    assert interval == pytest.approx(np.percentile(ratios, (2.5, 97.5)).tolist())
