"""Wheels that travel: cut into folders of a bounded size, collected on the other side, joined again, verified.

A machine may take only so much at a time, so the wheels are cut as one stream into folders `01`, `02`, … of at most
`PART_BYTES` each, in any order, in as many journeys as it takes. `manifest.json` names each wheel, its parts and every
sha256. What has arrived is kept in a store outside, by its sha256, so that a journey can be repeated and nothing
arrives twice. It needs nothing but Python.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput
from serve.digest import sha256

MANIFEST = "manifest.json"
PART_BYTES = 60_000_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Part:
    """A piece of a wheel, or all of it: its path below the folder of wheels, its size, its hash."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel and its parts, in order."""

    file: str
    bytes: int
    sha256: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Manifest:
    """All wheels, and the Python ("3.12") that they are for."""

    python: str
    wheels: tuple[Wheel, ...]

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest in a folder. Raises `BadInput`."""
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            wheels = [wheel | {"parts": tuple(Part(**part) for part in wheel["parts"])} for wheel in found["wheels"]]
            return cls(found["python"], tuple(Wheel(**wheel) for wheel in wheels))
        except FileNotFoundError as error:
            raise BadInput(f"{folder}: has no {MANIFEST}; make it with make gpu-wheels and send it along") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{folder / MANIFEST}: cannot be read ({error}); send it again") from error

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")

    def parts(self) -> Iterator[Part]:
        """Every part of every wheel."""
        for wheel in self.wheels:
            yield from wheel.parts


def cut(wheels: Sequence[Path], out: Path, python: str, limit: int = PART_BYTES) -> Manifest:
    """Write `wheels` into `out`, made anew, as folders of at most `limit` bytes, and the manifest."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.partial-") as name:
        staging = Path(name) / out.name
        staging.mkdir()
        found: list[Wheel] = []
        for wheel in sorted(wheels):
            found.append(_cut_one(wheel, staging, limit, sum(before.bytes for before in found)))
        manifest = Manifest(python, tuple(found))
        manifest.write(staging)
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    return manifest


def _cut_one(wheel: Path, out: Path, limit: int, filled: int) -> Wheel:
    """Cut one wheel, where `filled` bytes of the stream are in the folders of `out` already."""
    whole, parts = hashlib.sha256(), list[Part]()
    with wheel.open("rb") as source:
        while data := source.read(limit - filled % limit):
            folder = f"{filled // limit + 1:02}"
            (out / folder).mkdir(exist_ok=True)
            whole.update(data)
            path = f"{folder}/{wheel.name}.{len(parts):03}"
            (out / path).write_bytes(data)
            parts.append(Part(path, len(data), hashlib.sha256(data).hexdigest()))
            filled += len(data)
    return Wheel(wheel.name, wheel.stat().st_size, whole.hexdigest(), tuple(parts))


class Store:
    """What has arrived on a machine, whatever the journey that brought it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def receive(self, wheels: Path) -> int:
        """Take the manifest and the parts that stand in the folder `wheels`; how many were new. Raises `BadInput`.

        A part that is not what the manifest says is not taken, and the others are.
        """
        manifest = Manifest.read(wheels)
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        new, altered = 0, []
        for part in manifest.parts():
            arrived = wheels / part.path
            if not arrived.is_file() or self._has(part):
                continue
            if sha256(arrived) != part.sha256:
                altered.append(part.path)
                continue
            self._put(arrived, part)
            new += 1
        manifest.write(self.folder)
        if altered:
            raise BadInput(f"{wheels}: altered on the way: {', '.join(altered)}; send them again")
        return new

    def missing(self) -> list[str]:
        """Folders of wheels that have not, or not all, arrived. Raises `BadInput` before the first `receive`."""
        wanted = Manifest.read(self.folder).parts()
        return sorted({part.path.partition("/")[0] for part in wanted if not self._has(part)})

    def join(self) -> list[Path]:
        """The wheels, whole, each verified. Raises `BadInput` for parts that are missing or were altered here."""
        if missing := self.missing():
            raise BadInput(
                f"wheels: {', '.join(missing)} of what {MANIFEST} lists not arrived; send each and say --receive"
            )
        out = self.folder / "whole"
        out.mkdir(exist_ok=True)
        return [self._whole(wheel, out / wheel.file) for wheel in Manifest.read(self.folder).wheels]

    def _whole(self, wheel: Wheel, path: Path) -> Path:
        if path.is_file() and path.stat().st_size == wheel.bytes and sha256(path) == wheel.sha256:
            return path
        partial = path.with_suffix(".partial")
        with partial.open("wb") as target:
            for part in wheel.parts:
                with self._place(part).open("rb") as source:
                    shutil.copyfileobj(source, target, _BLOCK)
        if sha256(partial) != wheel.sha256:
            partial.unlink()
            for part in wheel.parts:
                if sha256(self._place(part)) != part.sha256:
                    self._place(part).unlink()
            raise BadInput(f"{wheel.file}: its parts were altered in {self.folder}; send them again")
        os.replace(partial, path)
        return path

    def _place(self, part: Part) -> Path:
        return self.folder / "parts" / part.sha256

    def _has(self, part: Part) -> bool:
        place = self._place(part)
        return place.is_file() and place.stat().st_size == part.bytes

    def _put(self, arrived: Path, part: Part) -> None:
        partial = self._place(part).with_suffix(".partial")
        shutil.copyfile(arrived, partial)
        os.replace(partial, self._place(part))


def megabytes(parts: Sequence[Any]) -> float:
    """The size of parts or wheels, MB of 10^6 bytes."""
    return float(sum(part.bytes for part in parts)) / 1e6
