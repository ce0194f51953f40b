"""`lineage.json`: the stages that made a folder, oldest first, and the sha256 of every file in it.

Every data set and checkpoint has one, written last. A checkpoint of another tool has none and becomes the root of one.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput
from serve.digest import file_record, sha256
from serve.digest import identity as identity_of

LINEAGE = "lineage.json"
_PACKAGES = ("chitchat-compress", "torch", "transformers", "tokenizers", "datasets", "onnxruntime")


@dataclass(frozen=True)
class Stage:
    """The record of one stage.

    `parent_sha256` and `data_sha256` are `identity` values of the folders that the stage read; `metrics` are figures
    before and after, by name.
    """

    stage: str
    options: Mapping[str, Any]
    seed: int
    parent_sha256: str | None = None
    data_sha256: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())


def installed_versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions of Python and of the installed packages, by default those that affect numbers."""
    versions = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_lineage(folder: Path, stage: Stage, parent: Path | None = None) -> None:
    """Write `folder/lineage.json`: the parent's records plus `stage`, and the hashes of all files now in `folder`."""
    stages = read_lineage(parent) if parent is not None else []
    record = {"format": 1, "stages": [*stages, asdict(stage)], "files": hash_files(folder)}
    (folder / LINEAGE).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lineage(folder: Path) -> list[dict[str, Any]]:
    """The stage records of a folder, oldest first; [] if there is no lineage."""
    record = _read(folder)
    return list(record["stages"]) if record else []


def verify_lineage(folder: Path) -> None:
    """Raise `BadInput` if a file in the lineage is missing, truncated or altered. A folder without one passes."""
    record = _read(folder)
    if record is None:
        return
    for name, known in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise BadInput(f"{path}: missing, although {LINEAGE} lists it; make the folder again or fetch it again")
        if path.stat().st_size != known["size"]:
            raise BadInput(
                f"{path}: {path.stat().st_size} bytes, {LINEAGE} says {known['size']}; "
                "the file is truncated or altered, fetch it again"
            )
        if sha256(path) != known["sha256"]:
            raise BadInput(f"{path}: sha256 differs from {LINEAGE}; the file was altered, fetch it again")


def identity(folder: Path) -> str:
    """A sha256 of the content of a folder: over the names and hashes of its files, without the lineage."""
    record = _read(folder)
    return identity_of(record["files"] if record else hash_files(folder))


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {"size": bytes, "sha256": hex}}` of every file below `folder` but its lineage."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LINEAGE)
    return {str(path.relative_to(folder)): file_record(path) for path in paths}


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / LINEAGE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != 1:
            raise BadInput(f"{path}: format {record['format']} is newer than this compress; upgrade chitchat-compress")
        record["stages"], record["files"]  # both must be there
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: not a readable lineage ({error}); the file is truncated or altered, fetch the folder again"
        ) from error
    return dict(record)
