"""`python -m bench.speed --out DIR`: the standard work, ours beside transformers and llama.cpp, in one run.

Every model is loaded in a process of its own; then all take turns, round after round, with one prompt a round that is
the same for all, and once a round the memory's bandwidth is taken. Ratios are taken within a round, and their medians
are what the targets are held against. Raw samples are kept in speed.json. The work itself is `bench.standard`'s.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.bandwidth import reader
from bench.environment import environment, load_average
from bench.latency import Job, WorkerProcess, settle
from chitchat.errors import BadInput, ChitchatError
from serve.bundle import Bundle

PROMPT_TOKENS = NEW_TOKENS = 64
WARMUPS = 2
LEAST_REPEATS = 7
COLD_STARTS = 5

Samples = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Ratio:
    """A target: `ours` must be at least `least` times as fast as `other`, by `figure`; None for no target."""

    ours: str
    other: str
    figure: str
    least: float | None


RATIOS = (
    Ratio("fp32", "transformers fp32", "tokens/s", 2.0),
    Ratio("w8", "llama.cpp Q8_0", "tokens/s", 1.15),
    Ratio("w8", "llama.cpp Q8_0", "prefill", 1.2),
    Ratio("w8a8", "llama.cpp Q8_0", "tokens/s", None),
    Ratio("w8a8", "llama.cpp Q8_0", "prefill", None),
    Ratio("w4", "llama.cpp Q4_0", "tokens/s", 1.45),
    Ratio("w4 int8 cache", "llama.cpp Q4_0", "tokens/s", None),
    Ratio("w4", "llama.cpp Q4_0", "prefill", None),
    Ratio("w4, 4 at once", "w4", "tokens/s in sum", 1.9),
    Ratio("w8a8, 4 at once", "w8a8", "tokens/s in sum", None),
)
CEILING = {"w8": 0.65, "w4": 0.5}  # share of the memory ceiling that decoding must reach


def speed(out: Path, repeats: int, threads: int, peers_python: str | None) -> dict[str, Any]:
    """Measure everything, write `out/speed.json` and `out/speed.md`, and give the report."""
    from bench.standard import VOCAB, make_standard

    if repeats < LEAST_REPEATS:
        raise BadInput(f"--repeats {repeats}: give at least {LEAST_REPEATS}, medians of fewer say little")
    paths = make_standard(out / "models", peers_python=peers_python, threads=threads)
    random = np.random.default_rng(0)
    prompts = random.integers(5, VOCAB, size=(WARMUPS + repeats, PROMPT_TOKENS)).tolist()
    before = load_average()
    samples, bandwidth = take_turns(speed_jobs(paths), prompts, threads, peers_python)
    report = {
        "environment": environment(threads) | {"load_average_before": before},
        "repeats": repeats,
        "rows": [row_of(name, taken) for name, taken in samples.items()],
        "ratios": [ratio_row(ratio, samples) for ratio in RATIOS if {ratio.ours, ratio.other} <= samples.keys()],
        "bandwidth_gb_per_s": bandwidth,
        "ceiling": [ceiling_row(name, paths[name], samples[name], bandwidth) for name in CEILING],
        "footprint": [footprint(name, paths[name], threads) for name in ("w8", "w8a8", "w4")],
        "samples": samples,
    }
    (out / "speed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "speed.md").write_text(as_markdown(report), encoding="utf-8")
    return report


def speed_jobs(paths: dict[str, Path]) -> list[Job]:
    """The models in the order of their turns: each of ours next to the one it is compared with."""
    kinds = [
        ("transformers fp32", "checkpoint", "checkpoint"),
        ("fp32", "fp32", "bundle"),
        ("w8", "w8", "bundle"),
        ("llama.cpp Q8_0", "Q8_0", "llama.cpp"),
        ("w8a8", "w8a8", "bundle"),
        ("w4", "w4", "bundle"),
        ("llama.cpp Q4_0", "Q4_0", "llama.cpp"),
        ("w4 int8 cache", "w4 int8 cache", "bundle"),
        ("w4, 4 at once", "w4", "together"),
        ("w8a8, 4 at once", "w8a8", "together"),
    ]
    return [Job(name, str(paths[path]), kind, end_of_turn_id=3) for name, path, kind in kinds if path in paths]


def take_turns(
    jobs: Sequence[Job], prompts: Sequence[Sequence[int]], threads: int, peers_python: str | None
) -> tuple[Samples, list[float]]:
    """Give the samples of every job, one a round after the warm-up, and the bandwidth of every round in GB/s."""
    samples: Samples = {job.name: [] for job in jobs}
    bandwidth, read = [], reader(threads)
    with ExitStack() as stack:
        workers = []
        for job in jobs:
            python = peers_python if job.kind == "llama.cpp" and peers_python else sys.executable
            worker = WorkerProcess((python, "-m", "bench.worker"), threads, timeout_s=600)
            stack.callback(worker.close)
            worker.ask({"op": "load", "spec": job.spec, "kind": job.kind, "threads": threads, "device": "cpu"})
            workers.append(worker)
        for place, prompt in enumerate(tqdm(prompts, desc="speed", unit="round", disable=None)):
            for job, worker in zip(jobs, workers, strict=True):
                settle()
                request = {"op": "sample", "prompt": prompt, "new_tokens": NEW_TOKENS}
                sample = worker.ask(request | {"end_of_turn_id": job.end_of_turn_id})
                if place >= WARMUPS:
                    samples[job.name].append(sample)
            settle()
            bandwidth.append(read())
    return samples, bandwidth[WARMUPS:]


def row_of(name: str, taken: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one model's samples."""
    return {
        "name": name,
        "prefill_ms": float(np.median([sample["ttft_ms"] for sample in taken])),
        "decode_ms": float(np.median([np.mean(sample["token_ms"]) for sample in taken])),
        "tokens_per_s": float(np.median([tokens_per_s(sample) for sample in taken])),
    }


def tokens_per_s(sample: dict[str, Any]) -> float:
    """New tokens over prompt and decode time."""
    return len(sample["ids"]) / (sample["ttft_ms"] + sum(sample["token_ms"])) * 1e3


def ratio_row(ratio: Ratio, samples: Samples) -> dict[str, Any]:
    """The median over the rounds of the ratio within a round, its quartiles, and the target."""
    figures: dict[str, Callable[[dict[str, Any]], float]] = {"prefill": lambda sample: 1 / sample["ttft_ms"]}
    figure = figures.get(ratio.figure, tokens_per_s)
    pairs = zip(samples[ratio.ours], samples[ratio.other], strict=True)
    ratios = [figure(ours) / figure(other) for ours, other in pairs]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {
        "ours": ratio.ours,
        "against": ratio.other,
        "figure": ratio.figure,
        "ratio": float(middle),
        "quartiles": [float(low), float(high)],
        "least": ratio.least,
    }


def ceiling_row(name: str, path: Path, taken: Sequence[dict[str, Any]], bandwidth: Sequence[float]) -> dict[str, Any]:
    """How near decoding comes to reading every weight once a token, as fast as memory gives it."""
    weight_bytes = Bundle.open(path).manifest.graphs["cpu"].weight_bytes
    shares = []
    for sample, rate in zip(taken, bandwidth, strict=True):
        shares.append(weight_bytes / (rate * 1e9) / (float(np.median(sample["token_ms"])) / 1e3))
    return {"name": name, "weight_mb": weight_bytes / 1e6, "share": float(np.median(shares)), "least": CEILING[name]}


def footprint(name: str, path: Path, threads: int) -> dict[str, Any]:
    """Memory, cold start, idle CPU and what is spent outside onnxruntime, each in fresh processes; medians."""
    starts, figures = [], []
    for _ in range(COLD_STARTS):
        started = time.perf_counter()
        command = [sys.executable, "-m", "bench.footprint", str(path), str(threads)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1]) as process:
            assert process.stdout is not None
            process.stdout.readline()
            starts.append(time.perf_counter() - started)
            figures.append(json.loads(process.stdout.readline()))
    middle = {key: float(np.median([each[key] for each in figures])) for key in figures[0]}
    limit = 1.3 * middle["file_mb"] + 90
    return {"name": name, "cold_start_s": float(np.median(starts)), "rss_limit_mb": limit, **middle}


def as_markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines = ["| model | prefill 64, ms | decode, ms/token | new tokens/s in all |", "| --- | ---: | ---: | ---: |"]
    for row in report["rows"]:
        lines.append(
            f"| {row['name']} | {row['prefill_ms']:.1f} | {row['decode_ms']:.2f} | {row['tokens_per_s']:.0f} |"
        )
    lines += ["", "| ours | against | by | ratio (quartiles) | at least |", "| --- | --- | --- | ---: | ---: |"]
    for row in report["ratios"]:
        low, high = row["quartiles"]
        least = f"{row['least']:.2f}" if row["least"] else "–"
        ratio = f"{row['ratio']:.2f} ({low:.2f}–{high:.2f})"
        lines.append(f"| {row['ours']} | {row['against']} | {row['figure']} | {ratio} | {least} |")
    for row in report["ceiling"]:
        lines.append(f"| {row['name']} | memory ceiling | decode | {row['share']:.0%} | {row['least']:.0%} |")
    lines += [
        "",
        "| model | file MB | resident MB (at most) | cold start s | outside onnxruntime | idle CPU |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["footprint"]:
        lines.append(
            f"| {row['name']} | {row['file_mb']:.1f} | {row['rss_mb']:.0f} ({row['rss_limit_mb']:.0f}) "
            f"| {row['cold_start_s']:.2f} | {row['outside_share']:.1%} | {row['idle_cpu_share']:.1%} |"
        )
    rate = np.median(report["bandwidth_gb_per_s"])
    lines += ["", f"{report['repeats']} rounds, {report['environment']['threads']} threads, {rate:.1f} GB/s.", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description="Time the standard work.")
    parser.add_argument("--out", type=Path, default=Path("out/speed"), help="folder (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every runtime (default: %(default)s)")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with the peers (make peers)")
    options = parser.parse_args(arguments)
    try:
        print(as_markdown(speed(options.out, options.repeats, options.threads, options.peers)))
    except ChitchatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
