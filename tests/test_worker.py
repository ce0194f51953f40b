"""One worker process: its memory is its own, its answers are clean, and nothing heavy comes in before it is needed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.models.engine import BUNDLE
from bench.models.loaded import as_timed_reply
from bench.run.process import WorkerLost, WorkerProcess

ROOT = Path(__file__).parents[1]


def test_a_small_worker_of_a_large_process_is_small() -> None:
    """getrusage starts a child at its parent's peak: the engine of 70 MB was reported with the bench's 400 MB."""
    ballast = np.ones(60_000_000)  # 480 MB, all touched
    worker = WorkerProcess([sys.executable, "-m", "bench.run.worker"], threads=1, timeout_s=60)
    try:
        peak = worker.ask({"op": "memory"})["peak_rss_mb"]
    finally:
        worker.close()
    assert ballast.nbytes / 1e6 > 400
    assert 5 < peak < 200


def test_the_worker_is_light_until_a_model_asks_for_more() -> None:
    """torch in the engine's process made our own runtime look as large as the baseline."""
    heavy = (
        "import sys, bench.run.worker; print([m for m in ('torch', 'onnxruntime', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_library_prints_does_not_break_the_protocol() -> None:
    """A progress line on stdout was read as an answer."""
    code = (
        "import bench.run.worker as w, os\n"
        "noise = lambda: (print('Downloading', flush=True), os.write(1, b'raw'))\n"
        "w.BenchWorker.answer = lambda self, request: noise() and {'x': 1}\n"
        "w.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input='{"op": "memory"}\n', capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"ok": True, "x": 1}
    assert "Downloading" in done.stderr


def test_an_error_of_a_model_is_one_line_and_the_worker_lives_on(tmp_path: Path) -> None:
    """A traceback in place of an answer hung the controller."""
    worker = WorkerProcess([sys.executable, "-m", "bench.run.worker"], threads=1, timeout_s=120)
    try:
        with pytest.raises(WorkerLost, match="no such bundle folder"):
            worker.ask(
                {"op": "load", "spec": str(tmp_path / "no"), "kind": BUNDLE.address, "threads": 1, "device": "cpu"}
            )
        assert worker.ask({"op": "memory"})["peak_rss_mb"] > 0
    finally:
        worker.close()


def test_a_runtime_that_gives_too_few_tokens_is_no_sample() -> None:
    """A model that ended its turn early looked fast."""
    good = as_timed_reply(1.0, [1.5, 1.75], [7, 8], 2)
    assert (good.ttft_ms, good.token_ms, good.ids) == (500.0, [250.0], [7, 8])
    with pytest.raises(RuntimeError, match="gave 1 new tokens in place of 2"):
        as_timed_reply(1.0, [1.5], [7], 2)


def test_an_interpreter_that_is_gone_loses_the_row_and_the_age_begins_with_the_first_request(tmp_path: Path) -> None:
    """A peer's environment was removed during a run, and all other rows went with it."""
    gone = WorkerProcess([str(tmp_path / "python"), "-m", "bench.run.worker"], threads=1, timeout_s=60)
    with pytest.raises(WorkerLost, match=r"cannot be started: .*No such file"):
        gone.ask({"op": "memory"})
    gone.close()
    worker = WorkerProcess([sys.executable, "-m", "bench.run.worker"], threads=1, timeout_s=60)
    try:
        assert worker.age_s == 0
        worker.ask({"op": "memory"})
        young = worker.age_s
        assert 0 < young <= worker.age_s
    finally:
        worker.close()
