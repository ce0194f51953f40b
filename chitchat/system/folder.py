"""Output folders that are complete or absent, and files that are the old or the new one.

A stage writes into a staging folder beside its place and the folder is renamed when whole. Whatever ends the stage
early (an error, Ctrl-C, a full disk) removes the staging folder; after a SIGKILL the next stage with the same output
sweeps it up.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput

# Each folder that we write holds one of these, so that nobody else's folder is ever replaced.
OUR_FILES = {"data": "data.json", "checkpoint": "lineage.json", "bundle": "bundle.json", "report": "report.json"}

# A full disk, in the words of the C library, of safetensors (Rust) and of torch's archive writer.
_DISK_FULL = ("No space left on device", "os error 28", "failed writing file")


def check_output(out: Path, kind: str) -> None:
    """Raise `BadInput` unless `out` is absent, an empty folder, or an earlier output of the same `kind`.

    Call it before long work begins; `staged_folder` calls it again.
    """
    marker = OUR_FILES[kind]
    if out.is_dir():
        if any(out.iterdir()) and not (out / marker).is_file():
            raise BadInput(
                f"--out {out}: this folder exists and is not a {kind} that compress wrote (no {marker}); "
                "choose another one"
            )
    elif out.exists() or out.is_symlink():
        raise BadInput(f"--out {out}: exists and is not a folder; choose another name")
    for parent in out.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise BadInput(f"--out {out}: {parent} is a file, not a folder")
            if not os.access(parent, os.W_OK):
                raise BadInput(f"--out {out}: no permission to write in {parent}")
            return


@contextmanager
def staged_folder(out: Path, kind: str) -> Iterator[Path]:
    """Yield an empty folder beside `out` that becomes `out` when the block ends without an error.

    Raises `BadInput` for an output folder that is not ours and for a disk that fills up during the block.
    """
    out = Path(os.path.abspath(out))
    check_output(out, kind)
    staging = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        staging.mkdir()
        yield staging
        _swap(staging, out)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if is_disk_full(error):
            raise BadInput(f"--out {out}: the disk is full; free some space or choose another disk") from error
        raise


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object as `replace_file` does, into a folder that is made when it is absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def replace_file(file: Path, content: bytes) -> None:
    """Write a file so that it is the old or the new one whatever happens."""
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("wb") as written:
        written.write(content)
        written.flush()
        os.fsync(written.fileno())
    temporary.replace(file)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk. Some libraries tell it in words only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _swap(staging: Path, out: Path) -> None:
    """Put `staging` in the place of `out`; an older output goes away only after that."""
    _share(staging)
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    if out.exists():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _share(staging: Path) -> None:
    """Give every file the mode that the user's umask gives to new ones: safetensors writes for the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in staging.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


def _sweep(out: Path) -> None:
    """Remove what killed processes left of earlier attempts at `out`."""
    for pattern in (f".{out.name}.partial-*", f".{out.name}.old-*"):
        for left in out.parent.glob(pattern):
            pid = left.name.rpartition("-")[2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(left, ignore_errors=True)
