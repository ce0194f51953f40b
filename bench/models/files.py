"""What a checkpoint folder weighs: the tensors alone, and all that must be copied to run it elsewhere."""

import struct
from pathlib import Path

# What another machine needs of a checkpoint folder; notes, curves and corpora that lie beside it do not count.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
_MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")


def shipped_bytes(folder: Path) -> int:
    """Bytes of the files beside the weights that another machine needs: configuration and tokenizer."""
    named = [folder / name for name in (*_MODEL_FILES, *_TOKENIZER_FILES)]
    return sum(path.stat().st_size for path in named if path.is_file())


def payload_bytes(path: Path) -> int:
    """Bytes of the tensors in a weight file: a safetensors file less its header."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return size
    with path.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    return size - 8 - int(header)
