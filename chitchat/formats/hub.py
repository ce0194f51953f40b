"""The model hub: a hub id becomes a local folder, from the cache alone if the hub cannot be reached."""

import socket
from functools import cache
from pathlib import Path

from chitchat.errors import BadInput, one_line
from serve.quiet import silence

# The files of a GPT-2; images, papers and weights of other frameworks are not downloaded.
_TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe"),
)
_CONFIG_FILES = ("config.json", "generation_config.json", "adapter_config.json", "*.jinja")
_SAFE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TORCH_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*_ft.pkl")


def looks_like_hub_id(source: str) -> bool:
    """Whether a name can be a hub id, `name` or `owner/name`, rather than a missing path."""
    return not source.startswith((".", "/", "~")) and source.count("/") <= 1 and bool(source.strip("/ "))


def fetch_model(hub_id: str, weights: bool = True) -> Path:
    """The local folder of a hub model: configuration, tokenizer and, with `weights`, its tensors.

    Safetensors are preferred to PyTorch's files. Raises `BadInput` for a model that the hub does not have, and if the
    hub cannot be reached and the model is not in the cache.
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
        raise BadInput(f"{hub_id}: no such folder here, and not a name of the model hub; check the path") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        if not reached:
            raise BadInput(
                f"{hub_id}: no such folder here, and the model hub cannot be reached; check the path or the network"
            ) from error
        reason = f"neither a folder here nor a model of the hub ({one_line(error)})"
        raise BadInput(f"{hub_id}: {reason}; check the name") from error


@cache
def hub_answers() -> bool:
    """Whether the hub can be reached; the library itself would retry five times, with growing pauses."""
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
