"""Errors for a path that is something else than a checkpoint: what it is, by its files, and what to do.

A checkpoint is a folder with `config.json` and weights. Adapters, GGUF files, TensorFlow weights, exports of other
tools and other folders of compress are recognised.
"""

from pathlib import Path

from chitchat.errors import BadInput

_ORIGIN = "give the checkpoint that it was made from"
_CONVERT = (
    "convert them with transformers 4 and TensorFlow (`GPT2LMHeadModel.from_pretrained(DIR, from_tf=True)`, or "
    "`transformers-cli convert --model_type gpt2` for a .ckpt), or give the hub id of the same model, such as gpt2"
)
_GGUF = "a folder with GGUF files, made for llama.cpp; give the Hugging Face checkpoint"
_ADAPTER = (
    "a LoRA adapter, which is a change to a model and not a model; merge it into its base with PEFT "
    "(`AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW)`) and give that folder"
)
_TENSORFLOW = (
    *("*.ckpt.index", "*.ckpt.meta", "*.ckpt.data-*", "model-*.index", "model-*.meta", "tf_model*.h5"),
    "checkpoint",
)
# Other folders of compress, by the file that only they have.
_OURS = (
    (("bundle.json",), "a bundle, made for running; give the checkpoint that it was exported from"),
    (("data.json",), "a data set; give it as --data, and a checkpoint here"),
    (("report.json",), "a report of `compress bench`; give the model that it measured"),
    (("recipe.json",), "the output of `compress run`; give one of the checkpoints in it"),
)
# Folders with a configuration and no weights that torch reads; folders without a configuration.
_EXPORTS = (
    (("adapter_config.json",), _ADAPTER),
    (("*.gguf",), _GGUF),
    (_TENSORFLOW, f"a checkpoint with TensorFlow weights; {_CONVERT}"),
    (("flax_model*.msgpack",), f"a checkpoint with Flax weights; {_CONVERT}"),
    (("openvino_*.xml",), f"an OpenVINO export; {_ORIGIN}"),
    (("*.onnx", "onnx/*.onnx"), f"an ONNX export; {_ORIGIN}"),
    (("model.bin",), f"a CTranslate2 model; {_ORIGIN}"),
    (("weights.npz",), f"an MLX model; {_ORIGIN}"),
)
_WITHOUT_CONFIG = (
    (("adapter_config.json",), _ADAPTER),
    (
        ("hparams.json", *_TENSORFLOW),
        f"a model of openai/gpt-2 with TensorFlow weights; {_CONVERT} (--tokenizer takes this folder)",
    ),
    (("*.gguf",), _GGUF),
)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.pkl", "*.pt", "*.pth")


def refuse_other_kinds(path: Path) -> None:
    """Raise `BadInput` for an existing path whose files show that it is something else than a checkpoint.

    Files of weights are accepted (`chitchat.formats.weights` reads them).
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
    if kind := _first_kind(folder, _OURS):
        return kind
    has_weights = _has(folder, *_WEIGHTS)
    if (folder / "config.json").is_file():
        return None if has_weights else _first_kind(folder, _EXPORTS)
    if kind := _first_kind(folder, _WITHOUT_CONFIG):
        return kind
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and (child / "config.json").is_file())
    if inside:
        newest = max(inside, key=lambda child: (_trailing_number(child.name), child.name))
        return f"a folder of checkpoints ({len(inside)} of them); give one of them, such as {newest}"
    return "a folder with weights and no config.json; put the model's config.json beside them" if has_weights else None


def _first_kind(folder: Path, kinds: tuple[tuple[tuple[str, ...], str], ...]) -> str | None:
    return next((kind for patterns, kind in kinds if _has(folder, *patterns)), None)


def _has(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _trailing_number(name: str) -> int:
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else -1
