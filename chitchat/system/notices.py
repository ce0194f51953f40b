"""Notices on stderr about assumptions and repairs, each once per process."""

import sys
from functools import cache


@cache
def announce_once(line: str) -> None:
    """Print a line on stderr, once per process."""
    print(line, file=sys.stderr, flush=True)
