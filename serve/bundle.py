"""The bundle: a folder with everything that an edge box needs to run one model, and `bundle.json` that explains it.

Opening one checks size and sha256 of every file before any parser sees one; the schema of `bundle.json` is
serve/manifest.py's. Who made the bundle is not checked here: a hash in the same folder shows damage, not origin.
Nothing is loaded here; that is the engine's work.
"""

import json
import os
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from serve.dialogue import Dialogue
from serve.digest import identity, sha256
from serve.errors import BadBundle, BadRequest
from serve.geometry import Geometry
from serve.manifest import BUNDLE_JSON, FORMAT, Graph, Manifest
from serve.options import SamplingOptions

__all__ = ["BUNDLE_JSON", "FORMAT", "GRAPH", "TOKENIZER", "Bundle", "Geometry", "Graph", "Manifest"]

GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
_MAX_JSON_BYTES = 64 << 20  # bundle.json is the one file that is parsed without a hash


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file was there and unaltered when it was opened."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Verify the bundle in `path`. Raises BadBundle with one line: which file, what is wrong, what to do."""
        folder = Path(path)
        manifest = Manifest.from_json(_read_json(folder))
        needed = {TOKENIZER, *(graph.file for graph in manifest.graphs.values())} - set(manifest.files)
        if needed:
            raise BadBundle(f"{folder / BUNDLE_JSON}: does not list {min(needed)}; export the bundle again")
        for name, known in manifest.files.items():
            _verify(folder, name, known)
        extra = {entry.name for entry in os.scandir(folder)} - set(manifest.files) - {BUNDLE_JSON}
        if extra:
            raise BadBundle(
                f"{folder / min(extra)}: is not listed in {BUNDLE_JSON}; remove it or copy the bundle again"
            )
        return cls(folder, manifest)

    def graph_path(self, target: str) -> Path:
        """Where the graph for `target` is. Raises KeyError when the bundle has none: `choose` asks first."""
        return self.folder / self.manifest.graphs[target].file

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def geometry(self) -> Geometry:
        return self.manifest.geometry

    @cached_property
    def dialogue(self) -> Dialogue:
        """The dialogue format, its ids checked against the vocabulary. Raises BadBundle that names the field."""
        try:
            dialogue = Dialogue.from_json(self.manifest.dialogue)
        except ValueError as error:
            raise BadBundle(f"{self.folder / BUNDLE_JSON}: {error}; export the bundle again") from error
        used = (dialogue.end_of_turn_id, *dialogue.start_ids, *dialogue.unconditional_prompt_ids, *dialogue.banned_ids)
        if max(used) >= self.geometry.vocab:
            raise BadBundle(
                f"{self.folder / BUNDLE_JSON}: dialogue names id {max(used)} of a vocabulary of {self.geometry.vocab}; "
                "export the bundle again"
            )
        return dialogue

    @cached_property
    def sampling(self) -> SamplingOptions:
        """The default sampling options."""
        known = {item.name for item in fields(SamplingOptions)}
        try:
            return SamplingOptions(**{name: value for name, value in self.manifest.sampling.items() if name in known})
        except BadRequest as error:
            raise BadBundle(f"{self.folder / BUNDLE_JSON}: sampling: {error}") from error

    @property
    def file_bytes(self) -> int:
        """Bytes of all files but bundle.json itself."""
        return sum(known["size"] for known in self.manifest.files.values())

    @cached_property
    def identity(self) -> str:
        """A sha256 that stands for the content: over the names and hashes of the files, bundle.json excluded."""
        return identity(self.manifest.files)


def _read_json(folder: Path) -> Any:
    path = folder / BUNDLE_JSON
    if folder.is_file():
        raise BadBundle(f"{folder}: is a file; give a folder that compress export wrote")
    if not folder.is_dir():
        raise BadBundle(f"{folder}: no such bundle folder; give a folder that compress export wrote")
    if not path.is_file() or path.is_symlink():
        raise BadBundle(f"{folder}: {_kind(folder)}")
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("too large")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{path}: is truncated or not JSON; copy the bundle again") from error
    except OSError as error:
        raise BadBundle(f"{path}: cannot be read ({error.strerror})") from error


def _kind(folder: Path) -> str:
    """What a folder is that is no bundle, and what to do with it."""
    if (folder / "data.json").is_file():
        return "is a data set; give a folder that compress export wrote"
    if any(next(folder.glob(pattern), None) is not None for pattern in ("config.json", "*.safetensors", "*.bin")):
        return f"is a checkpoint; make a bundle of it: compress export {folder} --out BUNDLE"
    if next(folder.glob("*.gguf"), None) is not None:
        return "holds GGUF files, which are for llama.cpp; give a folder that compress export wrote"
    if next(folder.glob("*.onnx"), None) is not None:
        return "is an ONNX export of another tool; export its checkpoint with compress export"
    return f"is not a bundle (no {BUNDLE_JSON}); give a folder that compress export wrote"


def _verify(folder: Path, name: str, known: Any) -> None:
    """Check one listed file: a plain file directly in the folder, of the listed size and hash."""
    if name in ("", ".", "..", BUNDLE_JSON) or any(mark in name for mark in "/\\\0"):
        raise BadBundle(
            f"{folder / BUNDLE_JSON}: lists {name!r}, which is not a plain file name; do not use this bundle"
        )
    if not isinstance(known, dict) or type(known.get("size")) is not int or not isinstance(known.get("sha256"), str):
        raise BadBundle(f"{folder / BUNDLE_JSON}: has no size and sha256 for {name}; export the bundle again")
    path = folder / name
    if path.is_symlink():
        raise BadBundle(f"{path}: is a symbolic link, not a file; copy the bundle again")
    if not path.is_file():
        raise BadBundle(f"{path}: missing, although {BUNDLE_JSON} lists it; copy the bundle again")
    size = path.stat().st_size
    if size != known["size"]:
        what = "truncated" if size < known["size"] else "altered"
        raise BadBundle(f"{path}: {what} ({size} bytes, {BUNDLE_JSON} says {known['size']}); copy the bundle again")
    try:
        actual = sha256(path)
    except OSError as error:
        raise BadBundle(f"{path}: cannot be read ({error.strerror})") from error
    if actual != known["sha256"]:
        raise BadBundle(f"{path}: altered (its sha256 differs from {BUNDLE_JSON}); copy the bundle again")
