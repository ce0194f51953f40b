"""The examples run, as they stand, from the first line to the last."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(script: str, folder: Path, *arguments: str) -> str:
    """What a script prints, run in a folder of its own; this checkout is what it imports."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def as_script(notebook: Path) -> str:
    """The code of a notebook; the last expression of each cell is printed, as a notebook shows it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return f"""
import ast
for source in {sources!r}:
    *body, last = ast.parse(source).body
    shown = isinstance(last, ast.Expr)
    exec(compile(ast.Module(body if shown else [*body, last], []), "cell", "exec"))
    if shown:
        print(repr(eval(compile(ast.Expression(last.value), "cell", "eval"))))
"""


@pytest.mark.slow
def test_the_notebook_goes_from_conversations_to_a_table(tmp_path: Path) -> None:
    """The first thing that a newcomer runs fails after an option was renamed."""
    printed = run(as_script(ROOT / "examples" / "compress.ipynb"), tmp_path)
    assert "bot: " in printed
    report = json.loads((tmp_path / "out" / "example" / "report" / "report.json").read_text())
    assert [row["error"] for row in report["rows"]] == [None] * 3
    assert report["rows"][2]["file_mb"] < 0.5 * report["rows"][0]["file_mb"]


def test_the_notebook_is_committed_without_outputs() -> None:
    """Outputs of one machine are read as figures of all, and every run changes the file."""
    cells = json.loads((ROOT / "examples" / "compress.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_a_model_is_pruned_in_memory(
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The script names arguments that the function does not take any more."""
    script = str(ROOT / "examples" / "prune_in_memory.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, str(tiny_checkpoint), str(tiny_corpus)])
    runpy.run_path(script, run_name="__main__")
    before, after = capsys.readouterr().out.splitlines()
    parameters = [int(line.split()[1].replace(",", "")) for line in (before, after)]
    assert parameters[1] < 0.6 * parameters[0]


def test_the_client_talks_to_a_server(tmp_path: Path, tiny_bundle: Path) -> None:
    """An event of the stream that the client does not know ends the conversation in a traceback."""
    command = [sys.executable, "-m", "chitchat_compress", "serve", str(tiny_bundle), "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = json.loads(server.stdout.readline())["url"]
        client = [sys.executable, str(ROOT / "examples" / "client.py"), url]
        done = subprocess.run(client, input="hello\nhow are you\n\n", capture_output=True, text=True)
        server.terminate()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bot: ") == 2
