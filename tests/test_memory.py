"""What a loaded bundle takes of the machine's memory, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.bundles import exported, random_gpt2

from serve.bundle import Bundle

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="resident memory is read from Linux's /proc"
)

ROOT = Path(__file__).parents[1]
# Prints the bytes that are resident once a bundle is loaded and has answered, and the most that ever were.
LOAD = """
import json, sys
from serve.bundle import Bundle
from serve.engine import Engine

engine = Engine(Bundle.open(sys.argv[1]), threads=1)
engine.prefill([3, 4, 5])
engine.step(6)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")]))
"""


def bundle_of(folder: Path, bits: int | None) -> Bundle:
    """A model of 20 million parameters; a third of them are the tied table."""
    return exported(random_gpt2(n_layer=4, n_embd=512, n_head=8, vocab_size=13_317), folder, bits)


def resident(folder: Path) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", LOAD, folder], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    after, highest = json.loads(done.stdout)
    return after, highest


def limit(bundle: Bundle) -> float:
    """Of Python, onnxruntime and their libraries 90 MB, of the model its file and what its kernels add to it."""
    return 1.3 * bundle.file_bytes + 90e6


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_resident_memory_is_bounded_by_the_file(bits: int | None, tmp_path: Path) -> None:
    """Weights held twice, while they load or ever after, are a box that does not start."""
    bundle = bundle_of(tmp_path, bits)
    after, highest = resident(tmp_path)
    assert after <= highest <= limit(bundle)


def test_the_bound_would_see_weights_unfolded_to_floats(tmp_path: Path) -> None:
    """A bound that nothing can break tells nothing."""
    (tmp_path / "w8").mkdir()
    (tmp_path / "fp32").mkdir()
    small = bundle_of(tmp_path / "w8", 8)
    bundle_of(tmp_path / "fp32", None)
    assert resident(tmp_path / "fp32")[0] > limit(small)
