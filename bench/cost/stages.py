"""What compressing costs: seconds, CPU seconds and peak memory of prune, quantize and export, at three sizes.

Random weights, conversations of random characters, and as many tokens as the stages read of a large data set (they read
no more of any): 16 k for calibration, 32 k for refitting, 12 k held out. Each stage runs in a process of its own.

    python -m bench.cost.stages FOLDER [--sizes 9,96,135] [--stages prune,w8,w4,export]

Checkpoints and data sets are made in FOLDER once. A Markdown table goes to stdout.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.run.standard import SHAPE, make_checkpoint
from chitchat.architectures.registry import count_parameters
from compress.prune.options import PruneOptions
from compress.prune.stage import prune
from compress.quantize.options import QuantizeOptions
from compress.quantize.stage import quantize
from export.stage import export
from serve.geometry import Geometry

SIZES = {
    "9": Geometry(layers=6, heads=5, head_dim=64, ffn=1280, vocab=4_096, context=256),
    "96": SHAPE,
    "135": Geometry(layers=30, heads=9, head_dim=64, ffn=2304, vocab=26_000, context=512),
}
STAGES = ("prune", "w8", "w4", "export")
# 56 k tokens to train on, 21 k held out
DATA: dict[str, Any] = {"conversations": 400, "characters": 4_000, "validation": 0.27}


@dataclass(frozen=True)
class Cost:
    """What a stage took: wall-clock and CPU seconds, its children's included, and the process's largest memory."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost.stages", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where checkpoints and data sets are made, or found")
    parser.add_argument("--sizes", default=",".join(SIZES), help="millions of parameters")
    parser.add_argument("--stages", default=",".join(STAGES))
    options = parser.parse_args(arguments)
    print("| model | parameters | stage | seconds | CPU seconds | peak MB |\n|---|---|---|---|---|---|")
    for size in options.sizes.split(","):
        checkpoint, data = options.folder / f"{size}m", options.folder / f"{size}m-data"
        make_checkpoint(checkpoint, data, SIZES[size], **DATA)
        for stage, cost in measure(checkpoint, data, options.stages.split(",")):
            figures = f"{cost.seconds:.0f} | {cost.cpu_seconds:.0f} | {cost.peak_rss_bytes / 1e6:,.0f}"
            print(f"| {size} M | {count_parameters(SIZES[size]):,} | {stage} | {figures} |", flush=True)


def measure(checkpoint: Path, data: Path, stages: Sequence[str]) -> Iterator[tuple[str, Cost]]:
    """Run the stages, one after another, each in a process of its own; `export` exports 8-bit integers."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as scratch:
        integers = Path(scratch) / "integers"
        if "export" in stages:
            quantize(str(checkpoint), data, integers, QuantizeOptions(scheme="w8", method="rtn"))
        for stage in stages:
            source = integers if stage == "export" else checkpoint
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                yield stage, pool.submit(_cost, stage, source, data, Path(scratch) / stage).result()


def _cost(stage: Any, source: Path, data: Path, out: Path) -> Cost:
    """Run one stage in this process, whose imports are done by now."""
    started, cpu = time.monotonic(), _cpu_seconds()
    if stage == "prune":
        prune(str(source), data, out, PruneOptions(keep=0.5, heal_minutes=0))
    elif stage == "export":
        export(str(source), out, data=data)
    else:
        quantize(str(source), data, out, QuantizeOptions(scheme=stage, method="gptq"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(time.monotonic() - started, _cpu_seconds() - cpu, peak)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
