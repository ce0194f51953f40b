"""`python -m bench.gpu.check`: everything of ours that needs a GPU, on a machine that has one, torch, and no registry.

    --receive   take what has arrived of the wheels that `make gpu-wheels` cut; verify it, keep it
    --run       join and install them; run the tests marked cuda; export the standard work for both devices; bench it
                beside transformers' generate in float32 and float16

Without either it does both. The output folder (`--out`, else $OUT, else out/gpu-check) holds gpu-check.json, log.txt
and the bench's report. It ends within `--minutes`, and what a step that is cut off had done is kept. Exit codes: 0 all
of it worked, 1 something did not, 2 something is missing: a line each. It needs nothing but Python until it has
installed. `--rehearse` goes through all of it without a GPU: what needs one is skipped, and says so.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from bench.gpu.machine import ROOT, ask_torch, environment, install, lacking
from bench.gpu.parts import MANIFEST, Manifest, Store
from chitchat.errors import BadInput, ChitchatError
from serve.digest import sha256

GRACE_S = 20.0  # for a step that was told to end: the bench writes what it has
PACKAGES = ("chitchat", "compress", "serve", "export", "bench", "chitchat_compress")
PEERS = "torch-fp16"
MODELS = ("checkpoint", "fp32", "w4")  # of `bench.run.standard.ROWS`, whose module needs what is not installed yet
RUNTIMES = (
    "import sys; from serve.quiet import load; ort = load('onnxruntime'); import torch, transformers, datasets, onnx; "
    "from serve.graph_selection import find_providers; found = find_providers(); print('onnxruntime', ort.__version__, "
    "*found, 'torch', torch.__version__, 'transformers', transformers.__version__); "
    "sys.exit('CUDAExecutionProvider' not in found and '--rehearse' not in sys.argv)"
)


@dataclass
class Result:
    """How a step went: `trouble` is "" where it went well."""

    name: str
    seconds: float
    trouble: str


class Check:
    """The steps, one after the other, within a time, into one log."""

    def __init__(self, out: Path, variables: dict[str, str], ends: float) -> None:
        self.out, self._variables, self._ends = out, variables, ends
        self.results: list[Result] = []

    def run(self, name: str, *command: str) -> Result:
        """Run one step, a command; what it says goes to the screen and into log.txt."""
        started = time.monotonic()
        print(f"== {name}", flush=True)
        with (self.out / "log.txt").open("ab") as log:
            log.write(f"== {name}: {' '.join(command)}\n".encode())
            trouble = self._run(command, log)
        result = Result(name, round(time.monotonic() - started, 1), trouble)
        self.results.append(result)
        return result

    def _run(self, command: Sequence[str], log: IO[bytes]) -> str:
        if (left := self._ends - time.monotonic()) <= 0:
            return "no time was left for it"
        log.flush()
        position = log.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env=self._variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        cut = False
        try:
            process.wait(left)
        except subprocess.TimeoutExpired:
            cut = True
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            process.kill()
            process.wait()
        with (self.out / "log.txt").open("rb") as written:
            written.seek(position)
            lines = written.read().decode(errors="replace").splitlines()
        print("\n".join(lines[-40:]), flush=True)
        if cut:
            return "was cut off: the time was up"
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no word why")
        return f"ended with exit code {process.returncode}: {last}" if process.returncode else ""


def run(store: Store, out: Path, minutes: float, *, rehearse: bool) -> int:
    """Everything behind `--run`; the exit code. Raises `BadInput` with a line for each thing that is missing."""
    ends = time.monotonic() + minutes * 60 - GRACE_S
    torch = ask_torch()
    lines, wheels = [], []
    try:
        lines += lacking(Manifest.read(store.folder).python, torch, gpu=not rehearse)
        wheels = store.join()
    except BadInput as error:
        lines.append(str(error))
    if lines:
        raise BadInput("\n".join(lines))
    out.mkdir(parents=True, exist_ok=True)
    # What is made of other wheels, or by other code, is not used again.
    site = store.folder / f"site-{digest([store.folder / MANIFEST])}"
    models = store.folder / f"models-{digest(path for package in PACKAGES for path in (ROOT / package).rglob('*.py'))}"
    install(wheels, site)
    check = Check(out, environment(site, torch), ends)
    python, extra = sys.executable, ("--rehearse",) if rehearse else ()
    check.run("runtimes", python, "-c", RUNTIMES, *extra)
    tested = _tests(check, store.folder / "tests.xml", rehearse=rehearse)
    check.run("export", python, "-m", "bench.run.standard", str(models), *MODELS, "--target", "cpu+cuda")
    rows = _bench(check, models, rehearse=rehearse)
    summary = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": rehearse,
        "machine": {name: torch[name] for name in ("gpu", "torch", "cuda")} | {"python": sys.version.split()[0]},
        "steps": [vars(result) for result in check.results],
        "tests": tested,
        "rows": rows,
    }
    (out / "gpu-check.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for result in check.results:
        print(f"{result.name:<10} {result.seconds:6.1f} s  {result.trouble or 'done'}")
    return int(any(result.trouble for result in check.results))


def digest(files: Iterable[Path]) -> str:
    """A short name for what files hold."""
    return hashlib.sha256("".join(map(sha256, sorted(files))).encode()).hexdigest()[:12]


def _tests(check: Check, report: Path, *, rehearse: bool) -> dict[str, int]:
    """Run the tests marked cuda; how many ran and were skipped. One that is skipped where a GPU is has failed."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")]
    report.unlink(missing_ok=True)
    options = ("-m", "cuda", "-W", "default", "-p", "no:cacheprovider", "--junitxml", str(report))
    result = check.run("tests", sys.executable, "-m", "pytest", *options, *map(str, files))
    if not report.is_file():
        return {}
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    if counts["skipped"] and not rehearse and not result.trouble:
        result.trouble = f"{counts['skipped']} of {counts['tests']} were skipped; log.txt says why"
    return counts


def _bench(check: Check, models: Path, *, rehearse: bool) -> list[dict[str, Any]]:
    """Run the bench on what was exported; the figures of its rows. A row that was lost is trouble, where a GPU is."""
    report = check.out / "report"
    work = ["--out", str(report), "--device", "cpu,cuda", "--peers", PEERS]
    if rehearse:
        work += ["--repetitions", "2"]
    names = [str(models / name) for name in MODELS]
    result = check.run("bench", sys.executable, "-m", "chitchat_compress", "bench", *names, *work)
    if not (report / "report.json").is_file():
        return []
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))
    keys = ("name", "device", "ttft_ms_p50", "tpot_ms_p50", "tokens_per_s", "ratio", "device_mb", "error")
    rows = [{key: row[key] for key in keys} for row in found["rows"]]
    lost = [f"{row['name']}: {row['error']}" for row in rows if row["error"]]
    if lost and not rehearse and not result.trouble:
        result.trouble = "; ".join(lost)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.check", description="Check what needs a GPU.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    out = Path(os.environ.get("OUT") or "out/gpu-check")
    parser.add_argument("--wheels", type=Path, default=Path("wheels"), help="where they arrive (default: %(default)s)")
    parser.add_argument("--store", type=Path, default=cache / "chitchat-gpu-check", help="where they are kept")
    parser.add_argument("--out", type=Path, default=out, help="folder of the report (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=10, help="all of --run ends within them (default: %(default)g)"
    )
    parser.add_argument("--receive", action="store_true", help="take what has arrived, and no more")
    parser.add_argument("--run", action="store_true", help="run on what was received before")
    parser.add_argument("--rehearse", action="store_true", help="go through all of it without a GPU")
    options = parser.parse_args(arguments)
    store, both = Store(options.store), options.receive == options.run
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a background job; steps would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if options.minutes <= 1:
            raise BadInput(f"--minutes {options.minutes:g}: give more than 1")
        if both or options.receive:
            new = store.receive(options.wheels)
            missing = store.missing()
            still = f"{', '.join(missing)} still to come" if missing else "all of them are here"
            print(f"{options.wheels}: {new} new parts; {still}", flush=True)
        if both or options.run:
            return run(store, options.out, options.minutes, rehearse=options.rehearse)
    except ChitchatError as error:
        for line in str(error).splitlines():
            print(f"gpu-check: {line}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
