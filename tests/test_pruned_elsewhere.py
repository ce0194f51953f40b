"""A pruned checkpoint is an ordinary one: transformers, optimum, llama.cpp and our engine give the same greedy tokens.

optimum and llama.cpp run in environments of their own (`make portable`, `make peers`), named by PORTABLE_PYTHON and
PEERS_PYTHON; without one its tests are skipped.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bundles import random_gpt2
from transformers import AutoTokenizer, GenerationConfig, GPT2LMHeadModel

from chitchat.checkpoint import load_tokenizer, save_checkpoint
from chitchat.lineage import Stage
from chitchat.system.folder import staged_folder
from compress.prune.options import PruneOptions
from compress.prune.stage import prune
from export.portable import check_portable, export_portable
from export.stage import export
from serve.bundle import Bundle
from serve.engine import Engine
from serve.options import SamplingOptions

ROOT = Path(__file__).parents[1]
PEERS_PYTHON = os.environ.get("PEERS_PYTHON", str(ROOT / ".venv-peers" / "bin" / "python"))
PROMPTS = [[1, 40, 41, 42, 2], [1, 255, 7, 99, 180, 23, 2], [1, 77, 2, 130, 131, 131, 2], [1, 260, 2]]
NEW_TOKENS = 16
END = 2  # [SEP]; it is never taken, so that every runtime gives as many tokens
# Between the likeliest token and the next: a reply is compared up to the first choice that is closer. llama.cpp keeps
# its cache in float16, which moves logits by some 1e-3.
MIN_GAP = 0.02
# All axes at once, and each alone.
CUTS: dict[str, dict[str, Any]] = {
    "everything": {"layers": 3, "width": 48, "ffn": 128, "vocab": 290, "context": 32},
    "layers": {"layers": 2},
    "width": {"width": 48},
    "ffn": {"ffn": 96},
    "vocabulary": {"vocab": 290},
    "context": {"context": 32},
}
CASES = ["everything", *(pytest.param(name, marks=pytest.mark.slow) for name in CUTS if name != "everything")]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A random model of 4 layers x 64 with a tied head, its weights spread so wide that tokens differ clearly."""
    out = tmp_path_factory.mktemp("elsewhere") / "teacher"
    model = random_gpt2(n_layer=4, n_embd=64, vocab_size=300, initializer_range=0.3, eos_token_id=END, pad_token_id=0)
    with staged_folder(out, "checkpoint") as staging:
        save_checkpoint(staging, model, load_tokenizer(tiny_data), Stage("train", {}, seed=0))
    return out


@pytest.fixture(scope="module", params=CASES)
def pruned(request: pytest.FixtureRequest, teacher: Path, tiny_data: Path) -> Path:
    """The teacher after a cut and the refit, without healing."""
    out = teacher.parent / request.param
    prune(str(teacher), tiny_data, out, PruneOptions(**CUTS[request.param], heal_minutes=0))
    return out


@pytest.fixture(scope="module")
def replies(pruned: Path) -> list[list[int]]:
    """What transformers generates from the folder as it lies there, each up to the first choice that is not clear."""
    model = GPT2LMHeadModel.from_pretrained(pruned).eval()
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=END,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            ),
        )
        best = torch.cat(output.scores).topk(2).values
        unclear = (best[:, 0] - best[:, 1] < MIN_GAP).tolist()
        clear = unclear.index(True) if True in unclear else NEW_TOKENS
        found.append(output.sequences[0, len(prompt) :][:clear].tolist())
    assert sum(map(len, found)) >= NEW_TOKENS * len(PROMPTS) // 2, "hardly anything to compare; take another seed"
    assert len({token for reply in found for token in reply}) > 5, "a model that says one word proves nothing"
    return found


def begins(replies: list[list[int]], expected: list[list[int]]) -> bool:
    """Whether each reply has all its tokens and begins with what is expected of it."""
    pairs = zip(replies, expected, strict=True)
    return all(len(reply) == NEW_TOKENS and reply[: len(clear)] == clear for reply, clear in pairs)


def test_transformers_finds_the_shape_that_was_asked_for(pruned: Path) -> None:
    """A config.json of the old shape, or an n_inner that is left to its default, loads random weights."""
    model, report = GPT2LMHeadModel.from_pretrained(pruned, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert not report["unexpected_keys"]
    asked, config = CUTS[pruned.name], model.config
    sizes = {
        "layers": config.n_layer,
        "width": config.n_embd,
        "vocab": config.vocab_size,
        "context": config.n_positions,
    }
    sizes["ffn"] = config.n_inner or 4 * config.n_embd
    assert {name: sizes[name] for name in asked} == asked
    assert config.n_embd // config.n_head == 16, "the head size is the scale of the softmax"
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    assert len(AutoTokenizer.from_pretrained(pruned)) == config.vocab_size


def test_optimum_generates_the_tokens_of_transformers(pruned: Path, portable_python: str, tmp_path: Path) -> None:
    """A shape that only our own exporter can write is locked in."""
    model = GPT2LMHeadModel.from_pretrained(pruned).eval()
    exported = export_portable(model, load_tokenizer(pruned), tmp_path, PROMPTS, portable_python)
    assert all(len(reply) == NEW_TOKENS for reply in exported.replies)
    check_portable(exported, model, PROMPTS, {}).require()


def test_our_engine_generates_the_tokens_of_transformers(
    pruned: Path, replies: list[list[int]], tmp_path: Path
) -> None:
    """Width 48 is three heads, and an FFN no multiple of the width: the graph must take them from config.json."""
    export(str(pruned), tmp_path / "bundle")
    engine = Engine(Bundle.open(tmp_path / "bundle"), threads=1)
    options = SamplingOptions(
        temperature=0, repetition_penalty=1.0, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
    )
    banned = set(engine.dialogue.banned_ids)
    assert not banned & {token for reply in replies for token in reply}, "the engine never says these"
    assert begins([list(engine.stream(prompt, options)) for prompt in PROMPTS], replies)


# What llama.cpp's environment runs: it has no torch and nothing of ours installed.
_PEER = """
import json, sys
from pathlib import Path
from bench.peers.llama_cpp import LlamaCppModel, write_gguf
checkpoint, path, prompts, count, end = sys.argv[1:]
write_gguf(Path(checkpoint), Path(path))
model = LlamaCppModel(path, 1, "cpu")
print(json.dumps([model.generate(prompt, int(count), int(end)).ids for prompt in json.loads(prompts)]))
"""


@pytest.fixture(scope="module")
def peers_python() -> str:
    """The interpreter that has gguf and llama_cpp."""
    if not Path(PEERS_PYTHON).is_file():
        pytest.skip(f"no {PEERS_PYTHON}: run `make peers`, or set PEERS_PYTHON to a Python with gguf and llama_cpp")
    probe = [PEERS_PYTHON, "-c", "import gguf, llama_cpp, safetensors"]
    found = subprocess.run(probe, capture_output=True, text=True, timeout=120)
    if found.returncode:
        pytest.skip(f"{PEERS_PYTHON}: {found.stderr.strip().splitlines()[-1]}; run `make peers`")
    return PEERS_PYTHON


def test_llama_cpp_generates_the_tokens_of_transformers(
    pruned: Path, replies: list[list[int]], peers_python: str, tmp_path: Path
) -> None:
    """llama.cpp reads the sizes of FFN and heads from the file, and fails or talks nonsense where they are wrong."""
    arguments = [str(pruned), str(tmp_path / "model.gguf"), json.dumps(PROMPTS), str(NEW_TOKENS), str(END)]
    done = subprocess.run(
        [peers_python, "-c", _PEER, *arguments], cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert begins(json.loads(done.stdout.splitlines()[-1]), replies)
