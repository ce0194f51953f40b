"""Turns from a keyboard or a pipe: editing of the line, the lines of earlier sessions, turns of several lines.

Editing is readline's, where Python has it and stdin is a terminal. Earlier lines are in `history_file()`, which only
its owner may read; where it cannot be read or written there are none, and nothing is said.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_LINES = 1000
PROMPT, MORE = "you: ", "...: "

Read = Callable[[str], str]


def history_file() -> Path:
    """Where the lines of earlier sessions are: below XDG_STATE_HOME, which is ~/.local/state where it is not set.

    Raises RuntimeError where there is no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "chitchat-compress" / "chat-history"


def is_terminal() -> bool:
    """Whether somebody types at a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


@contextmanager
def edited_input() -> Iterator[Read]:
    """`input`, which edits lines and knows earlier ones while the context is open. EOFError ends it."""
    try:
        import readline
    except ImportError:
        yield input
        return
    if not is_terminal():
        yield input
        return
    with suppress(OSError, RuntimeError):
        readline.read_history_file(history_file())
    known = readline.get_current_history_length()
    try:
        yield input
    finally:
        with suppress(OSError, RuntimeError):
            file = history_file()
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.set_history_length(MAX_LINES)
            if hasattr(readline, "append_history_file"):  # not in libedit
                readline.append_history_file(readline.get_current_history_length() - known, file)
            else:
                readline.write_history_file(file)


def read_turn(read: Read) -> str:
    """One turn: a line, or several, where a backslash at the end says that it goes on; the backslashes are left out.

    Raises EOFError at the end of the input.
    """
    lines = [read(PROMPT)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(read(MORE))
        except EOFError:
            break
    return "\n".join(lines)
