"""Bad input on the command line: exit code 2, one line that names the option or file, and nothing left behind."""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.command_line import type_in

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Files:
    """Good and bad things to name on the command line."""

    def __init__(self, folder: Path, data: Path, checkpoint: Path, bundle: Path) -> None:
        self.folder, self.data, self.checkpoint, self.bundle = folder, data, checkpoint, bundle

    def text(self, content: bytes, name: str = "talk.txt") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def harmed(self, source: Path, name: str, harm: Callable[[Path], object]) -> Path:
        copy = Path(shutil.copytree(source, self.folder / "harmed"))
        harm(copy / name)
        return copy


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("trace",)


def bomb(path: Path) -> None:
    """Make a foreign checkpoint whose weights are a pickle that carries code."""
    (path.parent / "lineage.json").unlink()
    (path.parent / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": _Bomb()}, path)


def mine(path: Path) -> Path:
    """A folder with somebody's letters in it."""
    path.mkdir()
    (path / "letter.txt").write_text("dear")
    return path


CASES: dict[str, tuple[Callable[[Files], list[object]], str]] = {
    "missing corpus": (lambda f: ["data", "gone.txt", "--out", "out"], "gone.txt: no such file"),
    "empty corpus": (lambda f: ["data", f.text(b"\n\n"), "--out", "out"], "talk.txt"),
    "one-sided corpus": (lambda f: ["data", f.text(b"hello\n\nhello?\n"), "--out", "out"], "talk.txt"),
    "not UTF-8": (lambda f: ["data", f.text(b"a\nb\n\xff\xfe\n"), "--out", "out"], "talk.txt, line 3: is not UTF-8"),
    "UTF-16 without a mark": (
        lambda f: ["data", f.text("hi\nyou\n".encode("utf-16-le")), "--out", "out"],
        "talk.txt: is UTF-16 (little-endian) without a byte-order mark; convert it: `iconv -f utf-16le -t utf-8",
    ),
    "table without columns": (
        lambda f: ["data", f.text(b"q,a\nhi,yo\n", "t.csv"), "--out", "out"],
        "t.csv: is a table; say which columns are the turns",
    ),
    "columns without a table": (
        lambda f: ["data", f.text(b"hi\nyo\n"), "--out", "out", "--columns", "q,a"],
        "--columns: no corpus has columns",
    ),
    "ids without tokenizer": (
        lambda f: ["data", f.text(b"]q\x00.", "train.pkl"), "--out", "out"],
        "train.pkl: holds token ids; give --tokenizer",
    ),
    "data set out of reach": (
        lambda f: ["data", "hf:nobody/nothing", "--out", "out"],
        "corpus 'hf:nobody/nothing': the hub cannot be reached",
    ),
    "archive cut short": (
        lambda f: ["data", f.text(gzip.compress(b"hi\nyo\n" * 99)[:-9], "talk.txt.gz"), "--out", "out"],
        "talk.txt.gz: cannot be unpacked",
    ),
    "unknown corpus": (lambda f: ["data", "reddit", "--out", "out"], "byu, chatterbot:<language>"),
    "unknown language": (lambda f: ["data", "chatterbot:elvish", "--out", "out"], "there are bengali, chinese"),
    "no share held out": (lambda f: ["data", "byu", "--out", "out", "--validation", 1], "--validation 1: must lie"),
    "width and heads": (
        lambda f: ["train", f.data, "--out", "out", "--width", 50, "--heads", 4, "--epochs", 1],
        "--width 50",
    ),
    "context of init": (
        lambda f: ["train", f.data, "--out", "out", "--init", f.checkpoint, "--context", 4096, "--epochs", 1],
        "--context 4096",
    ),
    "no length": (lambda f: ["train", f.data, "--out", "out"], "--epochs"),
    "not a data set": (lambda f: ["train", f.checkpoint, "--out", "out", "--epochs", 1], "is not a data set"),
    "keep too much": (lambda f: ["prune", f.checkpoint, "--data", f.data, "--out", "out", "--keep", 1], "--keep 1"),
    "keep nothing": (lambda f: ["prune", f.checkpoint, "--data", f.data, "--out", "out", "--keep", 0], "--keep 0"),
    "width and head size": (
        lambda f: ["prune", f.checkpoint, "--data", f.data, "--out", "out", "--width", 20],
        "--width 20: not a multiple of the head size 8; the nearest are",
    ),
    "scheme": (
        lambda f: ["quantize", f.checkpoint, "--data", f.data, "--out", "out", "--scheme", "w3"],
        "--scheme w3",
    ),
    "altered checkpoint": (
        lambda f: ["info", f.harmed(f.checkpoint, "model.safetensors", alter)],
        "model.safetensors: sha256 differs",
    ),
    "truncated checkpoint": (
        lambda f: ["export", f.harmed(f.checkpoint, "model.safetensors", truncate), "--out", "out"],
        "model.safetensors",
    ),
    "missing file": (
        lambda f: ["export", f.harmed(f.checkpoint, "tokenizer.json", Path.unlink), "--out", "out"],
        "tokenizer.json: missing",
    ),
    "pickle with code": (
        lambda f: ["export", f.harmed(f.checkpoint, "pytorch_model.bin", bomb), "--out", "out"],
        "asks to run code",
    ),
    "altered bundle": (lambda f: ["info", f.harmed(f.bundle, "model.onnx", alter)], "model.onnx"),
    "truncated bundle": (lambda f: ["serve", f.harmed(f.bundle, "model.onnx", truncate)], "model.onnx"),
    "truncated manifest": (lambda f: ["serve", f.harmed(f.bundle, "bundle.json", truncate)], "bundle.json"),
    "no bundle": (lambda f: ["serve", f.checkpoint], "is a checkpoint; make a bundle of it"),
    "no model": (lambda f: ["chat", "./gone"], "./gone: no such checkpoint folder"),
    "target": (lambda f: ["export", f.checkpoint, "--out", "out", "--target", "tpu"], "--target tpu"),
    "folder not ours": (
        lambda f: ["export", f.checkpoint, "--out", mine(f.folder / "letters")],
        "letters: exists and is not a bundle that compress wrote",
    ),
    "prompt and context": (
        lambda f: ["bench", f.bundle, "--out", "out", "--prompt-tokens", 60, "--new-tokens", 60],
        "--prompt-tokens 60",
    ),
    "dialogue of a bundle": (
        lambda f: ["chat", f.bundle, "--dialogue", "dialogpt"],
        "--dialogue dialogpt",
    ),
    "dialogue": (
        lambda f: ["export", f.checkpoint, "--out", "out", "--dialogue", "irc"],
        "--dialogue irc: give chitchat or dialogpt",
    ),
    "device": (lambda f: ["bench", f.bundle, "--out", "out", "--device", "cuda"], "--device cuda"),
    "recipe": (lambda f: ["run", f.text(b"a: {run: teleport}", "r.yaml"), "--out", "out"], "r.yaml"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str,
    here: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    tiny_data: Path,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
) -> None:
    """Each of these was a traceback, a half-written folder, or a wrong result, in one of the tools around."""
    if case == "device" and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so --device cuda is good input")
    arguments, expected = CASES[case]
    typed = arguments(Files(tmp_path, tiny_data, tiny_checkpoint, tiny_bundle))
    capfd.readouterr()
    code = type_in(*typed)
    said = capfd.readouterr()
    assert code == 2, said.err
    assert expected in said.err
    assert said.err.startswith("compress: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert os.listdir(here) == []


@pytest.mark.parametrize("verb", ["data", "prune", "quantize", "export"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    verb: str,
    small_disk: Path,
    here: Path,
    capfd: pytest.CaptureFixture[str],
    tiny_data: Path,
    tiny_checkpoint: Path,
) -> None:
    """Arrow, safetensors and ONNX writers each tell a full disk in their own way."""
    out = small_disk / "out"
    (small_disk / "ballast").write_bytes(b"x" * 230_000)
    options = {"prune": ["--keep", 0.6, "--heal-minutes", 0], "quantize": ["--scheme", "w8"]}.get(verb, [])
    if verb == "data":
        (here / "talk.txt").write_text("\n".join(f"what is {n}\n{n} is a number\n" for n in range(5000)))
        typed = [verb, "talk.txt", "--out", out]
    else:
        typed = [verb, tiny_checkpoint, "--data", tiny_data, "--out", out, *options]
    code = type_in(*typed)
    said = capfd.readouterr().err
    assert code == 2, said
    assert said.splitlines()[-1].startswith("compress: --out ")
    assert "the disk is full" in said
    assert "Traceback" not in said
    assert os.listdir(small_disk) == ["ballast"]


def test_ctrl_c_ends_with_130_and_nothing_half_written(tmp_path: Path) -> None:
    """An interrupted stage used to leave a folder that the next one took for whole."""
    lines = (f"what is {n}\n{n} is a number between {n - 1} and {n + 1}\n" for n in range(40_000))
    (tmp_path / "talk.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "chitchat_compress", "data", "talk.txt", "--out", "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".out.partial-*")):
            assert process.poll() is None, "it ended before it wrote anything"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "compress: interrupted"
    assert "Traceback" not in said
    assert os.listdir(tmp_path) == ["talk.txt"]
