"""Files as streams of bytes: plain, or decompressed from `.gz` and `.zst`.

Nothing is unpacked to disk or read whole. Errors are a `BadInput` in one line, also for a file whose first bytes show
that it is something else than its ending says.
"""

import gzip
import io
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from chitchat.errors import BadInput, one_line

# By ending: name, first bytes, and the command that writes the content to stdout. zstd skips frames of sixteen kinds.
_GZIP = b"\x1f\x8b"
_ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)))
_FORMATS = {".gz": ("gzip", (_GZIP,), "gzip -dc"), ".zst": ("zstd", _ZSTD, "zstd -dc")}
PACKINGS = tuple(_FORMATS)
_MAGIC: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
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
    """`(ending, compression)` in lower case: the ending that selects the reader, and `.gz`, `.zst` or ""."""
    packing = path.suffix.lower()
    if packing not in PACKINGS:
        return packing, ""
    return path.with_suffix("").suffix.lower(), packing


@contextmanager
def open_bytes(path: Path, name: str | None = None) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed according to its ending; `name` begins an error (default: the path).

    Raises `BadInput` for a file that cannot be opened, and for damage that is found within the block.
    """
    name = name or str(path)
    packing = form_of(path)[1]
    try:
        with path.open("rb") as file:
            if packing:
                _check_packing(file.read(8), packing, name)
                file.seek(0)
            with _decompressed(file, packing) as stream:
                yield stream
    except (OSError, EOFError, zlib.error) as error:
        # Errors of decompression: gzip's, zlib's, and Arrow's, which have no number.
        if packing and (not isinstance(error, OSError) or error.errno is None):
            what = f"the {_FORMATS[packing][0]} archive is cut short or damaged ({one_line(error)})"
            raise BadInput(f"{name}: cannot be unpacked, {what}; get it again") from error
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{name}: cannot be read ({reason}); check the path and its permissions") from error


def file_kind(head: bytes) -> str | None:
    """What a file is by its first bytes, as words for an error; None if they do not show it."""
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def unpack_command(path: Path) -> str:
    """The shell command that writes the content of a compressed file to a pipe; "" for a plain one."""
    packing = form_of(path)[1]
    return f"{_FORMATS[packing][2]} {shlex.quote(str(path))} | " if packing else ""


def _decompressed(file: IO[bytes], packing: str) -> IO[bytes]:
    if packing == ".gz":
        return cast(IO[bytes], gzip.open(file))
    if packing == ".zst":
        import pyarrow as pa  # a dependency of `datasets`

        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
    return file


def _check_packing(head: bytes, packing: str, name: str) -> None:
    kind, magic, _ = _FORMATS[packing]
    if not head:
        raise BadInput(f"{name}: is empty (0 bytes), not a {kind} archive; compress it again")
    if not head.startswith(magic):
        known = f"it is {found}" if (found := file_kind(head)) else "it is not compressed, or otherwise"
        raise BadInput(f"{name}: is not a {kind} archive, {known}; correct its ending, or compress it again")
