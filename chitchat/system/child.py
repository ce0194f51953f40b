"""A command of ours as a child process: progress goes to our stderr, figures come back, and it never outlives us.

Ctrl-C in a terminal reaches parent and child alike, so the child is first given time to clean up by itself; a SIGTERM
is passed on; and when the parent is killed, the kernel kills the child (Linux), so that no orphan goes on writing. For
that this file is also a script: it asks the kernel, then becomes the command.
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

_GRACE_S = 5.0  # for a child that got the Ctrl-C as well
_CLEAN_UP_S = 30.0  # for one that was told to end
_PR_SET_PDEATHSIG = 1

PROJECT = Path(__file__).resolve().parents[2]  # the folder that our packages lie in


def child_environment() -> dict[str, str]:
    """Our environment, with the project importable in any folder and by any interpreter.

    An installed project is not put on the path: all other packages of this environment would come with it and hide
    those of the interpreter that runs. There the other environment has its own copy (extras `peers`, `portable`).
    """
    if PROJECT.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{path}" if path else str(PROJECT)}


def run_child(argv: Sequence[str], echo: Callable[[str], None]) -> tuple[int, dict[str, Any] | None]:
    """Run `argv`; give its exit code (-n: killed by signal n) and the JSON object in its last line of stdout, if any.

    The lines before go to `echo`. What ends this function early ends the child too.
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
    """Wait for a child that may be ending, tell it to end, kill it at last."""
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


def _become(parent: int, argv: Sequence[str]) -> None:
    """Ask the kernel for a SIGKILL at the parent's death, then be the command. Both outlast an exec.

    Not in `preexec_fn`, which runs between fork and exec: unsafe where the parent has threads.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew
            sys.exit(1)
    os.execvp(argv[0], list(argv))


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
