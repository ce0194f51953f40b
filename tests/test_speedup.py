"""Whether integers pay here: ratios round by round, turns, and the one line that warns."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench.cost.probe import take_turns
from bench.cost.speedup import Speedup, measure_speedup
from bench.models.loaded import TimedReply
from compress.quantize.options import QuantizeOptions
from compress.quantize.stage import quantize

FAST = Speedup("w8", 64, ttft_ms=5.0, tpot_ms=0.5, ttft_speed=1.1, tpot_speed=2.0)


def test_nothing_is_said_of_a_scheme_that_is_faster() -> None:
    """A warning that always comes is read by nobody."""
    assert FAST.warning() == ""


@pytest.mark.parametrize(
    ("ttft_speed", "tpot_speed", "said", "unsaid"),
    [
        (0.5, 2.0, "a prompt of 64 tokens at 0.50 x (5.0 ms)", "decodes"),
        (1.1, 0.8, "decodes at 0.80 x the speed of float32 (0.50 ms a token)", "prompt"),
    ],
)
def test_what_is_slower_than_float32_is_said_in_one_line(
    ttft_speed: float, tpot_speed: float, said: str, unsaid: str
) -> None:
    """Integers that are slower than floats were handed over in silence."""
    warning = Speedup("w8", 64, 5.0, 0.5, ttft_speed, tpot_speed).warning()
    assert warning.startswith("warning: on this machine w8")
    assert said in warning
    assert unsaid not in warning
    assert "\n" not in warning


@dataclass
class Recorder:
    """A reply that writes down whose turn it was."""

    name: str
    turns: list[str] = field(default_factory=list)

    def __call__(self) -> TimedReply:
        self.turns.append(self.name)
        return TimedReply(ids=[1, 1], ttft_ms=float(len(self.turns)), token_ms=[1.0])


def test_replies_take_turns_and_the_first_round_is_not_counted() -> None:
    """All of one and then all of the other measures how busy the machine was when."""
    turns: list[str] = []
    samples = take_turns([Recorder("a", turns), Recorder("b", turns)], rounds=2)
    assert turns == ["a", "b", "a", "b", "a", "b"]
    assert [[sample.ttft_ms for sample in each] for each in samples] == [[3.0, 5.0], [4.0, 6.0]]


def test_a_quantized_checkpoint_is_timed_against_its_float_shape(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path
) -> None:
    """Figures of another shape, or of a graph that does not run."""
    quantize(str(tiny_checkpoint), tiny_data, tmp_path / "q", QuantizeOptions(scheme="w4", method="rtn"))
    found = measure_speedup(tmp_path / "q", threads=1, rounds=2)
    assert (found.scheme, found.prompt_tokens) == ("w4", 40)
    assert min(found.ttft_ms, found.tpot_ms, found.ttft_speed, found.tpot_speed) > 0
    assert found.as_json().keys() == {"prompt_vs_fp32", "decode_vs_fp32"}
