"""The standard work: one model that every runtime is timed on, in all its forms.

The model has GPT2-chitchat's geometry (12 layers of 768, 12 heads, context 300, a vocabulary of 13,317) and random
weights: speed depends on the shape alone, nobody's weights are needed, and anyone can make the same one. The work on
it: a prompt of 64 tokens, 64 new ones, greedy. What is timed and printed is `bench.speed`'s.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bench.peers import GGUF_TYPES
from chitchat.checkpoint import save_checkpoint
from chitchat.data.builder import build_dataset
from chitchat.errors import BadInput, WorkFailed
from chitchat.folder import staged_folder
from chitchat.lineage import Stage
from chitchat.tokenizer import read_vocab_txt
from compress.quantize.options import QuantizeOptions
from compress.quantize.stage import quantize
from export.stage import export

VOCAB = 13_317
LAYERS, WIDTH, HEADS, CONTEXT = 12, 768, 12, 300
FORMS = ("fp32", "w8", "w8a8", "w4", "w4 int8 cache")
CONVERSATIONS, TURNS, TURN_TOKENS = 80, 8, 24
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FIRST_HAN = 0x4E00  # the vocabulary is the specials and as many Chinese characters as it takes


def make_standard(folder: Path, seed: int = 0, peers_python: str | None = None, threads: int = 2) -> dict[str, Path]:
    """Make what is missing in `folder` and give the paths by name.

    `checkpoint`; those of `FORMS`: bundles; with the interpreter of an environment that has llama.cpp, `F32`, `Q8_0`
    and `Q4_0`: GGUF files. Raises BadInput for an interpreter without it.
    """
    paths = {"checkpoint": folder / "checkpoint"}
    if not paths["checkpoint"].is_dir():  # complete or absent
        _make_checkpoint(paths["checkpoint"], seed)
    if not (folder / "data").is_dir():
        _make_data(paths["checkpoint"], folder / "data", seed)
    for form in FORMS:
        paths[form] = bundle_path(folder, form)
        if not paths[form].is_dir():
            _make_bundle(folder, form)
    if peers_python is not None:
        files = {kind: folder / f"{kind}.gguf" for kind in GGUF_TYPES}
        if not all(path.is_file() for path in files.values()):
            _make_gguf(peers_python, paths["checkpoint"], folder, threads)
        paths |= files
    return paths


def bundle_path(folder: Path, form: str) -> Path:
    """Where the bundle of one of `FORMS` lies."""
    return folder / f"bundle-{form.replace(' ', '-')}"


def _make_checkpoint(out: Path, seed: int) -> None:
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    config = GPT2Config(**shape, bos_token_id=2, eos_token_id=3)
    model = GPT2LMHeadModel(config).eval()
    with staged_folder(out, "checkpoint") as staging:
        save_checkpoint(staging, model, _make_tokenizer(staging), Stage("random weights", shape, seed))


def _make_tokenizer(staging: Path) -> PreTrainedTokenizerFast:
    path = staging / "vocab.txt"
    tokens = [*_SPECIALS, *(chr(_FIRST_HAN + place) for place in range(VOCAB - len(_SPECIALS)))]
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
        build_dataset([str(corpus)], out, tokenizer=str(checkpoint), seed=seed)


def _random_turn(random: np.random.Generator) -> str:
    return "".join(chr(_FIRST_HAN + int(place)) for place in random.integers(VOCAB - len(_SPECIALS), size=TURN_TOKENS))


def _make_bundle(folder: Path, form: str) -> None:
    """Quantize, unless it is done, and export; `form` is a scheme, or one with " int8 cache" behind it."""
    checkpoint, data = folder / "checkpoint", folder / "data"
    scheme, _, cache = form.partition(" ")
    source = checkpoint
    if scheme != "fp32":
        source = folder / f"checkpoint-{scheme}"
        if not source.is_dir():
            quantize(str(checkpoint), data, source, QuantizeOptions(scheme, "rtn"))
    export(str(source), bundle_path(folder, form), data=data, kv="int8" if cache else "float32")


def _make_gguf(python: str, checkpoint: Path, folder: Path, threads: int) -> None:
    """Write the GGUF files with llama.cpp's own environment."""
    command = [python, "-m", "bench.peers", str(checkpoint), str(folder), str(threads)]
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BadInput(f"--peers {python}: cannot be run ({error.strerror}); make it with make peers") from error
    if done.returncode == 2:
        raise BadInput(f"--peers {python}: {done.stderr.strip().splitlines()[-1]}")
    if done.returncode:
        raise WorkFailed(f"llama.cpp's files could not be made: {done.stderr.strip()[-300:]}")
