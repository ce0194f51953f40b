"""What every command shares: exit codes, one-line errors, figures for people and for programs.

Errors are mapped at this one boundary. Our own carry an `exit_code`; everything else is the work failing, told in one
line too (`COMPRESS_DEBUG=1` shows the traceback).
"""

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from chitchat.options import remedy_of
from chitchat.system.notices import log

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
INTERVAL = "_interval"
_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EROFS)  # what the system says of a name that was typed


def call(command: Callable[[], Any], program: str = "compress") -> NoReturn:
    """Run the command line and leave the process with its exit code; a foreseen end never prints a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_exit_code(command, program))


def _exit_code(command: Callable[[], Any], program: str) -> int:
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        help_of = " ".join([program, *(error.command_chain or ()), "--help"])
        return _say(f"{_usage_line(error)}; see `{help_of}`", BAD_INPUT)
    except KeyboardInterrupt as error:
        return _say(str(error) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left (`compress info … | head`): nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        remedy = "this verb needs `pip install 'chitchat-compress[cpu]'` (or [gpu])"
        return _say(f"the package {error.name} is not installed; {remedy}", BAD_INPUT)
    except Exception as error:
        if os.environ.get("COMPRESS_DEBUG"):
            raise
        code = getattr(error, "exit_code", None)
        if code is not None:
            return _say(str(error), int(code))
        if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename:
            reason = f"{str(error.filename)[:200]}: cannot be used ({error.strerror})"
            return _say(f"{reason}; check the path and its permissions", BAD_INPUT)
        reason = " ".join(str(error).split()) or "no reason given"
        return _say(f"{type(error).__name__}: {reason} (COMPRESS_DEBUG=1 shows where)", FAILED)


def _usage_line(error: CycloptsError) -> str:
    """A usage error in one line that names the option and the value."""
    error.verbose = False
    argument = error.argument
    name = "" if argument is None else argument.name if argument.name.startswith("-") else argument.name.upper()
    match error:
        case UnknownCommandError():
            return f"No such command '{(error.unused_tokens or [''])[0]}'"
        case UnknownOptionError():
            return str(error).replace("Unknown option", "No such option").rstrip("?.").replace(". Did", "; did")
        case UnusedCliTokensError():
            return f"Got unexpected arguments: {' '.join(error.unused_tokens or [])}"
        case MissingArgumentError() if error.keyword is None and not (argument and argument.tokens):
            return f"Missing {'option' if name.startswith('-') else 'argument'} '{name}'"
        case MissingArgumentError():
            return f"Option '{error.keyword or name}' requires a value"
        case CoercionError() if error.token is not None and argument is not None:
            return f"{name} {error.token.value[:200]}: {remedy_of(argument.hint)}"
    return str(error).rstrip(".")


def _say(line: str, code: int) -> int:
    print(f"compress: {' '.join(line.split())}", file=sys.stderr)
    return code


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C does, so that staging folders go away."""
    raise SystemExit(TERMINATED)


def is_leader() -> bool:
    """Whether this process speaks: alone, or as the first of a distributed run.

    The process group is asked, not the environment: a `RANK` that a shell or a cluster left behind silences nobody.
    """
    distributed = sys.modules.get("torch.distributed")  # a command without torch has no process group
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return True
    return bool(distributed.get_rank() == 0)


def show(figures: Mapping[str, Any], as_json: bool) -> None:
    """Print a command's figures: a line each for people and, when asked for, one JSON object as the last line.

    NAME_interval, [low, high], stands on the line of NAME.
    """
    if not is_leader():
        return
    width = max((len(name) for name in figures if not name.endswith(INTERVAL)), default=0)
    for name, value in figures.items():
        if not isinstance(value, (dict, list)) and not name.endswith(INTERVAL):
            print(f"{name.replace('_', ' '):<{width}}  {_plain(value)}{_between(figures.get(name + INTERVAL))}")
    if as_json:
        print(json.dumps(figures, ensure_ascii=False, default=str), flush=True)


def show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of the same fields, a line each; fields that are empty in all rows are left out."""
    if not is_leader() or not rows:
        return
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [[name.replace("_", " ") for name in names]]
    cells += [["-" if row[name] is None else _plain(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _between(interval: Sequence[float] | None) -> str:
    """The interval of a figure, where it has one, to stand behind it."""
    return f"  ({_plain(interval[0])} to {_plain(interval[1])})" if interval else ""


def _plain(value: Any) -> str:
    """A figure as people write it: four significant digits for fractions, separators in large counts."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


class _OneLine(logging.Handler):
    """Shows a warning of ours as one line on the stderr of the moment, and what was done as one on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            print(record.getMessage(), flush=True)
        else:
            print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr, flush=True)


def show_log() -> None:
    """Show the log of the Python API, a line each."""
    log.propagate = False
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _OneLine) for handler in log.handlers):
        log.addHandler(_OneLine())


def quiet_libraries() -> None:
    """Defaults for what the libraries print; a variable that the user has set stays as it is."""
    for name, value in {
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
