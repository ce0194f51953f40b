"""Small real things that the tests share: a data set, a tokenizer, a model, a checkpoint. Copy before changing one."""

import logging
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from chitchat.system.notices import log
from serve.quiet import silence

silence()  # before a test imports onnxruntime by itself
# Two cores are shared by the suite and what else runs; tiny models are fastest on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Shells start background jobs with Ctrl-C ignored, and children inherit that; the tests that press it need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A test of a property tries 25 inputs, however long each takes; where CI is set, the same ones every time.
settings.register_profile("local", deadline=None, max_examples=25, database=None)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

SLOW_TIMEOUT = 900  # seconds, as `timeout` in pyproject.toml is for the others

WORDS = [
    "hello",
    "how",
    "are",
    "you",
    "fine",
    "and",
    "what",
    "about",
    "rain",
    "sun",
    "tea",
    "music",
    "good",
    "yes",
    "no",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time before they count as hung."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """The project's log as a script has it: a command line that ran in this process leaves handlers behind."""
    kept = log.handlers, log.level, log.propagate
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)
    yield
    log.handlers, log.propagate = kept[0], kept[2]
    log.setLevel(kept[1])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and models that lies beside the project on some machines."""
    folder = Path(os.environ.get("CHITCHAT_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data" / "kdconv").is_dir():
        pytest.skip(f"no shared data at {folder} (set CHITCHAT_SHARED to the folder that holds data/ and models/)")
    return folder


@pytest.fixture(scope="session")
def portable_python() -> str:
    """The interpreter that has optimum, which lives in an environment of its own (`make portable`)."""
    from chitchat.system.interpreters import PORTABLE, find_interpreter, named_interpreter
    from export.portable import MODULES, find_optimum

    if named_interpreter(PORTABLE, None) is None and find_interpreter(PORTABLE, None, MODULES) is None:
        pytest.skip("optimum is in no environment here: make portable, or name its interpreter by PORTABLE_PYTHON")
    return find_optimum(None)


def conversations(count: int, seed: int = 0) -> list[list[str]]:
    """`count` made-up conversations of two to six turns."""
    draw = random.Random(seed)
    return [
        [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(draw.randint(2, 6))] for _ in range(count)
    ]


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus file of 60 conversations: a turn a line, a blank line between conversations."""
    path = tmp_path_factory.mktemp("corpus") / "talk.txt"
    path.write_text("\n\n".join("\n".join(turns) for turns in conversations(60)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """A data set of the tiny corpus with a byte-level BPE of 300 tokens."""
    from chitchat.data.dataset import build_dataset
    from chitchat.data.options import DataOptions

    out = tmp_path_factory.mktemp("data") / "data"
    build_dataset([str(tiny_corpus)], out, DataOptions(vocab_size=300, validation=0.2))
    return out


@pytest.fixture(scope="session")
def tiny_model():
    """A random GPT-2: 2 layers, 32 wide, 4 heads, context 64, the tiny data's vocabulary."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_layer=2, n_embd=32, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model, tiny_data: Path) -> Path:
    """The tiny model and the tiny data's tokenizer as a checkpoint with a lineage."""
    from chitchat.checkpoint import load_tokenizer, save_checkpoint
    from chitchat.lineage import Stage
    from chitchat.system.folder import staged_folder

    out = tmp_path_factory.mktemp("checkpoint") / "teacher"
    with staged_folder(out, "checkpoint") as staging:
        save_checkpoint(staging, tiny_model, load_tokenizer(tiny_data), Stage("train", {}, seed=0))
    return out


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint as a float bundle, parity checked."""
    from export.stage import export

    out = tmp_path_factory.mktemp("bundle") / "bundle"
    export(str(tiny_checkpoint), out)
    return out


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(autouse=True)
def notices_are_told_anew() -> None:
    """A notice is told once a process, and a test must not depend on which others ran before it."""
    from chitchat.system.notices import announce_once

    announce_once.cache_clear()
