"""serve runs where torch, transformers and the training side are absent: every module, and a real bundle."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(f"serve.{file.stem}" for file in (ROOT / "serve").glob("[!_]*.py"))

# Put before the code of a subprocess: what an edge box does not have cannot be imported.
BLOCK = """
import sys

ABSENT = {"torch", "transformers", "datasets", "onnx", "onnxscript", "onnx_ir", "optimum", "safetensors", "accelerate",
          "torch_pruning", "matplotlib", "pydantic", "chitchat", "compress", "export", "bench"}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not on an edge box")


sys.meta_path.insert(0, Absent())
"""


def command(code: str) -> list[str]:
    """The command of a subprocess that runs code behind the block."""
    return [sys.executable, "-W", "error", "-c", BLOCK + code]


def edge(code: str, *arguments: str) -> str:
    """Run code behind the block and give what it printed."""
    done = subprocess.run([*command(code), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint, exported."""
    from export.stage import export

    out = tmp_path_factory.mktemp("bundle") / "tiny"
    export(str(tiny_checkpoint), out)
    return out


def test_the_block_works() -> None:
    """Stops this file from passing because nothing is blocked."""
    with pytest.raises(AssertionError, match="torch is not on an edge box"):
        edge("import torch")


@pytest.mark.parametrize("module", [*MODULES, "serve.__main__"])
def test_every_module_is_imported_without_torch(module: str) -> None:
    """Stops an import of the training side from reaching the edge runtime, also by way of a library."""
    edge(f"import {module}")


def test_help_needs_no_runtime() -> None:
    """Stops --help from loading onnxruntime."""
    code = 'import serve.__main__ as m; sys.argv[0] = "serve"; assert not {"onnxruntime", "numpy"} & set(sys.modules)'
    edge(code)


def test_a_bundle_talks_in_the_terminal(bundle: Path) -> None:
    """Stops an edge box that imports and then cannot generate."""
    code = "from serve.__main__ import main; sys.exit(main([sys.argv[1], '--chat', '--threads', '1']))"
    done = subprocess.run(
        [*command(code), str(bundle)], input="hello\n\n/quit\n", cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "bot: " in done.stdout


def test_the_terminal_of_a_bundle_has_presets_and_saves(bundle: Path, tmp_path: Path) -> None:
    """Stops a chat on an edge box that lacks what the command line has."""
    code = "from serve.__main__ import main; sys.exit(main([sys.argv[1], '--chat', '--threads', '1', *sys.argv[2:]]))"
    words = [str(bundle), "--preset", "gpt2-chitchat", "--save", str(tmp_path / "talk.jsonl")]
    done = subprocess.run(
        [*command(code), *words], input="hello\n/show\n", cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "top_k               8\n" in done.stdout
    assert "history             3\n" in done.stdout
    (line,) = (tmp_path / "talk.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["options"]["max_new_tokens"] == 25
    words[-1] = str(tmp_path)
    done = subprocess.run([*command(code), *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "is a folder" in done.stderr


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    """One request."""
    body = {"messages": [{"role": "user", "content": "how are you"}], "max_tokens": 12, **fields}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_bundle_is_served_and_a_signal_ends_the_process_cleanly(bundle: Path, number: int, expected: int) -> None:
    """Stops any seam between bundle, engine, codec and server from breaking; and an exit code that alarms systemd."""
    code = "from serve.__main__ import main; sys.exit(main([sys.argv[1], '--port', '0', '--threads', '1']))"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command(code), str(bundle)], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("Serving tiny on http://127.0.0.1:"), line + process.stderr.read()
        with httpx.Client(base_url=line.split()[-1], trust_env=False, timeout=60) as client:
            assert client.get("/readyz").status_code == 200
            whole = chat(client, temperature=0).json()
            assert whole["model"] == "tiny"
            assert 1 <= whole["usage"]["completion_tokens"] <= 12
            text = whole["choices"][0]["message"]["content"]
            streamed = chat(client, temperature=0, stream=True).text.split("\n\n")
            values = [json.loads(event[6:]) for event in streamed if event.startswith("data: {")]
            assert "".join(value["choices"][0]["delta"].get("content", "") for value in values) == text
            seeded = [chat(client, seed=5).json()["choices"][0]["message"]["content"] for _ in range(2)]
            assert seeded[0] == seeded[1]
            long = chat(client, messages=[{"role": "user", "content": "tea " * 500}])
            assert long.json()["error"]["code"] == "context_length_exceeded"
        process.send_signal(number)
        assert process.wait(30) == expected
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{tmp}/missing"], "missing"),
        (["{bundle}", "--port", "70000"], "--port 70000"),
        (["{bundle}", "--port", "0", "--host", "203.0.113.1"], "--host 203.0.113.1"),
        (["{bundle}", "--queue", "-1"], "--queue -1"),
        (["{bundle}", "--slots", "0"], "--slots 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bundle: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    """Stops tracebacks on an edge box."""
    code = "from serve.__main__ import main; sys.exit(main(sys.argv[1:]))"
    given = [argument.format(tmp=tmp_path, bundle=bundle) for argument in arguments]
    done = subprocess.run([*command(code), *given], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
