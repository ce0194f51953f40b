"""Notices on stderr of what was assumed or repaired, each once per process."""

import sys
from functools import cache


@cache
def announce_once(line: str) -> None:
    """Print a line on stderr, the first time that it is given."""
    print(line, file=sys.stderr, flush=True)
