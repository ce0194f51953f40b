"""A conversation as a file: a line of JSON for each exchange, complete lines only.

docs/formats.md describes the fields. A line is written whole and at once; one that does not fit the disk is taken away
again. Nothing that the file holds already is changed.
"""

import json
import os
import stat
from dataclasses import asdict
from pathlib import Path

from serve.commands import Exchange
from serve.errors import BadRequest


def check_file(path: Path) -> None:
    """Raise BadRequest unless lines can be appended to `path`; nothing is made or changed."""
    if path.is_dir():
        raise BadRequest(f"{path}: is a folder; name a file")
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise BadRequest(f"{path}: cannot be written in {path.parent}; name a file in a folder that is there")
        return
    if not os.access(path, os.W_OK):
        raise BadRequest(f"{path}: cannot be written; name another file")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                raise BadRequest(f"{path}: its last line is not complete; complete it, or name another file")


def line_of(exchange: Exchange, conversation: str, number: int, model: str) -> bytes:
    """The line of exchange `number` (from 1) of the conversation that began at `conversation`, newline included."""
    options = {
        name: value for name, value in asdict(exchange.options).items() if name not in ("logprobs", "earlier_ids")
    }
    value = {
        "conversation": conversation,
        "number": number,
        "user": exchange.user,
        "bot": exchange.bot,
        "model": model,
        "options": {**options, "history": exchange.history},
        "started": exchange.started,
        "ttft_ms": round(exchange.ttft_ms, 3),
        "seconds": round(exchange.seconds, 6),
        "tokens": exchange.tokens,
        "stopped": exchange.stopped,
    }
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def append(path: Path, lines: bytes) -> None:
    """Append complete lines, all or none. Raises BadRequest for a file that cannot take them."""
    check_file(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); name another file") from error
    try:
        before = os.fstat(descriptor)
        try:
            if os.write(descriptor, lines) < len(lines):
                raise OSError(0, "the disk is full")
        except OSError as error:
            if stat.S_ISREG(before.st_mode):
                os.ftruncate(descriptor, before.st_size)
            raise BadRequest(f"{path}: cannot be written ({error.strerror}); name another file") from error
    finally:
        os.close(descriptor)
