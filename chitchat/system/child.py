"""A command of this project as a child process that returns figures and never outlives its parent.

Ctrl-C in a terminal reaches parent and child, so the child first gets time to clean up; SIGTERM is passed on; and if
the parent is killed, the kernel kills the child (Linux). For that this file is also a script, which asks the kernel and
then executes the command.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_GRACE_S = 5.0  # for a child that received the Ctrl-C as well
_CLEAN_UP_S = 30.0  # for a child that received a signal from here
_PR_SET_PDEATHSIG = 1

PROJECT = Path(__file__).resolve().parents[2]  # the folder of the packages


def child_environment() -> dict[str, str]:
    """This process's environment variables, with the project on PYTHONPATH.

    An installed project is not added: its folder holds all packages of this environment, which would hide those of the
    other interpreter. That environment then has its own copy (extras `peers`, `portable`).
    """
    if PROJECT.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{path}" if path else str(PROJECT)}


def run_child(argv: Sequence[str], echo: Callable[[str], None]) -> tuple[int, dict[str, Any] | None]:
    """Run `argv`; return its exit code (-n: killed by signal n) and the JSON object in its last line of stdout, if any.

    The lines before go to `echo`. An exception here ends the child.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=child_environment(),
    )
    assert process.stdout is not None
    last = ""
    try:
        for line in process.stdout:
            if last:
                echo("  " + last)
            last = line.rstrip("\n")
        code = process.wait()
    except KeyboardInterrupt:
        _end(process, signal.SIGINT, _GRACE_S)
        raise
    except BaseException:
        _end(process, signal.SIGTERM, 0.0)
        raise
    finally:
        process.stdout.close()
    figures = _parse(last)
    if figures is None and last:
        echo("  " + last)
    return code, figures


def _parse(line: str) -> dict[str, Any] | None:
    try:
        figures = json.loads(line)
    except ValueError:
        return None
    return figures if isinstance(figures, dict) else None


def _end(process: "subprocess.Popen[str]", how: signal.Signals, grace_s: float) -> None:
    """Wait for a child that may be ending, signal it, kill it at last."""
    try:
        for wait_s in (grace_s, _CLEAN_UP_S):
            try:
                process.wait(wait_s)
                return
            except subprocess.TimeoutExpired:
                process.send_signal(how)
    finally:
        process.kill()  # does nothing to a process that has ended
        process.wait()


def _execute(parent: int, argv: Sequence[str]) -> None:
    """Ask the kernel for a SIGKILL at the parent's death, which survives an exec, and execute the command.

    Not in `preexec_fn`, which is unsafe if the parent has threads.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the request
            sys.exit(1)
    os.execvp(argv[0], list(argv))


if __name__ == "__main__":
    _execute(int(sys.argv[1]), sys.argv[2:])
