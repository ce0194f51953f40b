"""The portable flavour: what optimum wrote in its own environment, optimum runs there, with torch's tokens."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import torch
from support.bundles import random_gpt2
from transformers import GPT2LMHeadModel

import chitchat.system.interpreters
from chitchat.checkpoint import load_model, load_tokenizer
from chitchat.errors import BadInput, WorkFailed
from export.parity import parity_prompts
from export.portable import Exported, check_portable, export_portable, find_optimum

ROOT = Path(__file__).parents[1]


def prompts_of(model: GPT2LMHeadModel, count: int = 5) -> tuple[list[list[int]], dict[str, int]]:
    return parity_prompts(None, model.config.vocab_size, model.config.n_positions, count=count)


@pytest.fixture(scope="module")
def portable(
    portable_python: str, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Exported]:
    folder = tmp_path_factory.mktemp("portable")
    model = load_model(tiny_checkpoint)
    tokenizer = load_tokenizer(tiny_checkpoint)
    return folder, export_portable(model, tokenizer, folder, prompts_of(model)[0], portable_python)


def test_it_uses_standard_operators_only(portable: tuple[Path, Exported]) -> None:
    """One fused operator, and it runs in onnxruntime alone."""
    assert {node.domain for node in onnx.load(portable[0] / "model.onnx").graph.node} == {""}


def test_the_tied_table_is_stored_once(portable: tuple[Path, Exported], tiny_checkpoint: Path) -> None:
    """Without accelerate in its environment optimum writes the table twice, and says so where nobody reads it."""
    model = load_model(tiny_checkpoint)
    rows = [list(model.transformer.wte.weight.shape), list(model.transformer.wte.weight.T.shape)]
    graph = onnx.load(portable[0] / "model.onnx").graph
    assert sum(list(each.dims) in rows for each in graph.initializer) == 1


def test_optimum_generates_the_tokens_of_torch(portable: tuple[Path, Exported], tiny_checkpoint: Path) -> None:
    """The proof that the export stands on."""
    model = load_model(tiny_checkpoint)
    prompts, origin = prompts_of(model)
    parity = check_portable(portable[1], model, prompts, origin)
    parity.require()
    assert parity.figures["greedy_prompts"] == 5
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(model.transformer.wpe.weight.roll(3, 0) * 3)
    with pytest.raises(WorkFailed, match="greedy_diverged"):
        check_portable(portable[1], model, prompts, origin).require()


def test_the_graph_takes_a_growing_past(portable: tuple[Path, Exported]) -> None:
    """Without it every token costs the whole conversation again."""
    assert "past_key_values.1.value" in portable[1].inputs
    assert "present.1.value" in portable[1].outputs


def test_what_wrote_the_graph_is_told(portable: tuple[Path, Exported]) -> None:
    """The lineage names our transformers, which had no part in this."""
    assert portable[1].versions["transformers"].startswith("4.")
    assert set(portable[1].versions) == {"optimum-onnx", "transformers", "torch", "onnxruntime"}


def test_nothing_else_is_left_in_the_folder(portable: tuple[Path, Exported]) -> None:
    """The checkpoint that optimum read lay in it, and would have become a part of the bundle."""
    assert not [path.name for path in portable[0].iterdir() if path.is_dir() or "safetensors" in path.name]


def test_settings_of_the_checkpoint_do_not_bend_the_proof(
    portable_python: str, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A repetition penalty in generation_config.json made every reply differ from torch's; and nothing is printed.

    So did a scale of attention that fused attentions ignore.
    """
    torch.manual_seed(1)
    model = random_gpt2(n_layer=2, vocab_size=300, initializer_range=0.3, scale_attn_by_inverse_layer_idx=True)
    model.set_attn_implementation("eager")
    model.generation_config.repetition_penalty = 1.8
    model.generation_config.eos_token_id = list(range(150))
    prompts, origin = prompts_of(model)
    capfd.readouterr()
    exported = export_portable(model, load_tokenizer(tiny_checkpoint), tmp_path, prompts, portable_python)
    said = capfd.readouterr()
    check_portable(exported, model, prompts, origin).require()
    assert said == ("", "")


# What a user does with the bundle, in an environment of transformers 4.
_USE = """
import json, sys
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer, model = AutoTokenizer.from_pretrained(folder), ORTModelForCausalLM.from_pretrained(folder)
said = [{"role": "user", "content": texts[0]}]
ids = tokenizer.apply_chat_template(said, return_tensors="pt")
reply = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
print(json.dumps({
    "ids": [tokenizer.encode(text) for text in texts],
    "back": [tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) for text in texts],
    "prompt": ids[0].tolist(),
    "reply": reply[0].tolist(),
    "specials": sorted(tokenizer.all_special_tokens),
}))
"""


def test_a_user_of_transformers_4_loads_it(portable_python: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer as transformers 5 saves it is refused by 4: it knows neither its class nor its list of tokens."""
    tokenizer = load_tokenizer(tiny_checkpoint)
    extra = ["<S>", "<T>"]
    tokenizer.add_special_tokens({"extra_special_tokens": extra})
    model = random_gpt2(n_layer=1, vocab_size=302)
    export_portable(model, tokenizer, tmp_path, prompts_of(model, 1)[0], portable_python)
    texts = ["hello there, how are you?", "I'm fine; it's 42 o'clock  today! <S>", "你好"]
    command = [portable_python, "-I", "-W", "ignore", "-c", _USE, str(tmp_path), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    ours = [tokenizer.encode(text) for text in texts]
    assert found["ids"] == ours
    assert found["back"] == [tokenizer.decode(ids, skip_special_tokens=True) for ids in ours]
    said = [{"role": "user", "content": texts[0]}]
    assert found["prompt"] == tokenizer(tokenizer.apply_chat_template(said, tokenize=False))["input_ids"]
    assert found["reply"][: len(found["prompt"])] == found["prompt"]
    assert len(found["reply"]) > len(found["prompt"])
    assert set(extra) <= set(found["specials"])


def test_where_there_is_no_optimum_the_line_to_type_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a traceback about a module after minutes of work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PORTABLE_PYTHON", raising=False)
    monkeypatch.setattr(chitchat.system.interpreters, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    told = (
        r"--target portable: needs optimum, in an environment of its own: make portable \(.*chitchat-compress\[portable"
    )
    with pytest.raises(BadInput, match=told):
        find_optimum(None)
    with pytest.raises(BadInput, match=r"--portable-python .*: has no optimum; make one .*make portable"):
        find_optimum(sys.executable)
    monkeypatch.setenv("PORTABLE_PYTHON", sys.executable)
    with pytest.raises(BadInput, match=r"PORTABLE_PYTHON .*: has no optimum"):
        find_optimum(None)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (f'exec {sys.executable} "$@"', "optimum could not export the model .ModuleNotFoundError: No module named"),
        ("kill -9 $$", "it was killed by SIGKILL .out of memory.."),
        ("exit 5", "it ended with exit code 5 without a word"),
    ],
)
def test_an_exporter_that_fails_is_one_line_and_leaves_nothing(
    script: str, told: str, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stops another interpreter's traceback, and a checkpoint that stays in what becomes the bundle."""
    python, folder = tmp_path / "python", tmp_path / "bundle"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    folder.mkdir()
    model, tokenizer = load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
    capfd.readouterr()
    with pytest.raises(WorkFailed, match=told):
        export_portable(model, tokenizer, folder, [[1, 2]], str(python))
    assert list(folder.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err


def exporters(folder: Path) -> list[int]:
    """The processes that optimum works in for an export into `folder`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "optimum_child.py" in words and str(folder) in words and "\0-I\0" in words:
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_export_ends_optimum(
    number: signal.Signals, portable_python: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """An exporter that outlived its parent wrote into the folder of the next run."""
    command = [
        sys.executable,
        "-m",
        "chitchat_compress",
        "export",
        str(tiny_checkpoint),
        "--out",
        str(tmp_path / "out" / "b"),
    ]
    command += ["--target", "portable", "--portable-python", portable_python]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        while not exporters(tmp_path):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(60)
        said = process.stderr.read().decode()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    while exporters(tmp_path):
        time.sleep(0.02)
    assert "Traceback" not in said
    left = [path.name for path in (tmp_path / "out").iterdir()]
    if number is signal.SIGKILL:  # nobody could tidy up; the next export to the same place does
        assert len(left) == 1
        assert left[0].startswith(".b.partial-")
    else:
        assert code == 128 + number
        assert left == []
