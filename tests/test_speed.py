"""The standard work's harness: conversations at once, memory's speed, peers' tensors, and what one process costs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.machine.bandwidth import reader
from bench.models.engine import EngineModel

ROOT = Path(__file__).parents[1]


def test_conversations_at_once_give_what_each_gives_alone(tiny_bundle: Path) -> None:
    """A throughput of several conversations is worth nothing when their tokens are others."""
    prompt, new, end = [5, 6, 7, 8, 9], 6, 2
    prompts = [[*prompt[place:], *prompt[:place]] for place in range(4)]
    together = EngineModel.open(str(tiny_bundle), 1, "cpu", slots=4).generate_concurrent(prompts, new, end)
    alone = EngineModel.open(str(tiny_bundle), 1, "cpu")
    assert [sample.ids for sample in together] == [alone.generate(each, new, end).ids for each in prompts]
    assert all(len(sample.token_ms) == new - 1 for sample in together)


def test_bandwidth_grows_with_what_is_read_not_with_the_calls() -> None:
    """A sum over an array that fits a cache told of ten times the memory's speed."""
    rates = [reader(1)() for _ in range(3)]
    assert 0.5 < float(np.median(rates)) < 500


def test_the_footprint_of_a_process_is_measured_whole(tiny_bundle: Path) -> None:
    """The first line must come with the first token: whoever started the process stops the clock at it."""
    command = [sys.executable, "-m", "bench.machine.footprint", str(tiny_bundle), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, rest = (json.loads(line) for line in done.stdout.splitlines())
    assert first["first_token_s"] >= rest["import_s"] + rest["load_s"]
    assert 0 < rest["outside_share"] < 1
    assert rest["file_mb"] < rest["rss_mb"] < 300  # without torch
    assert rest["idle_cpu_share"] < 0.5
