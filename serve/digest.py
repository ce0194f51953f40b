"""Hashes of files, and of folders by their files: for bundle.json, for lineage.json, and to compare them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces. Raises OSError where the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """Size in bytes and hash of a file, as bundle.json and lineage.json list it: `{"size": int, "sha256": hex}`."""
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def identity(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Hex sha256 that stands for a folder: over the names and hashes of its `files`, `{name: file_record(...)}`."""
    lines = "".join(f"{name}\0{files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
