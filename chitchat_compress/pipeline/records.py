"""What a pipeline notes of its stages: records that are whole at any moment, and the lock on the folder."""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput

RECORDS = ".stages"
_LOCK_WAIT_S = 3.0  # a child whose parent was killed this moment takes some time to die


def read_record(path: Path) -> dict[str, Any]:
    """A record; an empty one where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of `out`, which is made when it is absent, and removed again when nothing came to be in it."""
    records = out / RECORDS
    if (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir()) and not records.is_dir()):
        raise BadInput(f"--out {out}: exists and is not a folder that `compress run` made; choose another one")
    fresh = not out.exists()
    try:
        records.mkdir(parents=True, exist_ok=True)
        file = (records / "lock").open("w")
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from error
    with file:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"--out {out}: another `compress run` works in it; wait for it or choose another folder"
                    raise BadInput(message) from None
                time.sleep(0.05)
        try:
            yield
        finally:
            _remove_if_empty(out, fresh)


def _remove_if_empty(out: Path, fresh: bool) -> None:
    """Remove the records, and a fresh `out`, when no stage left anything: a run that was refused leaves nothing."""
    left = [path for path in out.iterdir() if path.name != RECORDS]
    left += [path for path in (out / RECORDS).iterdir() if path.name != "lock" and path.suffix != ".started"]
    if not left:
        shutil.rmtree(out if fresh else out / RECORDS, ignore_errors=True)
