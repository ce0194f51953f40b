"""The wheel as users get it: built, installed with `[edge]` alone into a new environment, and asked for a reply."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
pytestmark = pytest.mark.slow


def run(folder: Path, *command: str | Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a folder from which the checkout cannot be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command], input=typed, cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout. Skips where no package registry is reached, which the build's own tools come from."""
    folder = tmp_path_factory.mktemp("wheel")
    asked = run(folder, sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", "asked", "setuptools-scm>=8")
    if asked.returncode:
        pytest.skip(f"pip reaches no package registry: {asked.stderr.strip().splitlines()[-1]}")
    sources = folder / "sources"  # a build writes into the folder that it builds from, and reads what it finds there
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        shutil.copytree(ROOT / pattern.rstrip("*"), sources / pattern.rstrip("*"), ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    built = run(folder, sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "wheels", sources)
    assert built.returncode == 0, built.stderr
    (path,) = (folder / "wheels").glob("chitchat_compress-*.whl")
    return path


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The programs' folder of a new environment with the wheel and its extra `edge`."""
    folder = tmp_path_factory.mktemp("box")
    made = run(folder, sys.executable, "-m", "venv", "venv")
    assert made.returncode == 0, made.stderr
    programs = folder / "venv" / "bin"
    installed = run(folder, programs / "pip", "install", "-q", "-c", CONSTRAINTS, f"{wheel}[edge]")
    assert installed.returncode == 0, installed.stderr
    return programs


def test_an_edge_box_has_no_torch_and_says_its_version(box: Path, tmp_path: Path, wheel: Path) -> None:
    """An extra that brings torch along needs 800 MB where 200 are there."""
    listed = json.loads(run(tmp_path, box / "pip", "list", "--format", "json").stdout)
    names = {package["name"].lower().replace("-", "_") for package in listed}
    assert "onnxruntime" in names
    assert not names & {"torch", "transformers", "datasets", "onnx", "matplotlib", "pydantic"}
    said = run(tmp_path, box / "compress", "--version")
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[-1] == wheel.name.split("-")[1]


def test_a_bundle_answers_in_the_terminal(box: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """A file that the wheel leaves out is in every checkout, and missing on every box."""
    done = run(tmp_path, box / "compress", "chat", tiny_bundle, "--threads", "1", typed="hello\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bot: ") == 1


def test_a_bundle_answers_python(box: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """The five lines of the README end on a box without torch."""
    script = "import sys, chitchat_compress as cc; print(repr(cc.load(sys.argv[1]).reply('hello')))"
    done = run(tmp_path, box / "python", "-W", "error", "-c", script, tiny_bundle)
    assert done.returncode == 0, done.stderr
    assert isinstance(eval(done.stdout), str)


def test_a_verb_that_needs_more_says_what_to_install(box: Path, tmp_path: Path, tiny_corpus: Path) -> None:
    """A traceback of an import tells nobody which extra is missing."""
    done = run(tmp_path, box / "compress", "data", tiny_corpus, "--out", "data")
    assert done.returncode != 0
    assert "pip install 'chitchat-compress[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr
