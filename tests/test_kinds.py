"""What people give in place of a checkpoint is named, with the way on."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from chitchat.checkpoint import load_model, read_config
from chitchat.errors import BadInput

CONFIG = json.dumps({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4})


def _folder(*names: str) -> dict[str, bytes]:
    return {name: CONFIG.encode() if name.endswith("config.json") else b"x" for name in names}


FOLDERS = {
    "lora": (_folder("adapter_config.json", "adapter_model.safetensors"), "LoRA adapter.*merge_and_unload"),
    "lora beside a config": (_folder("config.json", "adapter_config.json"), "LoRA adapter"),
    "gguf folder": (_folder("model-q4_0.gguf"), "GGUF.*llama.cpp"),
    "gguf beside a config": (_folder("config.json", "model.gguf"), "GGUF"),
    "openai gpt-2": (_folder("hparams.json", "model.ckpt.index", "checkpoint"), "TensorFlow.*hub id"),
    "tensorflow": (_folder("config.json", "tf_model.h5"), "TensorFlow"),
    "flax": (_folder("config.json", "flax_model.msgpack"), "Flax"),
    "onnx": (_folder("config.json", "model.onnx"), "ONNX export; give the checkpoint"),
    "openvino": (_folder("config.json", "openvino_model.xml"), "OpenVINO export"),
    "ctranslate2": (_folder("config.json", "model.bin"), "CTranslate2 model"),
    "mlx": (_folder("config.json", "weights.npz"), "MLX model"),
    "trainer's output": (
        _folder("checkpoint-90/config.json", "checkpoint-500/config.json"),
        "such as .*checkpoint-500",
    ),
    "weights alone": (_folder("pytorch_model.bin"), "no config.json; put the model's"),
    "no weights": (_folder("config.json"), "holds no weights"),
    "bundle": (_folder("bundle.json", "model.onnx"), "is a bundle.*give the checkpoint"),
    "data set": (_folder("data.json", "lineage.json"), "is a data set; give it as --data"),
    "report": (_folder("report.json"), "is a report"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_something_else_says_what_it_is_and_what_to_do(case: str, tmp_path: Path) -> None:
    """A LoRA folder was «not a checkpoint (no config.json)», and one without weights was «runs in torch fp32»."""
    files, says = FOLDERS[case]
    for name, content in files.items():
        (tmp_path / "it" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "it" / name).write_bytes(content)
    with pytest.raises(BadInput, match=says) as caught:
        load_model(tmp_path / "it")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "it") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.gguf", b"GGUF\x03\0\0\0", "GGUF file"),
        ("model", b"GGUF\x03\0\0\0", "GGUF file"),
        ("model.onnx", b"\x08\x07", "ONNX graph"),
        ("tf_model.h5", b"\x89HDF", "another framework"),
        ("config.json", CONFIG.encode(), "is a file; give the folder"),
        ("notes.txt", b"hello", "is a file, not a checkpoint"),
        ("model.safetensors", b"x", "no config.json beside it"),
    ],
)
def test_a_file_that_is_no_checkpoint_says_what_it_is(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    """A GGUF file ended in a line about path and network."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=says):
        read_config(str(tmp_path / name))


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    """Models come in archives."""
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("config.json", CONFIG)
    with pytest.raises(BadInput, match="archive; unpack it"):
        read_config(tmp_path / "model.zip")


def test_the_file_of_weights_may_be_named_instead_of_its_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """DialoGPT's users have a file, `medium_ft.pkl`, and name it."""
    shutil.copytree(tiny_checkpoint, tmp_path / "it")
    found = load_model(tmp_path / "it" / "model.safetensors")
    assert found.config.n_embd == load_model(tiny_checkpoint).config.n_embd
