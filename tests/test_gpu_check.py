"""The check of a GPU: what is missing is a line each, before any work; its steps end in time, with what they did."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu.check import MODELS, Check, digest
from bench.gpu.machine import ask_torch, environment, lacking
from bench.gpu.parts import cut
from bench.run.standard import ROWS

ROOT = Path(__file__).parents[1]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
GPU = {"torch": "2.11.0+cu130", "cuda": "13.0", "gpu": "a GPU", "file": "/site/torch/__init__.py"}


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it, with nothing of the machine's packages: all that it needs before it has installed is Python."""
    command = [sys.executable, "-S", "-m", "bench.gpu.check", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_thing_that_is_missing_is_a_line_and_the_exit_code_is_2(tmp_path: Path) -> None:
    """One at a time, each found by another start of a machine that is paid by the minute."""
    (tmp_path / "x-1.0-py3-none-any.whl").write_bytes(b"not a wheel")
    cut([tmp_path / "x-1.0-py3-none-any.whl"], tmp_path / "wheels", "2.7")
    (part,) = (tmp_path / "wheels" / "01").iterdir()
    part.rename(tmp_path / "held back")
    store = ("--store", tmp_path / "store", "--out", tmp_path / "out")
    done = check("--receive", "--wheels", tmp_path / "wheels", *store)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'wheels'}: 0 new parts; 01 still to come\n"
    done = check("--run", *store)
    assert done.returncode == 2
    lines = [line.removeprefix("gpu-check: ").partition(":")[0] for line in done.stderr.splitlines()]
    assert {"Python 2.7", "wheels"} <= set(lines)
    assert all(line.startswith("gpu-check: ") for line in done.stderr.splitlines())
    assert not (tmp_path / "out").exists()


def test_nothing_received_and_bad_numbers_are_a_line(tmp_path: Path) -> None:
    """A traceback is no answer to a forgotten folder."""
    done = check("--run", "--store", tmp_path / "store")
    assert done.returncode == 2
    assert "has no manifest.json; make it with make gpu-wheels" in done.stderr
    done = check("--minutes", "0", "--store", tmp_path / "store")
    assert (done.returncode, done.stderr) == (2, "gpu-check: --minutes 0: give more than 1\n")


@pytest.mark.parametrize(
    ("changes", "gpu", "lines"),
    [
        ({}, True, []),
        ({"gpu": None}, True, ["CUDA GPU: torch 2.11.0+cu130, built for CUDA 13.0, finds none; is the driver loaded"]),
        ({"gpu": None, "cuda": None}, True, ["CUDA GPU: torch 2.11.0+cu130, built without CUDA, finds none"]),
        ({"cuda": "12.8"}, True, ["CUDA 13: torch is built for 12.8, and onnxruntime-gpu needs 13"]),
        ({"gpu": None}, False, []),
        ({"error": "no torch"}, False, ["torch: "]),
    ],
)
def test_what_a_machine_lacks(changes: dict, gpu: bool, lines: list[str]) -> None:
    """onnxruntime-gpu falls back to the CPU in silence where any of it is wrong, and the figures are a CPU's."""
    found = lacking(HERE, GPU | changes, gpu=gpu)
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    """The answer is torch's, and importing it is left out of the process that waits for others."""
    import torch

    found = ask_torch()
    assert (found["torch"], found["cuda"], found["file"]) == (torch.__version__, torch.version.cuda, torch.__file__)
    assert (found["gpu"] is None) is not torch.cuda.is_available()


def test_what_was_carried_goes_before_the_machines_and_cudas_libraries_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's own onnxruntime, without CUDA, was imported in place of the one that was carried."""
    for name in ("cu13", "cudnn"):
        (tmp_path / "nvidia" / name / "lib").mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    found = environment(tmp_path / "site", {"file": str(tmp_path / "torch" / "__init__.py")})
    assert found["PYTHONPATH"].split(":") == [str(tmp_path / "site"), str(ROOT)]
    libraries = [str(tmp_path / "nvidia" / name / "lib") for name in ("cu13", "cudnn")]
    assert found["LD_LIBRARY_PATH"].split(":") == [*libraries, "/before"]


def test_a_step_that_takes_too_long_is_told_to_end_and_what_it_said_is_kept(tmp_path: Path) -> None:
    """The last step took the report of all others with it."""
    code = "import time\nprint('begun', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('written')"
    steps = Check(tmp_path, {}, time.monotonic() + 2)
    assert steps.run("long", sys.executable, "-c", code).trouble == "was cut off: the time was up"
    assert steps.run("later", sys.executable, "-c", "").trouble == "no time was left for it"
    said = (tmp_path / "log.txt").read_text()
    assert said.index("== long") < said.index("begun") < said.index("written")


def test_a_step_that_fails_says_its_last_word(tmp_path: Path) -> None:
    """An exit code alone sends people to a log that is on another machine."""
    steps = Check(tmp_path, {}, time.monotonic() + 60)
    failed = steps.run("x", sys.executable, "-c", "import sys; print('the cause'); sys.exit(3)")
    assert failed.trouble == "ended with exit code 3: the cause"
    assert steps.run("y", sys.executable, "-c", "").trouble == ""


def test_the_bench_is_given_what_is_exported() -> None:
    """The check names the models before it can import what makes them."""
    assert set(MODELS) <= set(ROWS)


def test_what_other_code_exported_is_not_taken_again(tmp_path: Path) -> None:
    """A machine that is kept showed the figures of last week's graph."""
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("2")
    before = digest(tmp_path.iterdir())
    assert before == digest(sorted(tmp_path.iterdir(), reverse=True))
    (tmp_path / "b.py").write_text("3")
    assert digest(tmp_path.iterdir()) != before
