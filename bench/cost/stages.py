"""What compressing costs: seconds, CPU seconds and peak memory of prune, quantize and export, at three sizes.

Random weights, conversations of random characters, and as many tokens as the stages read of a large data set (they read
no more of any): 16 k for calibration, 32 k for refitting, 20 k held out. Each stage runs in a process of its own.

    python -m bench.cost.stages FOLDER [--sizes 9,96,135] [--stages prune,w8,w4,export]

Checkpoints and data sets are made in FOLDER once. A Markdown table goes to stdout.
"""

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chitchat.architectures.registry import architecture_of, count_parameters
from chitchat.checkpoint import save_checkpoint
from chitchat.data.builder import build_dataset
from chitchat.data.options import DataOptions
from chitchat.lineage import Stage
from chitchat.system.folder import staged_folder
from chitchat.tokenizer import read_vocab_txt
from compress.prune.options import PruneOptions
from compress.prune.stage import prune
from compress.quantize.options import QuantizeOptions
from compress.quantize.stage import quantize
from export.stage import export
from serve.geometry import Geometry

SIZES = {
    "9": Geometry(layers=6, heads=5, head_dim=64, ffn=1280, vocab=4_096, context=256),
    "96": Geometry(layers=12, heads=12, head_dim=64, ffn=3072, vocab=13_317, context=300),
    "135": Geometry(layers=30, heads=9, head_dim=64, ffn=2304, vocab=26_000, context=512),
}
STAGES = ("prune", "w8", "w4", "export")
CONVERSATIONS, TURNS, TURN_TOKENS, HELD_OUT = 400, 8, 24, 0.27  # 56 k tokens to train on, 21 k held out
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FIRST_HAN, _HAN = 0x4E00, 4_000  # characters that conversations are made of


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
        checkpoint, data = make(options.folder, size)
        for stage, cost in measure(checkpoint, data, options.stages.split(",")):
            figures = f"{cost.seconds:.0f} | {cost.cpu_seconds:.0f} | {cost.peak_rss_bytes / 1e6:,.0f}"
            print(f"| {size} M | {count_parameters(SIZES[size]):,} | {stage} | {figures} |", flush=True)


def make(folder: Path, size: str, seed: int = 0) -> tuple[Path, Path]:
    """Make the checkpoint and the data set of a size where they are missing; their paths."""
    checkpoint, data, shape = folder / f"{size}m", folder / f"{size}m-data", SIZES[size]
    if not checkpoint.is_dir():
        torch.manual_seed(seed)
        architecture = architecture_of(shape)
        model = architecture.new_model(architecture.new_config(shape, bos_token_id=2, eos_token_id=3)).eval()
        with staged_folder(checkpoint, "checkpoint") as staging:
            vocab = staging / "vocab.txt"
            tokens = [*_SPECIALS, *(chr(_FIRST_HAN + index) for index in range(shape.vocab - len(_SPECIALS)))]
            vocab.write_text("\n".join(tokens) + "\n", encoding="utf-8")
            tokenizer = read_vocab_txt(vocab)
            vocab.unlink()
            save_checkpoint(staging, model, tokenizer, Stage("random weights", shape.as_json(), seed))
    if not data.is_dir():
        random = np.random.default_rng(seed)
        characters = random.integers(_HAN, size=(CONVERSATIONS, TURNS, TURN_TOKENS)) + _FIRST_HAN
        talks = ("\n".join("".join(map(chr, turn)) for turn in talk) for talk in characters)
        with tempfile.TemporaryDirectory() as corpora:
            corpus = Path(corpora) / "random.txt"
            corpus.write_text("\n\n".join(talks) + "\n", encoding="utf-8")
            build_dataset([str(corpus)], data, DataOptions(tokenizer=str(checkpoint), validation=HELD_OUT, seed=seed))
    return checkpoint, data


def measure(checkpoint: Path, data: Path, stages: Sequence[str]) -> Iterator[tuple[str, Cost]]:
    """Run the stages, one after another, each in a process of its own; `export` exports 8-bit integers."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as scratch:
        integers = Path(scratch) / "integers"
        for stage in stages:
            if stage == "export" and not integers.is_dir():
                _in_a_process(_quantize, checkpoint, data, integers, "w8", "rtn")
            work: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
                "prune": (_prune, (checkpoint, data, Path(scratch) / "pruned")),
                "w8": (_quantize, (checkpoint, data, Path(scratch) / "w8", "w8", "gptq")),
                "w4": (_quantize, (checkpoint, data, Path(scratch) / "w4", "w4", "gptq")),
                "export": (_export, (integers, data, Path(scratch) / "bundle")),
            }
            function, arguments = work[stage]
            yield stage, _in_a_process(function, *arguments)


def _in_a_process(function: Callable[..., None], *arguments: object) -> Cost:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_timed, function, arguments).result()


def _timed(function: Callable[..., None], arguments: Sequence[object]) -> Cost:
    """Imports are done by now."""
    started, cpu = time.monotonic(), _cpu_seconds()
    function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(time.monotonic() - started, _cpu_seconds() - cpu, peak)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _prune(checkpoint: Path, data: Path, out: Path) -> None:
    prune(str(checkpoint), data, out, PruneOptions(keep=0.5, heal_minutes=0))
    shutil.rmtree(out)


def _quantize(checkpoint: Path, data: Path, out: Path, scheme: Any, method: Any) -> None:
    quantize(str(checkpoint), data, out, QuantizeOptions(scheme=scheme, method=method))


def _export(checkpoint: Path, data: Path, out: Path) -> None:
    export(str(checkpoint), out, data=data)


if __name__ == "__main__":
    main()
