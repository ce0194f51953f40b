"""The standard work: one model that every runtime is timed on, in all its forms.

The model has GPT2-chitchat's geometry (12 layers of 768, 12 heads, context 300, a vocabulary of 13,317) and random
weights: speed depends on the shape alone, nobody's weights are needed, and anyone can make the same one. The work on
it: a prompt of 64 tokens, 64 new ones, greedy. What is timed and printed is `bench.run.speed`'s.

    python -m bench.run.standard FOLDER FORM … [--target cpu+cuda]      make forms of it, names of `ROWS`
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chitchat.architectures.registry import architecture_of
from chitchat.checkpoint import save_checkpoint
from chitchat.data.builder import build_dataset
from chitchat.data.options import DataOptions
from chitchat.errors import ChitchatError
from chitchat.lineage import Stage
from chitchat.system.folder import staged_folder
from chitchat.tokenizer import read_vocab_txt
from compress.quantize.options import QuantizeOptions
from compress.quantize.stage import quantize
from export.options import ExportOptions
from export.stage import export
from serve.geometry import Geometry

VOCAB = 13_317
LAYERS, WIDTH, HEADS, CONTEXT = 12, 768, 12, 300
WHOLE, HALF = "checkpoint", "half"
SHAPE = Geometry(LAYERS, HEADS, WIDTH // HEADS, 4 * WIDTH, VOCAB, CONTEXT)
HALF_SHAPE = replace(SHAPE.with_heads(9), layers=10, ffn=4 * 576)  # 0.498 of the parameters
ROWS = (WHOLE, "fp32", "w8", "w8a8", "w4", "w4 int8 cache", "half w8", "half w4")
DROPOUT = 0.1  # in config.json, as transformers has it; nothing is trained
CONVERSATIONS, TURNS, TURN_TOKENS = 80, 8, 24
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FIRST_HAN = 0x4E00  # the vocabulary is the specials and as many Chinese characters as it takes


def make_form(folder: Path, form: str, target: Any = "cpu") -> Path:
    """Make one of `ROWS`, and what it is made of, where it is missing in `folder`; its path.

    A form is the checkpoint, or a bundle for `target`: of a scheme, with "half" before (the checkpoint of half of the
    parameters, as pruning leaves it) or "int8 cache" behind it.
    """
    name = HALF if form.startswith(HALF) else WHOLE
    checkpoint, data, out = folder / name, folder / f"{name}-data", folder / form.replace(" ", "-")
    make_checkpoint(checkpoint, data, HALF_SHAPE if name == HALF else SHAPE)
    if form != WHOLE and not out.is_dir():  # complete or absent
        scheme, _, cache = form.removeprefix(HALF).strip().partition(" ")
        source = checkpoint if scheme == "fp32" else _make_integers(checkpoint, data, scheme)
        export(str(source), out, data, ExportOptions(kv="int8" if cache else "float32", target=target))
    return out


def make_checkpoint(
    checkpoint: Path,
    data: Path,
    shape: Geometry,
    *,
    conversations: int = CONVERSATIONS,
    characters: int | None = None,
    validation: float = 0.05,
) -> None:
    """Make a checkpoint of random weights, and a data set of random characters in its ids, where they are missing.

    Integers need ranges of the conversations, and nothing else is learnt from them: `conversations` of them, of the
    first `characters` of the vocabulary (None: all), of which the share `validation` is held out.
    """
    if not checkpoint.is_dir():
        torch.manual_seed(0)
        architecture = architecture_of(shape)
        model = architecture.new_model(architecture.new_config(shape, DROPOUT, bos_token_id=2, eos_token_id=3)).eval()
        with staged_folder(checkpoint, "checkpoint") as staging, tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "vocab.txt"
            tokens = [*_SPECIALS, *(chr(_FIRST_HAN + index) for index in range(shape.vocab - len(_SPECIALS)))]
            path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
            save_checkpoint(staging, model, read_vocab_txt(path), Stage("random weights", shape.as_json(), 0))
    if not data.is_dir():
        known = characters or shape.vocab - len(_SPECIALS)
        said = _FIRST_HAN + np.random.default_rng(0).integers(known, size=(conversations, TURNS, TURN_TOKENS))
        talks = ("\n".join("".join(map(chr, turn)) for turn in talk) for talk in said)
        options = DataOptions(tokenizer=str(checkpoint), validation=validation)
        with tempfile.TemporaryDirectory() as scratch:
            corpus = Path(scratch) / "random.txt"
            corpus.write_text("\n\n".join(talks) + "\n", encoding="utf-8")
            build_dataset([str(corpus)], data, options)


def _make_integers(checkpoint: Path, data: Path, scheme: Any) -> Path:
    """Quantize a checkpoint of `make_checkpoint`, unless it is done; the path of the quantized one."""
    out = checkpoint.with_name(f"{checkpoint.name}-{scheme}-integers")
    if not out.is_dir():
        quantize(str(checkpoint), data, out, QuantizeOptions(scheme=scheme, method="rtn"))
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.run.standard", description="Make the standard work.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("forms", nargs="+", choices=ROWS)
    parser.add_argument("--target", default="cpu", help="graphs of a bundle, as of compress export")
    options = parser.parse_args(arguments)
    try:
        for form in options.forms:
            make_form(options.folder, form, options.target)
    except ChitchatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
