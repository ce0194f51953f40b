"""What a path is that somebody took for a checkpoint: a line that says so, and what to do with it.

A checkpoint is a folder with `config.json` and weights. Everything else that people bring in its place (adapters, GGUF
files, TensorFlow weights, exports of other tools, folders of ours of another kind) is known by its files.
"""

from pathlib import Path

from chitchat.errors import BadInput

# Folders of ours by the file that only they hold, what they are, and what takes them.
_OURS = (
    ("bundle.json", "a bundle, made for running; give the checkpoint that it was exported from"),
    ("data.json", "a data set; give it as --data, and a checkpoint here"),
    ("report.json", "a report of `compress bench`; give the model that it measured"),
    ("recipe.json", "what `compress run` made; give one of the checkpoints in it"),
)
_TENSORFLOW = (
    *("*.ckpt.index", "*.ckpt.meta", "*.ckpt.data-*", "model-*.index", "model-*.meta", "tf_model*.h5"),
    "checkpoint",
)
_CONVERT = (
    "convert them with transformers 4 and TensorFlow (`GPT2LMHeadModel.from_pretrained(DIR, from_tf=True)`, or "
    "`transformers-cli convert --model_type gpt2` for a .ckpt), or give the hub id of the same model, such as gpt2"
)


def refuse_other_kinds(path: Path) -> None:
    """Raise `BadInput` for a path that exists and is something else than a checkpoint, if its files show what.

    Files of weights are let through (`chitchat.formats.weights` reads them).
    """
    kind = _file_kind(path) if path.is_file() else _folder_kind(path)
    if kind is not None:
        raise BadInput(f"{path}: is {kind}")


def _file_kind(file: Path) -> str | None:
    with file.open("rb") as opened:
        start = opened.read(8)
    suffix = file.suffix.lower()
    if start[:4] == b"GGUF" or suffix == ".gguf":
        return "a GGUF file, made for llama.cpp; give the Hugging Face checkpoint that it was converted from"
    if suffix == ".onnx":
        return "an ONNX graph, made for running; give the checkpoint that it was exported from"
    if suffix in (".h5", ".msgpack", ".ot", ".index", ".meta"):
        return f"weights of another framework ({suffix}); {_CONVERT}"
    if suffix in (".zip", ".gz", ".tar", ".tgz", ".7z", ".zst"):
        return "an archive; unpack it and give the folder"
    if suffix == ".json":
        return f"a file; give the folder that holds it, {file.parent}"
    if suffix not in (".safetensors", ".bin", ".pkl", ".pt", ".pth"):
        return "a file, not a checkpoint; give a checkpoint folder or a hub id"
    return None


def _folder_kind(folder: Path) -> str | None:
    for name, kind in _OURS:
        if (folder / name).is_file():
            return kind
    if (folder / "config.json").is_file():
        return _other_export(folder)
    return _without_config(folder)


def _other_export(folder: Path) -> str | None:
    """A folder with a configuration and no weights that torch reads, made by or for another tool."""
    if has_weights(folder):
        return None
    gguf, tensorflow, flax = _any(folder, "*.gguf"), _any(folder, *_TENSORFLOW), _any(folder, "flax_model*.msgpack")
    kinds = (
        ((folder / "adapter_config.json").is_file(), _ADAPTER),
        (gguf, _GGUF),
        (tensorflow, f"a checkpoint with TensorFlow weights; {_CONVERT}"),
        (flax, f"a checkpoint with Flax weights; {_CONVERT}"),
        (_any(folder, "openvino_*.xml"), f"an OpenVINO export; {_ORIGIN}"),
        (_any(folder, "*.onnx", "onnx/*.onnx"), f"an ONNX export; {_ORIGIN}"),
        ((folder / "model.bin").is_file(), f"a CTranslate2 model; {_ORIGIN}"),
        ((folder / "weights.npz").is_file(), f"an MLX model; {_ORIGIN}"),
    )
    return next((kind for found, kind in kinds if found), None)


_ORIGIN = "give the checkpoint that it was made from"
_GGUF = "a folder with GGUF files, made for llama.cpp; give the Hugging Face checkpoint"
_ADAPTER = (
    "a LoRA adapter, which is a change to a model and not a model; merge it into its base with PEFT "
    "(`AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW)`) and give that folder"
)


def _without_config(folder: Path) -> str | None:
    if (folder / "adapter_config.json").is_file():
        return _ADAPTER
    if (folder / "hparams.json").is_file() or _any(folder, *_TENSORFLOW):
        return f"a model of openai/gpt-2 with TensorFlow weights; {_CONVERT} (--tokenizer takes this folder)"
    if _any(folder, "*.gguf"):
        return _GGUF
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and (child / "config.json").is_file())
    if inside:
        newest = max(inside, key=lambda child: (_trailing_number(child.name), child.name))
        return f"a folder of checkpoints ({len(inside)} of them); give one of them, such as {newest}"
    if has_weights(folder):
        return "a folder with weights and no config.json; put the model's config.json beside them"
    return None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights that can be read: safetensors, or PyTorch's."""
    return _any(folder, "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.pkl", "*.pt", "*.pth")


def _any(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _trailing_number(name: str) -> int:
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else -1
