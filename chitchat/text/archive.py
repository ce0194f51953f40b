"""Files as streams of bytes: plain, or unpacked on the way from `.gz` and `.zst`.

Nothing is unpacked to disk or held whole. What cannot be read is a `BadInput` in one line, and so is a file that is
something else than its ending says: archives, pictures and tables of other programs are known by their first bytes.
"""

import gzip
import io
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from chitchat.errors import BadInput

PACKINGS = (".gz", ".zst")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))  # frames that zstd steps over
_MAGIC = (
    (_GZIP, "a gzip archive"),
    (_ZSTD, "a zstd archive"),
    (b"PK\x03\x04", "a zip archive (.xlsx, .docx and torch.save files are such, too)"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"\xd0\xcf\x11\xe0", "an old Office file"),
    (b"\x7fELF", "a program"),
    (b"GGUF", "a GGUF model"),
)


def form_of(path: Path) -> tuple[str, str]:
    """`(form, packing)`: the ending that says how a file is read, and `.gz`, `.zst` or nothing; in lower case."""
    packing = path.suffix.lower()
    if packing not in PACKINGS:
        return packing, ""
    return path.with_suffix("").suffix.lower(), packing


@contextmanager
def open_bytes(path: Path, name: str | None = None) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked by its ending; `name` begins an error (default: the path).

    Raises `BadInput` for what cannot be opened, and for what turns out damaged within the block.
    """
    name = name or str(path)
    packing = form_of(path)[1]
    try:
        with path.open("rb") as file:
            if packing:
                _check_packing(file.read(8), packing, name)
                file.seek(0)
            with _unpacked(file, packing) as stream:
                yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(name, packing, str(error)) from error
    except OSError as error:
        if packing and error.errno is None:  # Arrow's errors of unpacking have no number
            raise _damaged(name, packing, str(error)) from error
        reason = error.strerror or str(error)
        raise BadInput(f"{name}: cannot be read ({reason}); check the path and its permissions") from error


def what_it_is(head: bytes) -> str | None:
    """What the first bytes of a file say that it is, for people; None where they say nothing."""
    if head.startswith(_SKIPPABLE):
        return "a zstd archive"
    return next((what for magic, what in _MAGIC if head.startswith(magic)), None)


def unpack_command(path: Path) -> str:
    """The shell command that writes the bytes of a file to a pipe; nothing for a plain one, which needs none."""
    program = {".gz": "gzip -dc", ".zst": "zstd -dc"}.get(form_of(path)[1])
    return f"{program} {shlex.quote(str(path))} | " if program else ""


@contextmanager
def _unpacked(file: IO[bytes], packing: str) -> Iterator[Any]:
    if packing == ".gz":
        with gzip.open(file) as stream:
            yield stream
    elif packing == ".zst":
        import pyarrow as pa  # which `datasets` brings along

        with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
            yield io.BufferedReader(stream)
    else:
        yield file


def _check_packing(head: bytes, packing: str, name: str) -> None:
    wanted = {".gz": (_GZIP,), ".zst": (_ZSTD, *_SKIPPABLE)}[packing]
    if head.startswith(wanted):
        return
    kind = {".gz": "gzip", ".zst": "zstd"}[packing]
    if not head:
        raise BadInput(f"{name}: is empty (0 bytes), and no {kind} archive; pack it again")
    found = what_it_is(head)
    known = f"it is {found}" if found else "it is not packed, or otherwise"
    raise BadInput(f"{name}: is no {kind} archive, {known}; name the file by what it is, or pack it again")


def _damaged(name: str, packing: str, reason: str) -> BadInput:
    kind = {".gz": "gzip", ".zst": "zstd"}.get(packing, "")
    reason = " ".join(reason.split())
    return BadInput(f"{name}: cannot be unpacked, the {kind} archive is cut short or damaged ({reason}); get it again")
