"""Output folders that are complete or absent, and files that are replaced atomically.

A stage writes into a staging folder beside the output, which is renamed when complete. An error, Ctrl-C or a full disk
removes the staging folder; after a SIGKILL the next stage with the same output removes it.
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

# A file that marks each kind of folder: no folder without it is ever replaced.
OUR_FILES = {"data": "data.json", "checkpoint": "lineage.json", "bundle": "bundle.json", "report": "report.json"}

# Messages for a full disk of the C library, of safetensors (Rust) and of torch's archive writer.
_DISK_FULL = ("No space left on device", "os error 28", "failed writing file")


def check_output(out: Path, kind: str) -> None:
    """Raise `BadInput` unless `out` is absent, an empty folder, or an earlier output of the same `kind`.

    Call it before long work; `staged_folder` calls it again.
    """
    marker = OUR_FILES[kind]
    if out.is_dir():
        if any(out.iterdir()) and not (out / marker).is_file():
            reason = f"exists and is not a {kind} that compress wrote (no {marker})"
            raise BadInput(f"--out {out}: {reason}; choose another folder")
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

    Raises `BadInput` as `check_output` does, and for a full disk.
    """
    out = Path(os.path.abspath(out))
    check_output(out, kind)
    staging = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        staging.mkdir()
        yield staging
        _swap(staging, out)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if is_disk_full(error):
            raise BadInput(f"--out {out}: the disk is full; free some space or choose another disk") from error
        raise


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; its folder is made if absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def replace_file(file: Path, content: bytes) -> None:
    """Write a file atomically: after a crash it is the old or the new one."""
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("wb") as written:
        written.write(content)
        written.flush()
        os.fsync(written.fileno())
    temporary.replace(file)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error or its cause is a full disk; some libraries say so in the message only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _swap(staging: Path, out: Path) -> None:
    """Replace `out` by `staging`; an older output is removed last."""
    umask = os.umask(0)
    os.umask(umask)
    for path in staging.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)  # safetensors creates files for the owner alone
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    if out.exists():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove the staging folders of killed processes."""
    for pattern in (f".{out.name}.partial-*", f".{out.name}.old-*"):
        for left in out.parent.glob(pattern):
            pid = left.name.rpartition("-")[2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(left, ignore_errors=True)
