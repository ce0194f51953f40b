"""Peers: how they are named, found and prepared, and that they answer as torch does where they are installed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.in_process import bench_in_process
from transformers import GPT2Config, GPT2LMHeadModel

import chitchat.system.interpreters
from bench.models.kind import find_kind
from bench.models.open import open_model
from bench.peers import registry
from bench.peers.builder import CannotPrepare, PeerBuilder, find_python
from bench.peers.descriptor import PeerRequest
from bench.peers.registry import PEERS, read_peers
from bench.report.notes import notes
from bench.run.controller import BenchEntry
from bench.run.entries import PlannedRow
from bench.run.options import BenchOptions
from bench.run.stage import bench
from chitchat.architectures.registry import architecture_of
from chitchat.checkpoint import load_model, load_tokenizer, save_checkpoint
from chitchat.dialogue import dialogue_of
from chitchat.errors import BadInput
from chitchat.generate import TorchGenerator
from chitchat.lineage import Stage
from chitchat.tokenizer import read_vocab_txt
from serve.text import TextCodec

ROOT = Path(__file__).parents[1]
PEERS_PYTHON = os.environ.get("PEERS_PYTHON", str(ROOT / ".venv-peers" / "bin" / "python"))
INSTALLED = ("torch-no-cache", "torch-int8")  # they come with the project
SMALL = BenchOptions(prompt_tokens=20, new_tokens=8, repetitions=2, threads=1, max_tokens=400, scenarios=("replies",))


def test_peers_are_named_with_or_without_their_form() -> None:
    """Stops a form that is measured twice, and a name that chooses nothing in silence."""
    names = [asked.name for asked in read_peers("llama.cpp:Q8_0, ctranslate2,llama.cpp:Q8_0,optimum")]
    assert names == ["llama.cpp Q8_0", "ctranslate2 float32", "ctranslate2 int8", "optimum"]
    on_cpu = [peer for peer in PEERS.values() if peer.device == "cpu"]
    assert len(read_peers("all")) == sum(len(peer.weight_formats) for peer in on_cpu)
    beside = {asked.name for asked in read_peers("all", ("cpu", "cuda"))} - {asked.name for asked in read_peers("all")}
    assert beside == {"torch-fp16 on cuda"}
    assert read_peers(None) == []
    with pytest.raises(BadInput, match="--peers vllm: there is no such peer; give all, or some of torch-no-cache"):
        read_peers("vllm")


def test_every_peer_has_a_runtime_of_its_own() -> None:
    """Stops a peer that is measured in somebody else's runtime."""
    assert all(find_kind(peer.address) is peer for peer in PEERS.values())
    assert len({peer.model for peer in PEERS.values()}) == len(PEERS)


def test_a_peer_that_is_not_installed_has_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a traceback about a module in place of the line that installs it."""
    monkeypatch.chdir(tmp_path)  # no .venv-peers here, nor where the project is
    monkeypatch.setattr(chitchat.system.interpreters, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    for name in ("PEERS_PYTHON", "PORTABLE_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    absent = replace(PEERS["llama.cpp"], name="x", import_name="no_such_module_x")
    assert find_python(absent, None) is None
    assert find_python(absent, sys.executable) is None
    assert find_python(PEERS["torch-int8"], None) == sys.executable
    with pytest.raises(BadInput, match=r"--peers-python .*absent: cannot be run .*make peers"):
        find_python(absent, str(tmp_path / "absent"))
    assert find_python(PEERS["optimum"], sys.executable) is None
    with pytest.raises(BadInput, match=r"--portable-python .*absent: cannot be run .*make portable"):
        find_python(PEERS["optimum"], None, str(tmp_path / "absent"))


def test_every_tensor_of_gpt2_has_a_place_in_gguf_and_the_tied_head_has_none() -> None:
    """A tensor that was left out in silence made llama.cpp generate noise, quickly."""
    gguf_tensor = architecture_of({"model_type": "gpt2"}).gguf_tensor
    assert gguf_tensor("transformer.h.11.attn.c_attn.weight") == "blk.11.attn_qkv.weight"
    assert gguf_tensor("h.0.mlp.c_proj.bias") == "blk.0.ffn_down.bias"
    assert gguf_tensor("transformer.wte.weight") == "token_embd.weight"
    assert gguf_tensor("transformer.ln_f.bias") == "output_norm.bias"
    assert gguf_tensor("lm_head.weight") is None
    assert gguf_tensor("transformer.h.0.attn.bias") is None  # the causal mask of older files


def test_the_size_of_a_peer_is_that_of_its_files(tmp_path: Path) -> None:
    """Stops the checkpoint's size beside an int4 file."""
    from types import SimpleNamespace

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights").write_bytes(b"x" * 1000)
    base: Any = SimpleNamespace(file_bytes=7, parameters=3)
    for name, form, size in (("openvino", "int4", 1000), ("torch-int8", "int8", 7)):
        entry = BenchEntry(name, str(tmp_path), PEERS[name], 2)
        assert PlannedRow(entry, base, PeerRequest(PEERS[name], form)).file_bytes == size


def test_a_peer_is_given_a_foreign_checkpoint_in_the_form_that_others_read(
    tiny_checkpoint: Path, tiny_model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    """Converters know neither DialoGPT's `_ft.pkl` nor a vocabulary that lies elsewhere."""
    (tmp_path / "published").mkdir()
    record = json.loads((tiny_checkpoint / "config.json").read_text())
    sizes = {name: record[name] for name in ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")}
    (tmp_path / "published" / "config.json").write_text(json.dumps(sizes))
    torch.save({f"module.{n}": t for n, t in tiny_model.state_dict().items()}, tmp_path / "published" / "small_ft.pkl")
    model = open_model(str(tmp_path / "published"), tokenizer=str(tiny_checkpoint))
    builder = PeerBuilder(model, tmp_path / "peers", 1, None)
    found = builder.prepare(PeerRequest(PEERS["torch-no-cache"], "fp32"), sys.executable)
    theirs = GPT2LMHeadModel.from_pretrained(found)
    assert torch.equal(theirs.transformer.wte.weight, tiny_model.transformer.wte.weight)
    assert load_tokenizer(found).get_vocab() == load_tokenizer(tiny_checkpoint).get_vocab()
    ours = PeerBuilder(open_model(str(tiny_checkpoint)), tmp_path / "other", 1, None)
    assert ours.prepare(PeerRequest(PEERS["torch-no-cache"], "fp32"), sys.executable) == tiny_checkpoint


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_data: Path) -> dict[str, Any]:
    """A report of the tiny checkpoint with the peers that come with the project, and two that do not."""
    out = tmp_path_factory.mktemp("peers") / "out"
    peers = ",".join([*INSTALLED, "llama.cpp:Q8_0", "optimum"])
    nowhere = str(Path(sys.executable))  # has no llama.cpp, unless somebody installed it here
    model = [str(tiny_checkpoint)]
    return bench(model, out, tiny_data, replace(SMALL, peers=peers, peers_python=nowhere, portable_python=nowhere))


def says_the_same(report: dict[str, Any], name: str) -> None:
    """A peer of the same weights has the first row's tokens, its quality and its drawn replies."""
    first = report["rows"][0]
    row = next(row for row in report["rows"] if row["name"] == name)
    assert row["error"] is None
    assert row["eval_tokens"] == first["eval_tokens"]
    assert row["runtime"] == f"{row['kind']} {row['runtime_version']}"
    ids = [[sample["ids"] for sample in report["samples"][of]] for of in (name, first["name"])]
    assert ids[0] == ids[1]
    assert row["agreement"]["agrees"]
    assert row["kl"] < 1e-8
    texts = [[reply["text"] for reply in report["scenarios"][of]["replies"]] for of in (name, first["name"])]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_peers_of_the_same_weights_say_the_same_and_have_their_quality(beside: dict[str, Any]) -> None:
    """Stops a loop without a cache that computes another model, and a peer's row without quality."""
    says_the_same(beside, "torch-no-cache")
    rounded = next(row for row in beside["rows"] if row["name"] == "torch-int8")
    assert rounded["error"] is None
    assert rounded["eval_tokens"] == beside["rows"][0]["eval_tokens"]
    assert 1e-7 < rounded["kl"] < 0.1
    assert any("peers were asked at full precision first" in line for line in notes(beside))


def test_a_peer_gets_its_rows_from_one_descriptor(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new peer touched seven places. This one is converted, loaded, checked and scored, and it is wrong."""
    from support.made_up_peer import KINDS

    monkeypatch.setattr(registry, "PEERS", dict(PEERS))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the conversion, in a process of its own
    bench_in_process(monkeypatch)
    (peer,) = KINDS
    registry.register(peer)
    report = bench([str(tiny_checkpoint)], tmp_path / "out", tiny_data, replace(SMALL, peers="next-id"))
    first, *rows = report["rows"]
    assert [row["name"] for row in rows] == ["next-id big", "next-id small"]
    for row in rows:
        assert row["error"] is None
        assert (row["kind"], row["file_mb"]) == ("next-id", len(str(first["parameters"] and 300)) / 1e6)
        assert row["runtime_version"] == np.__version__
        assert row["tokens_per_s"] > 0
        assert row["kl"] > 0
        assert row["agreement"]["agrees"] is False
        assert row["ratio"] is None, "what computes something else is not faster"
    ids = report["samples"]["next-id small"][0]["ids"]
    assert np.all(np.diff(ids)[np.diff(ids) != 2] == 1), "each the next one, but for the end of turn"


@pytest.mark.slow
def test_optimum_runs_beside_ours_from_its_own_environment(
    portable_python: str, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Our worker reads a data set and a checkpoint there with transformers 4, which knows less than ours."""
    model, out = [str(tiny_checkpoint)], tmp_path / "out"
    work = replace(SMALL, peers="optimum", portable_python=portable_python)
    says_the_same(bench(model, out, tiny_data, work), "optimum")


@pytest.mark.slow
def test_a_peer_that_is_not_installed_is_a_row_with_the_pip_line(beside: dict[str, Any]) -> None:
    """Stops a run that ends because one of the tools is missing."""
    row = next(row for row in beside["rows"] if row["name"] == "llama.cpp Q8_0")
    if row["error"] is None:
        pytest.skip("this environment has llama.cpp")
    assert row["error"] == "not installed: pip install llama-cpp-python gguf (make peers installs all of them)"
    assert row["tokens_per_s"] is None
    row = next(row for row in beside["rows"] if row["name"] == "optimum")
    assert row["error"].startswith("not installed: make portable (")


def test_a_peer_whose_export_needs_optimum_says_so_in_its_row(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """OpenVINO's file is made from the portable bundle: without optimum the whole bench ended."""
    builder = PeerBuilder(open_model(str(tiny_checkpoint)), tmp_path, 1, tiny_data, portable_python=sys.executable)
    with pytest.raises(CannotPrepare, match=r"could not be prepared: .*has no optimum; make one .*make portable"):
        builder.prepare(PeerRequest(PEERS["openvino"], "int8"), sys.executable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_installed_peer_agrees_with_torch(
    portable_python: str, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Stops a conversion that loses a tensor, a cache that is not cleared, and a wrong order of a fused matrix."""
    if not Path(PEERS_PYTHON).is_file():
        pytest.skip(f"no {PEERS_PYTHON}: run `make peers`, or set PEERS_PYTHON")
    names = [name for name, peer in PEERS.items() if name not in INSTALLED and peer.device == "cpu"]
    pythons = {"peers_python": PEERS_PYTHON, "portable_python": portable_python}
    work = replace(SMALL, peers=",".join(names), **pythons)
    report = bench([str(tiny_checkpoint)], tmp_path / "out", tiny_data, work)
    first = report["rows"][0]
    for row in report["rows"][1:]:
        assert row["error"] is None, row["name"]
        assert row["agreement"]["agrees"], row["name"]
        whole = row["name"].rpartition(" ")[2] in ("F32", "float32", "fp32")
        assert row["kl"] < (1e-6 if whole else 0.2), row["name"]
        assert row["eval_tokens"] == first["eval_tokens"]
        assert row["reply_tokens_per_s"] > 0, row["name"]


_REPLY = """
import json, sys
from pathlib import Path
from bench.peers.ctranslate2 import CTranslate2Model, convert
from serve.dialogue import Dialogue
from serve.options import SamplingOptions
convert(Path(sys.argv[1]), Path(sys.argv[2]), "float32", 1)
model = CTranslate2Model(sys.argv[2], 1, "cpu")
model.run = None  # what would compute the whole text again
greedy = SamplingOptions(top_k=1, repetition_penalty=1.0, max_new_tokens=10, seed=0)
dialogue = Dialogue.from_json(json.loads(sys.argv[3]))
print(json.dumps(list(model.reply(json.loads(sys.argv[4]), greedy, dialogue))))
"""


@pytest.mark.slow
def test_ctranslate2_replies_by_its_own_loop(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It was led token by token, computed the whole text for each, and looked three times slower than it is."""
    if not Path(PEERS_PYTHON).is_file():
        pytest.skip(f"no {PEERS_PYTHON}: run `make peers`, or set PEERS_PYTHON")
    model, dialogue = load_model(tiny_checkpoint), dialogue_of(load_tokenizer(tiny_checkpoint))
    prompt = [*dialogue.start_ids, 50, 60, 70, dialogue.end_of_turn_id]
    arguments = [str(tiny_checkpoint), str(tmp_path / "ct2"), json.dumps(dialogue.as_json()), json.dumps(prompt)]
    done = subprocess.run(
        [PEERS_PYTHON, "-c", _REPLY, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    options = {"max_new_tokens": 10, "min_new_tokens": 1}
    assert json.loads(done.stdout.splitlines()[-1]) == list(TorchGenerator(model, dialogue).stream(prompt, options))


_TOKENIZE = """
import json, sys
from pathlib import Path
import llama_cpp
from bench.peers.llama_cpp import LlamaCppModel, convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), "F32", 1)
vocabulary = llama_cpp.llama_model_get_vocab(LlamaCppModel(sys.argv[2], 1, "cpu")._model)

def tokenize(text):
    data = text.encode()
    ids = (llama_cpp.llama_token * (len(data) + 16))()
    count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, False)
    return list(ids[:count]) if count >= 0 else None

print(json.dumps([tokenize(text) for text in json.loads(sys.argv[3])]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_gguf_file_carries_the_tokenizer(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Stops a file that llama.cpp runs on ids alone, or whose text becomes other ids."""
    if not Path(PEERS_PYTHON).is_file():
        pytest.skip(f"no {PEERS_PYTHON}: run `make peers`, or set PEERS_PYTHON")
    checkpoint, texts = tiny_checkpoint, ["hello there, how are you?", "I'm fine; it's 42 o'clock  today!", "你好"]
    if kind == "wordpiece":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "你", "好", "吗", "hello", "##s", "##ing", "walk", "?"]
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        tokenizer = read_vocab_txt(tmp_path / "vocab.txt")
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=32, n_embd=32, n_layer=1, n_head=2))
        checkpoint, texts = tmp_path / "model", ["你好吗?", "hello walking hellos", "你 好"]
        checkpoint.mkdir()
        save_checkpoint(checkpoint, model, tokenizer, Stage("train", {}, 0))
    command = [PEERS_PYTHON, "-c", _TOKENIZE, str(checkpoint), str(tmp_path / "gguf"), json.dumps(texts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    codec = TextCodec.open(checkpoint / "tokenizer.json")
    assert json.loads(done.stdout.splitlines()[-1]) == [codec.encode(text) for text in texts]
