"""`python -m bench.run.speed --out DIR`: `compress bench` on the standard work, with every peer that is installed.

The work and its models are `bench.run.standard`'s, the measuring is `compress bench`'s: this only names the rows. What
a process costs beside its speed (`bench.machine.footprint`) is added as footprint.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.report.document import print_table
from bench.run.options import BenchOptions
from bench.run.stage import bench
from bench.run.standard import ROWS, make_form
from chitchat.errors import ChitchatError

PROMPT_TOKENS = NEW_TOKENS = 64
STARTS = 5
SCENARIOS = ("cold-start", "together")
# Its integers come from conversations, which this work has none of; they are those of our own rows.
PEERS = "torch-no-cache,torch-int8,optimum,llama.cpp,ctranslate2,openvino,onnxruntime-genai:fp32"
FOOTPRINTS = ("w8", "w8a8", "w4")


def speed(out: Path, options: BenchOptions) -> dict[str, Any]:
    """Measure everything into `out/report`, made anew, and give the report."""
    paths = {form: make_form(out / "models", form) for form in ROWS}
    report = bench([str(path) for path in paths.values()], out / "report", options=options)
    found = {name: footprint(paths[name], report["environment"]["threads"]) for name in FOOTPRINTS}
    (out / "footprint.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return report


def footprint(path: Path, threads: int) -> dict[str, float]:
    """Memory, idle CPU and what is spent outside onnxruntime, each in fresh processes; medians."""
    command = [sys.executable, "-m", "bench.machine.footprint", str(path), str(threads)]
    root = Path(__file__).resolve().parents[2]
    runs = [subprocess.run(command, cwd=root, capture_output=True, text=True, check=True) for _ in range(STARTS)]
    figures = [json.loads(run.stdout.splitlines()[1]) for run in runs]
    return {key: float(np.median([run[key] for run in figures])) for key in figures[0]}


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.run.speed", description="Time the standard work.")
    parser.add_argument("--out", type=Path, default=Path("out/speed"), help="folder (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of every runtime (default: the cores)")
    parser.add_argument("--peers", default=PEERS, help="as of compress bench (default: %(default)s)")
    parser.add_argument("--peers-python", metavar="PYTHON", help="interpreter of an environment with the peers")
    parser.add_argument("--portable-python", metavar="PYTHON", help="interpreter of the environment with optimum")
    options = parser.parse_args(arguments)
    work = BenchOptions(
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
        repetitions=options.repeats,
        threads=options.threads,
        scenarios=SCENARIOS,
        peers=options.peers,
        peers_python=options.peers_python,
        portable_python=options.portable_python,
    )
    try:
        print_table(speed(options.out, work))
    except ChitchatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
