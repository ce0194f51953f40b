"""Take a stand-in of each family through every verb, as its user would type them: `python tests/field/walk.py`.

Each command runs as `python -m chitchat_compress …` in a process of its own; with `--in-process` all but the server are
calls in this one, which imports torch once. The first one that fails ends the walk, with what it said. `--out` keeps
what was made; without it everything goes into a folder that is removed.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stand_ins import FAMILIES, StandIn

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Walk:
    """The commands of one family and their figures by step."""

    family: str
    out: Path
    in_process: bool = False
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> dict[str, dict[str, Any]]:
        """Make the stand-in and run every verb on it; the figures of each step. Raises `SystemExit` for a failure."""
        stand_in = FAMILIES[self.family](self.out / "source")
        for step, arguments, typed in self._steps(stand_in):
            self._verb(step, arguments, typed)
        self._serve()
        return self.figures

    def _steps(self, stand_in: StandIn) -> Iterator[tuple[str, list[str], str | None]]:
        source, elsewhere = str(stand_in.checkpoint), []
        if stand_in.tokenizer is not None:
            elsewhere = ["--tokenizer", str(stand_in.tokenizer)]
        at = {
            name: str(self.out / name)
            for name in ("data", "tuned", "pruned", "w8", "w4", "bundle-fp32", "bundle-w8", "bundle-w4")
        }
        data = ["--data", at["data"]]
        yield "info", ["info", source, *elsewhere], None
        yield (
            "data",
            [
                "data",
                str(stand_in.corpus),
                "--tokenizer",
                str(stand_in.tokenizer or source),
                "--validation",
                "0.3",
                "--out",
                at["data"],
            ],
            None,
        )
        yield (
            "train",
            [
                "train",
                at["data"],
                "--init",
                source,
                *elsewhere,
                "--epochs",
                "2",
                "--batch-size",
                "8",
                "--out",
                at["tuned"],
            ],
            None,
        )
        yield (
            "prune",
            [
                "prune",
                source,
                *elsewhere,
                *data,
                "--keep",
                "0.7",
                "--candidates",
                "1",
                "--heal-epochs",
                "0.5",
                "--out",
                at["pruned"],
            ],
            None,
        )
        yield "quantize w8", ["quantize", at["pruned"], *data, "--scheme", "w8", "--out", at["w8"]], None
        yield (
            "quantize w4",
            ["quantize", source, *elsewhere, *data, "--scheme", "w4", "--method", "rtn", "--out", at["w4"]],
            None,
        )
        yield "export fp32", ["export", source, *elsewhere, *data, "--out", at["bundle-fp32"]], None
        yield "export w8", ["export", at["w8"], *data, "--out", at["bundle-w8"]], None
        yield "export w4", ["export", at["w4"], "--out", at["bundle-w4"]], None
        yield "generate", ["generate", source, *elsewhere, "--length", "12"], None
        yield "generate w4", ["generate", at["bundle-w4"], "--prompt", "ok", "--length", "12"], None
        yield "chat", ["chat", at["bundle-w8"], "--length", "12", "--seed", "1"], "ok\n/quit\n"
        yield "eval", ["eval", source, *elsewhere, *data, "--samples", "4"], None
        yield "eval w8", ["eval", at["bundle-w8"], *data, "--samples", "4", "--teacher", at["bundle-fp32"]], None

    def _verb(self, step: str, arguments: list[str], typed: str | None) -> None:
        run = self._call if self.in_process else self._start
        code, said, errors = run([*arguments, "--json"], typed or "")
        if code:
            raise SystemExit(f"{self.family}, {step}: exit code {code}\n{' '.join(arguments)}\n{errors}")
        self.figures[step] = json.loads(said.splitlines()[-1])
        print(f"{self.family}: {step}", flush=True)

    def _start(self, arguments: list[str], typed: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a process."""
        command = [sys.executable, "-m", "chitchat_compress", *arguments]
        done = subprocess.run(command, input=typed, capture_output=True, text=True, env=environment(), cwd=self.out)
        return done.returncode, done.stdout, done.stderr

    def _call(self, arguments: list[str], typed: str) -> tuple[int, str, str]:
        """The same of a call."""
        from chitchat_compress.cli import app

        said, errors, code = io.StringIO(), io.StringIO(), 0
        sys.argv, sys.stdin = ["compress", *arguments], io.StringIO(typed)
        with contextlib.chdir(self.out), contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            try:
                app.main()
            except SystemExit as left:
                code = int(left.code or 0)
        return code, said.getvalue(), errors.getvalue()

    def _serve(self) -> None:
        command = [
            sys.executable,
            "-m",
            "chitchat_compress",
            "serve",
            str(self.out / "bundle-w8"),
            "--port",
            "0",
            "--json",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=self.out) as server:
            try:
                assert server.stdout is not None
                url = json.loads(server.stdout.readline())["url"]
                body = {"messages": [{"role": "user", "content": "ok"}], "max_tokens": 8, "temperature": 0}
                request = urllib.request.Request(
                    f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self.figures["serve"] = json.load(answer)
            finally:
                server.terminate()
        print(f"{self.family}: serve", flush=True)


def environment() -> dict[str, str]:
    """Ours, with the project importable wherever the command runs, and no question to the hub."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder that keeps what was made")
    parser.add_argument("--family", choices=list(FAMILIES), action="append", help="only this one (may be repeated)")
    parser.add_argument("--in-process", action="store_true", help="call the verbs in this process")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for family in asked.family or FAMILIES:
            folder = (asked.out or Path(scratch)) / family
            folder.mkdir(parents=True, exist_ok=True)
            figures = Walk(family, folder.resolve(), asked.in_process).run()
            (folder / "figures.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
