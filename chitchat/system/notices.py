"""Notices on stderr about assumptions and repairs, each once per process; and the log of the work.

The log is that of the Python API: a script sees it as it sees any logger, and the command line prints it.
"""

import logging
import sys
from functools import cache

log = logging.getLogger("chitchat_compress")


@cache
def announce_once(line: str) -> None:
    """Print a line on stderr, once per process."""
    print(line, file=sys.stderr, flush=True)
