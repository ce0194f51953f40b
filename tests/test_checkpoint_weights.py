"""Tensors of any layout become the weights of one GPT-2, and nothing of them is dropped in silence."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from chitchat.checkpoint import load_model
from chitchat.errors import BadInput
from chitchat.formats.weights import weight_files

Tensors = dict[str, torch.Tensor]
BAD = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def foreign(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint as if it came from elsewhere, without weights."""
    shutil.copytree(tiny_checkpoint, tmp_path / "it")
    (tmp_path / "it" / "lineage.json").unlink()
    (tmp_path / "it" / "model.safetensors").unlink()
    return tmp_path / "it"


@pytest.fixture
def tensors(tiny_model: GPT2LMHeadModel) -> Tensors:
    """A copy of the tiny model's state dict, which a test may change."""
    return {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}


def _same(found: GPT2LMHeadModel, wanted: GPT2LMHeadModel, rtol: float = 0.0) -> None:
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=rtol, atol=rtol)


LAYOUTS: dict[str, Callable[[Tensors], Any]] = {
    "as it is": lambda tensors: tensors,
    "DataParallel": lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
    "compiled": lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
    "both": lambda tensors: {f"_orig_mod.module.{name}": tensor for name, tensor in tensors.items()},
    "Lightning": lambda tensors: {"state_dict": {f"model.{n}": t for n, t in tensors.items()}, "epoch": 3},
    "a script's": lambda tensors: {"model_state_dict": tensors, "optimizer": {"lr": 0.1}, "step": 7},
    "bare names": lambda tensors: {n.removeprefix("transformer."): t for n, t in tensors.items() if "lm_head" not in n},
    "DialoGPT": lambda tensors: {n.replace("lm_head.weight", "lm_head.decoder.weight"): t for n, t in tensors.items()},
    "with masks": lambda tensors: {
        **tensors,
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(
    layout: str, foreign: Path, tensors: Tensors, tiny_model: GPT2LMHeadModel, capfd: pytest.CaptureFixture[str]
) -> None:
    """A prefix made every weight «missing», and DialoGPT's published file could not be read at all."""
    torch.save(LAYOUTS[layout](tensors), foreign / "pytorch_model.bin")
    model = load_model(foreign)
    _same(model, tiny_model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "left out" not in capfd.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("legacy", [True, False])
def test_the_published_dialogpt_file_is_read_whatever_its_numbers(
    dtype: torch.dtype, legacy: bool, foreign: Path, tensors: Tensors, tiny_model: GPT2LMHeadModel
) -> None:
    """A legacy pickle in half precision under another name: `small_ft.pkl`."""
    sublayers = {name.replace("lm_head.", "lm_head.decoder."): tensor.to(dtype) for name, tensor in tensors.items()}
    torch.save(sublayers, foreign / "small_ft.pkl", _use_new_zipfile_serialization=not legacy)
    for source in (foreign, foreign / "small_ft.pkl"):
        model = load_model(source)
        assert model.dtype == torch.float32
        _same(model, tiny_model, rtol=1e-2)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_sharded_checkpoint_is_whole_or_says_which_part_is_missing(
    kind: str, foreign: Path, tensors: Tensors, tiny_model: GPT2LMHeadModel
) -> None:
    """Half of the layers at random values would pass as a model."""
    names = sorted(tensors.keys() - {"lm_head.weight"})
    stem = "model" if kind == "safetensors" else "pytorch_model"
    parts = {f"{stem}-{part + 1:05}-of-00002.{kind}": names[part::2] for part in range(2)}
    for file, held in parts.items():
        write = save_file if kind == "safetensors" else torch.save
        write({name: tensors[name] for name in held}, foreign / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = foreign / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    _same(load_model(foreign), tiny_model)
    (foreign / min(parts)).unlink()
    with pytest.raises(BadInput, match=rf"{min(parts)}: missing, although {index.name} lists it"):
        load_model(foreign)
    index.write_text(json.dumps({"weight_map": {"transformer.wte.weight": "../other/secret.bin"}}))
    with pytest.raises(BadInput, match="outside the folder"):
        load_model(foreign)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_number_that_is_not_finite_is_told_with_its_tensor(
    value: float, file: str, foreign: Path, tensors: Tensors
) -> None:
    """prune and eval ended with exit code 0 and `perplexity nan`; train and export blamed other things."""
    tensors[BAD][3, 5] = value
    del tensors["lm_head.weight"]
    (save_file if file.endswith("safetensors") else torch.save)(tensors, foreign / file)
    with pytest.raises(BadInput, match=rf"{file}: {BAD} has 1 of 4,096 numbers that are NaN or infinite"):
        load_model(foreign)


def test_a_head_of_its_own_is_kept_whatever_config_json_says(
    foreign: Path, tensors: Tensors, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside `tie_word_embeddings: true` it was dropped without a word, and replies were another model's."""
    tensors["lm_head.weight"] += 1
    save_file(tensors, foreign / "model.safetensors")
    model = load_model(foreign)
    assert "lm_head.weight is not the table" in capfd.readouterr().err
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    model.save_pretrained(tmp_path / "saved")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.lm_head.weight, tensors["lm_head.weight"])
    assert torch.equal(again.transformer.wte.weight, tensors["transformer.wte.weight"])


def test_a_head_that_is_promised_and_not_there_is_refused(foreign: Path, tensors: Tensors) -> None:
    """It was filled with random numbers."""
    del tensors["lm_head.weight"]
    save_file(tensors, foreign / "model.safetensors")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(BadInput, match=r"tie_word_embeddings false.*no lm_head\.weight"):
        load_model(foreign)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("transformer.h.1.ln_2.bias"), r"missing transformer\.h\.1\.ln_2\.bias"),
        (
            lambda t: t.update({"transformer.h.2.ln_1.bias": torch.zeros(32)}),
            r"left over .*h\.2\.ln_1\.bias",
        ),
        (lambda t: t.update({BAD: torch.zeros(32, 64)}), r"of another shape .*c_fc\.weight \[32, 64\] for \[32, 128\]"),
        (lambda t: t.update({"transformer.h.0.attn.c_attn.lora_A": torch.zeros(1)}), "LoRA weights beside"),
        (lambda t: t.update({"lm_head.bias": torch.zeros(300)}), "bias"),
        (lambda t: t.update({BAD: torch.zeros(32, 128, dtype=torch.int8)}), "int8 numbers, so the model is quantized"),
        (lambda t: t.update({f"module.{BAD}": torch.zeros(32, 128)}), "twice, with and without a prefix"),
        (lambda t: [t.pop(name) for name in list(t) if "wte" in name], "no weights of a GPT-2"),
        (lambda t: t.clear(), "no weights of a GPT-2"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    change, says: str, foreign: Path, tensors: Tensors
) -> None:
    """A layer too many was ignored, one too few was random."""
    change(tensors)
    torch.save(tensors, foreign / "pytorch_model.bin")
    with pytest.raises(BadInput, match=says) as caught:
        load_model(foreign)
    assert "\n" not in str(caught.value)


def test_what_a_chat_model_has_no_place_for_is_spoken_of(
    foreign: Path, tensors: Tensors, capfd: pytest.CaptureFixture[str]
) -> None:
    """GPT2DoubleHeadsModel saves a second head."""
    tensors["multiple_choice_head.summary.weight"] = torch.zeros(1, 32)
    torch.save(tensors, foreign / "pytorch_model.bin")
    load_model(foreign)
    assert "multiple_choice_head.summary.weight left out" in capfd.readouterr().err


def test_several_files_of_which_each_could_be_the_weights_are_not_guessed_at(foreign: Path, tensors: Tensors) -> None:
    """DialoGPT's folders hold the forward and the reverse model."""
    for name in ("small_ft.pkl", "small_reverse.pkl", "optimizer.pt", "training_args.bin"):
        torch.save(tensors, foreign / name)
    with pytest.raises(BadInput, match=r"several files of weights \(small_ft.pkl, small_reverse.pkl\)"):
        load_model(foreign)
    (foreign / "small_reverse.pkl").unlink()
    assert weight_files(foreign) == [foreign / "small_ft.pkl"]


@pytest.mark.parametrize("content", [b"", b"x" * 100, pickle.dumps([1, 2]), pickle.dumps({"a": 1})])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "medium_ft.pkl"])
def test_a_file_that_holds_no_tensors_is_one_line(name: str, content: bytes, foreign: Path) -> None:
    """Every loader has errors of its own."""
    (foreign / name).write_bytes(content)
    with pytest.raises(BadInput, match=name) as caught:
        load_model(foreign)
    assert "\n" not in str(caught.value)


def test_our_own_checkpoints_are_still_read_bit_for_bit(tiny_checkpoint: Path) -> None:
    """The reader is new; what it reads must not be."""
    stored = load_file(tiny_checkpoint / "model.safetensors")
    found = load_model(tiny_checkpoint).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())
