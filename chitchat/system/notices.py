"""What was assumed or repaired on the way, told on stderr once a process."""

import sys
from functools import cache


@cache
def announce_once(line: str) -> None:
    """Print a line on stderr, the first time that it is given."""
    print(line, file=sys.stderr, flush=True)
