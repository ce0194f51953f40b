"""The standard work: one model that every runtime is timed on, in all its forms.

The model has GPT2-chitchat's geometry (12 layers of 768, 12 heads, context 300, a vocabulary of 13,317) and random
weights: speed depends on the shape alone, nobody's weights are needed, and anyone can make the same one. The work on
it: a prompt of 64 tokens, 64 new ones, greedy. What is timed and printed is `bench.run.speed`'s.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from chitchat.architectures.registry import architecture_of
from chitchat.checkpoint import save_checkpoint
from chitchat.data.builder import build_dataset
from chitchat.data.options import DataOptions
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
SHAPES = {WHOLE: SHAPE, HALF: HALF_SHAPE}
ROWS = (WHOLE, "fp32", "w8", "w8a8", "w4", "w4 int8 cache", "half w8", "half w4")
DROPOUT = 0.1  # in config.json, as transformers has it; nothing is trained
CONVERSATIONS, TURNS, TURN_TOKENS = 80, 8, 24
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FIRST_HAN = 0x4E00  # the vocabulary is the specials and as many Chinese characters as it takes


def make_standard(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Make what is missing in `folder` and give the paths by the names of `ROWS`: a checkpoint and its bundles.

    "half" is a checkpoint with half of the parameters, as pruning leaves it.
    """
    paths = {WHOLE: folder / WHOLE}
    for name in SHAPES:
        make_checkpoint(folder, name, seed)
    for form in ROWS[1:]:
        paths[form] = folder / form.replace(" ", "-")
        if not paths[form].is_dir():
            _make_bundle(folder, form, paths[form])
    return paths


def make_checkpoint(folder: Path, name: str, seed: int = 0) -> Path:
    """Make the checkpoint WHOLE or HALF in `folder`, and conversations in its ids, where they are missing; its path."""
    if not (folder / name).is_dir():  # complete or absent
        _make_checkpoint(folder / name, SHAPES[name], seed)
    if not _data(folder, name).is_dir():
        _make_data(folder / name, _data(folder, name), seed)
    return folder / name


def make_integers(folder: Path, name: str, scheme: Any) -> Path:
    """Quantize a checkpoint of `make_checkpoint`, unless it is done; the path of the quantized one."""
    out = folder / f"{name}-{scheme}-integers"
    if not out.is_dir():
        quantize(str(folder / name), _data(folder, name), out, QuantizeOptions(scheme=scheme, method="rtn"))
    return out


def _data(folder: Path, name: str) -> Path:
    return folder / f"{name}-data"


def _make_checkpoint(out: Path, shape: Geometry, seed: int) -> None:
    torch.manual_seed(seed)
    architecture = architecture_of(shape)
    model = architecture.new_model(architecture.new_config(shape, DROPOUT, bos_token_id=2, eos_token_id=3)).eval()
    with staged_folder(out, "checkpoint") as staging:
        save_checkpoint(staging, model, _make_tokenizer(staging), Stage("random weights", shape.as_json(), seed))


def _make_tokenizer(staging: Path) -> PreTrainedTokenizerFast:
    path = staging / "vocab.txt"
    tokens = [*_SPECIALS, *(chr(_FIRST_HAN + index) for index in range(VOCAB - len(_SPECIALS)))]
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = read_vocab_txt(path)
    path.unlink()
    return tokenizer


def _make_data(checkpoint: Path, out: Path, seed: int) -> None:
    """Conversations of random characters: what integers need ranges of, and nothing else is learnt from them."""
    random = np.random.default_rng(seed)
    talks = [[_random_turn(random) for _ in range(TURNS)] for _ in range(CONVERSATIONS)]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "random.txt"
        corpus.write_text("\n\n".join("\n".join(talk) for talk in talks) + "\n", encoding="utf-8")
        build_dataset([str(corpus)], out, DataOptions(tokenizer=str(checkpoint), seed=seed))


def _random_turn(random: np.random.Generator) -> str:
    return "".join(chr(_FIRST_HAN + int(index)) for index in random.integers(VOCAB - len(_SPECIALS), size=TURN_TOKENS))


def _make_bundle(folder: Path, form: str, out: Path) -> None:
    """Quantize, unless it is done, and export; `form` is a scheme, with "half" before or "int8 cache" behind it."""
    name = HALF if form.startswith(HALF) else WHOLE
    scheme, _, cache = form.removeprefix(HALF).strip().partition(" ")
    source = folder / name if scheme == "fp32" else make_integers(folder, name, scheme)
    export(str(source), out, _data(folder, name), ExportOptions(kv="int8" if cache else "float32"))
