"""The clock: shapes timed in turn in the engine that ships."""

from dataclasses import replace
from pathlib import Path

import pytest

import bench.cost.probe
from bench.cost.probe import TOKEN_BYTES, CostProbe
from bench.cost.random_bundle import bundle_bytes
from bench.models.engine import EngineModel
from chitchat.errors import BadInput
from serve.geometry import Geometry

SMALL = Geometry(layers=1, heads=2, head_dim=16, ffn=64, vocab=128, context=32)
LARGE = replace(SMALL, layers=24, ffn=512)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for threads: one runs."""
    monkeypatch.setattr(bench.cost.probe, "_SETTLE_S", 0.0)


@pytest.mark.usefixtures("quick")
def test_times_are_in_the_order_of_the_shapes_and_follow_their_work() -> None:
    """Times of shapes that were sorted, or met twice, were given to other shapes."""
    clock = CostProbe("w8", threads=1)
    times = clock.measure([SMALL, LARGE, SMALL], rounds=3)
    assert times[0] == times[2]
    assert 0 < 2 * times[0] < times[1], "24 layers with wide FFNs against one"


@pytest.mark.usefixtures("quick")
def test_a_time_is_the_median_between_two_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt's time, or seconds, or a mean with one slow token in it, is not ms per token."""
    seen: list[float] = []
    generate = EngineModel.generate

    def slow_at_first(self: EngineModel, *arguments: object) -> object:
        sample = generate(self, *arguments)  # type: ignore[arg-type]
        altered = replace(sample, ttft_ms=1e6, token_ms=[1e6, *sample.token_ms[1:]])
        seen.extend(altered.token_ms)
        return altered

    monkeypatch.setattr(EngineModel, "generate", slow_at_first)
    clock = CostProbe("w8", threads=1, new_tokens=8)
    [found] = clock.measure([SMALL], rounds=3)
    timed = sorted(seen[7:])  # the first reply warms up
    assert found == timed[len(timed) // 2]
    assert found < 1e5


@pytest.mark.usefixtures("quick")
def test_a_time_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that asks for the same shape again measured for hours."""
    clock = CostProbe("w8", threads=1)
    first = clock.ms_per_token(SMALL)
    monkeypatch.setattr(CostProbe, "measure", None)
    assert clock.ms_per_token(SMALL) == first


@pytest.mark.usefixtures("quick")
def test_shapes_that_do_not_fit_into_memory_together_are_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty candidates of a large model were held in memory at once."""
    opened: list[list[Geometry]] = []
    replies = CostProbe._replies
    monkeypatch.setattr(
        CostProbe, "_replies", lambda self, shapes, rounds: opened.append(shapes) or replies(self, shapes, 1)
    )
    monkeypatch.setattr(bench.cost.probe, "_HELD_BYTES", 1)
    times = CostProbe("w8", threads=1).measure([SMALL, LARGE], rounds=1)
    assert opened == [[SMALL], [LARGE]]
    assert min(times) > 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scheme", ["fp32", "w8a8", "w4"])
def test_every_scheme_has_a_clock(scheme: str) -> None:
    """Candidates of a w4 budget were timed as w8."""
    clock = CostProbe(scheme, threads=1)
    assert clock.ms_per_token(SMALL) > 0
    assert clock.file_mb(SMALL) == bundle_bytes(SMALL, scheme, TOKEN_BYTES * SMALL.vocab) / 1e6


def test_a_size_takes_the_tokenizer_that_is_known() -> None:
    """A Chinese vocabulary takes a quarter of the bytes a token of a byte-level one."""
    known = CostProbe("w8", tokenizer_bytes=1000).file_mb(SMALL)
    assert CostProbe("w8").file_mb(SMALL) - known == pytest.approx((TOKEN_BYTES * SMALL.vocab - 1000) / 1e6)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    """A KeyError from the table of schemes; a reply of no tokens."""
    with pytest.raises(BadInput, match="--scheme w5: there is no such scheme; choose fp32, w8"):
        CostProbe("w5")
    with pytest.raises(BadInput, match="--context 2: too small"):
        CostProbe("w8", threads=1).measure([replace(SMALL, context=2)])
