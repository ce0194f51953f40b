"""The size that the bits promise, on disk and in memory, at GPT2-chitchat's geometry."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.cost.random_bundle import write_random_bundle
from bench.run.standard import CONTEXT, HEADS, LAYERS, VOCAB, WIDTH
from serve.geometry import Geometry

SHAPE = Geometry(LAYERS, HEADS, WIDTH // HEADS, 4 * WIDTH, VOCAB, CONTEXT)
LOAD = """
import sys
from bench.machine.memory import status_mb
from serve.bundle import Bundle
from serve.engine import Engine
from serve.options import SamplingOptions
engine = Engine(Bundle.open(sys.argv[1]), 1)
next(engine.stream([1, 2, 3], SamplingOptions(seed=0)))
print(status_mb("VmRSS"))
"""


def resident_mb(bundle: Path) -> float:
    """Resident memory of a process of its own after the first token."""
    return float(subprocess.run([sys.executable, "-c", LOAD, str(bundle)], capture_output=True, check=True).stdout)


def file_mb(bundle: Path) -> float:
    return sum(path.stat().st_size for path in bundle.iterdir()) / 1e6


@pytest.mark.slow
def test_files_and_memory_shrink_as_the_bits_promise(tmp_path: Path) -> None:
    """Users saw int8 files with the tied table stored twice, and small files that were unpacked to floats at load."""
    (tmp_path / "tiny").mkdir()
    write_random_bundle(Geometry(1, 2, 32, 64, 64, 64), "fp32", tmp_path / "tiny")
    base, sizes = resident_mb(tmp_path / "tiny"), {}
    for scheme, share in (("fp32", 1.0), ("w8", 0.28), ("w8a8", 0.28), ("w4", 0.18)):
        bundle = tmp_path / scheme
        bundle.mkdir()
        write_random_bundle(SHAPE, scheme, bundle)
        sizes[scheme] = file_mb(bundle)
        assert sizes[scheme] <= share * sizes["fp32"], scheme
        cache = 2 * 4 * LAYERS * CONTEXT * WIDTH / 1e6
        assert resident_mb(bundle) - base <= 1.2 * sizes[scheme] + cache + 10, scheme
