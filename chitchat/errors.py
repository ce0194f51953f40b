"""The exceptions of all packages but `serve`, which has its own (`serve.errors`); the command line prints one line.

Both have an `exit_code`.
"""

from typing import ClassVar


class ChitchatError(Exception):
    """Base of the tree. The message is one line: which option or file, which value, what to do."""

    exit_code: ClassVar[int] = 1


class BadInput(ChitchatError):
    """What the user gave cannot be used (exit code 2)."""

    exit_code: ClassVar[int] = 2


class WorkFailed(ChitchatError):
    """The input was good and the work did not succeed (exit code 1)."""


def one_line(error: BaseException, limit: int = 160) -> str:
    """The message of a library's exception in one line of at most `limit` characters; its class if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
