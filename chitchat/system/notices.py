"""What is said on the way: notices on stderr of what was assumed or repaired, and the log of the work.

The log is that of the Python API: a script sees it as it sees any logger, and the command line prints it.
"""

import logging
import sys
from functools import cache

log = logging.getLogger("chitchat_compress")


@cache
def announce_once(line: str) -> None:
    """Print a line on stderr, the first time that it is given."""
    print(line, file=sys.stderr, flush=True)
