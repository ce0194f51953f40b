"""The standard work: one model that every runtime is timed on, in all its forms.

The model has GPT2-chitchat's geometry (12 layers of 768, 12 heads, context 300, a vocabulary of 13,317) and random
weights: speed depends on the shape alone, nobody's weights are needed, and anyone can make the same one. The work on
it: a prompt of 64 tokens, 64 new ones, greedy. What is timed and printed is `bench.speed`'s.
"""

import subprocess
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bench.peers import GGUF_TYPES
from chitchat.checkpoint import load_model, load_tokenizer, save_checkpoint
from chitchat.errors import BadInput, WorkFailed
from chitchat.folder import staged_folder
from chitchat.lineage import Stage
from chitchat.tokenizer import read_vocab_txt
from compress.quantize.checkpoint import save_quantized
from compress.quantize.stage import SCHEMES, round_model
from export.stage import export

VOCAB = 13_317
LAYERS, WIDTH, HEADS, CONTEXT = 12, 768, 12, 300
QUANTIZED = ("w8", "w4")
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FIRST_HAN = 0x4E00  # the vocabulary is the specials and as many Chinese characters as it takes


def make_standard(folder: Path, seed: int = 0, peers_python: str | None = None, threads: int = 2) -> dict[str, Path]:
    """Make what is missing in `folder` and give the paths by name.

    `checkpoint`; `fp32`, `w8`, `w4`: bundles; with the interpreter of an environment that has llama.cpp, `F32`, `Q8_0`
    and `Q4_0`: GGUF files. Raises BadInput for an interpreter without it.
    """
    paths = {"checkpoint": folder / "checkpoint"}
    if not paths["checkpoint"].is_dir():  # complete or absent
        _make_checkpoint(paths["checkpoint"], seed)
    for scheme in ("fp32", *QUANTIZED):
        paths[scheme] = folder / f"bundle-{scheme}"
        if not paths[scheme].is_dir():
            _make_bundle(paths["checkpoint"], folder, scheme)
    if peers_python is not None:
        files = {kind: folder / f"{kind}.gguf" for kind in GGUF_TYPES}
        if not all(path.is_file() for path in files.values()):
            _make_gguf(peers_python, paths["checkpoint"], folder, threads)
        paths |= files
    return paths


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


def _make_bundle(checkpoint: Path, folder: Path, scheme: str) -> None:
    source = checkpoint
    if scheme != "fp32":
        source = folder / f"checkpoint-{scheme}"
        model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
        size = SCHEMES[scheme].block_size
        quantized = round_model(model, tokenizer, scheme, "rtn", size)
        stage = Stage("quantize", {"scheme": scheme, "method": "rtn", "block_size": size}, 0)
        with staged_folder(source, "checkpoint") as staging:
            save_quantized(staging, quantized, stage, parent=checkpoint)
    export(str(source), folder / f"bundle-{scheme}")


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
