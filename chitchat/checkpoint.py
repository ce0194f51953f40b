"""Reading and writing GPT-2 checkpoints: ordinary Hugging Face folders with safetensors and a lineage.

A checkpoint is a local folder or a hub id. What is not a GPT-2, or would have to run code to be read, is refused.
"""

import json
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.dialogue import dialogue_of, set_chat_template
from chitchat.errors import BadInput
from chitchat.lineage import Stage, verify_lineage, write_lineage

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


def load_model(source: str | Path) -> "GPT2LMHeadModel":
    """The model of a checkpoint in float32 on the CPU, in eval mode, its head tied as its configuration says.

    Raises `BadInput` for a folder that is missing, incomplete, altered, quantized, of another architecture, or whose
    weights are a pickle that carries code.
    """
    import torch
    from transformers import GPT2LMHeadModel

    config = read_config(source)
    if "quantization_config" in config:
        raise BadInput(
            f"{source}: is already quantized ({config['quantization_config'].get('scheme')}); "
            "give the checkpoint that it was made from"
        )
    options = {"dtype": torch.float32, **_hub_options(source)}
    model, report = _load(
        source, lambda: GPT2LMHeadModel.from_pretrained(str(source), output_loading_info=True, **options)
    )
    missing = [key for key in report["missing_keys"] if key != "lm_head.weight"]
    mismatched = [key for key, *_ in report["mismatched_keys"]]
    if missing or mismatched:
        raise BadInput(
            f"{source}: the weights do not fit config.json (missing {missing[:3]}, of another shape {mismatched[:3]}); "
            "fetch the checkpoint again"
        )
    return honour_attention_scale(model.eval())


def honour_attention_scale(model: "GPT2LMHeadModel") -> "GPT2LMHeadModel":
    """The model, with plain attention where its configuration scales attention in a way of its own.

    The fused attentions of transformers ignore `scale_attn_weights` and `scale_attn_by_inverse_layer_idx`.
    """
    if not model.config.scale_attn_weights or model.config.scale_attn_by_inverse_layer_idx:
        model.set_attn_implementation("eager")
    return model


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a checkpoint. Raises `BadInput` where there is none that can be read."""
    from transformers import AutoTokenizer

    if not isinstance(source, Path) and not Path(source).exists():
        options = _hub_options(source)
        return _load(source, lambda: AutoTokenizer.from_pretrained(str(source), use_fast=True, **options))
    folder = Path(source)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise BadInput(
            f"{folder}: holds no tokenizer (tokenizer.json, vocab.txt or vocab.json); "
            "copy the model's tokenizer files into it"
        )
    return _load(folder, lambda: AutoTokenizer.from_pretrained(str(folder), use_fast=True))


def read_config(source: str | Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint as a dict, after its lineage is verified and its architecture is accepted."""
    folder = Path(source)
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise BadInput(
                f"{folder}: is not a checkpoint (no config.json); give a folder that compress or transformers saved"
            )
        verify_lineage(folder)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{folder}/config.json: is not JSON ({error}); fetch the checkpoint again") from error
    elif str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise BadInput(f"{source}: no such checkpoint folder")
    else:
        from transformers import GPT2Config

        options = _hub_options(source)
        config = _load(source, lambda: GPT2Config.get_config_dict(str(source), **options)[0])
        if not config:
            raise BadInput(
                f"{source}: neither a folder here nor a model that the hub serves; check the name and the network"
            )
    if config.get("model_type") != "gpt2":
        raise BadInput(
            f"{source}: is a {config.get('model_type')!r} model; compress works on GPT-2 (model_type 'gpt2') only"
        )
    if config.get("add_cross_attention"):
        raise BadInput(f"{source}: has cross-attention; compress works on decoder-only GPT-2")
    return dict(config)


def save_checkpoint(
    folder: Path,
    model: "GPT2LMHeadModel",
    tokenizer: "PreTrainedTokenizerFast",
    stage: Stage,
    parent: str | Path | None = None,
) -> None:
    """Write model, tokenizer and lineage into `folder`, which exists and is empty (a staging folder).

    A tokenizer without a chat template is given that of its dialogue format, so that other tools talk as we do.
    """
    if tokenizer.chat_template is None:
        set_chat_template(tokenizer, dialogue_of(tokenizer).family)
    model.config.architectures = ["GPT2LMHeadModel"]
    model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(tokenizer, folder)
    known = Path(parent) if parent is not None and Path(parent).is_dir() else None
    write_lineage(folder, stage, parent=known)


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write a tokenizer's files so that transformers 4 reads them as transformers 5 does.

    Version 5 names a class, `TokenizersBackend`, and shapes of special tokens that version 4 refuses, while it reads
    the older ones; the tools that stayed with 4 (optimum) and their users load what we write. Notes on how the tokenizer
    was loaded are left out: they are not about the tokenizer.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if "model_specific_special_tokens" in settings:
        settings["extra_special_tokens"] = settings.pop("model_specific_special_tokens")
    for note in ("backend", "is_local", "local_files_only"):
        settings.pop(note, None)
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def check_vocabulary(tokenizer: "PreTrainedTokenizerFast", config: dict[str, Any], where: str | Path) -> None:
    """Raise `BadInput` when the tokenizer has ids that the model's table does not hold."""
    if len(tokenizer) > config["vocab_size"]:
        raise BadInput(
            f"{where}: the tokenizer has {len(tokenizer)} tokens and the model's table {config['vocab_size']} rows; "
            "use the checkpoint's own tokenizer"
        )


def _hub_options(source: str | Path) -> dict[str, Any]:
    """How the loaders reach `source`: from the local cache alone when there is no way to the hub.

    Left to themselves they ask five times, with growing pauses, before they say that there is no network.
    """
    if Path(source).exists() or _hub_answers():
        return {}
    return {"local_files_only": True}


@cache
def _hub_answers() -> bool:
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies().get(address.scheme):
        return not constants.HF_HUB_OFFLINE
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True


def _load(source: str | Path, read: Any) -> Any:
    """Call `read` and turn what the loaders raise into one line."""
    import pickle

    from safetensors import SafetensorError

    try:
        return read()
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        if any(isinstance(cause, pickle.UnpicklingError) for cause in _causes(error)):
            raise BadInput(
                f"{source}: its weights are a pickle that asks to run code or is damaged; "
                "only safetensors and plain tensors are read"
            ) from error
        if not Path(source).exists() and not _hub_answers():
            raise BadInput(
                f"{source}: no such folder here, and the model hub cannot be reached; check the path or the network"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{source}: cannot be read ({reason}); check the path, the files and the network") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from or while handling: loaders wrap each other's errors."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
