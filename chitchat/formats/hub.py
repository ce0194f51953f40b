"""The model hub: a hub id becomes a folder here, from the local cache alone where there is no way to the hub."""

import socket
from functools import cache
from pathlib import Path

from chitchat.errors import BadInput
from serve.quiet import silence

# What a GPT-2 can be read from; images, papers and weights of other frameworks stay where they are.
_TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe"),
)
_CONFIG_FILES = ("config.json", "generation_config.json", "adapter_config.json", "*.jinja")
_SAFE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TORCH_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*_ft.pkl")


def looks_like_hub_id(source: str) -> bool:
    """Whether a name can be a hub id, `name` or `owner/name`, and not a path that is not there."""
    return not source.startswith((".", "/", "~")) and source.count("/") <= 1 and bool(source.strip("/ "))


def fetch_model(hub_id: str, weights: bool = True) -> Path:
    """The local folder of a hub model: configuration, tokenizer and, with `weights`, its tensors.

    Safetensors are taken where there are some, else PyTorch's. Raises `BadInput` for a model that the hub does not
    serve, and where the hub cannot be reached and the cache does not hold the model.
    """
    patterns = (*_CONFIG_FILES, *_TOKENIZER_FILES)
    if not weights:
        return _snapshot(hub_id, patterns)
    folder = _snapshot(hub_id, (*patterns, *_SAFE_WEIGHTS))
    return folder if any(folder.glob("*.safetensors")) else _snapshot(hub_id, (*patterns, *_TORCH_WEIGHTS))


def _snapshot(hub_id: str, patterns: tuple[str, ...]) -> Path:
    silence()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    reached = hub_answers()
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), local_files_only=not reached))
    except HFValidationError as error:
        raise BadInput(f"{hub_id}: no such folder here, and no name that the model hub could know") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        if not reached:
            raise BadInput(
                f"{hub_id}: no such folder here, and the model hub cannot be reached; check the path or the network"
            ) from error
        reason = " ".join(str(error).split())[:160]
        raise BadInput(
            f"{hub_id}: neither a folder here nor a model that the hub serves ({reason}); check the name"
        ) from error


@cache
def hub_answers() -> bool:
    """Whether the hub can be reached. Left to itself the library asks five times, with growing pauses, to find out."""
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
