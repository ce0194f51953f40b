"""How fast this machine reads memory: the ceiling of decoding, which reads every weight once a token."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ARRAY_BYTES = 128_000_000  # far beyond any cache, for each thread
READS = 5


def reader(threads: int) -> Callable[[], float]:
    """Give a function that reads `threads` arrays at once, one a thread, and tells GB (10^9 bytes) per second.

    It is the fastest of `READS`: a ceiling is what the machine can do, and other work only takes from it. numpy
    releases the interpreter's lock while it sums, and one sum of doubles is limited by memory, not by arithmetic.
    """
    arrays = [np.ones(ARRAY_BYTES // 8) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def once() -> float:
        started = time.perf_counter()
        list(pool.map(np.sum, arrays))
        return threads * ARRAY_BYTES / (time.perf_counter() - started) / 1e9

    def read() -> float:
        return max(once() for _ in range(READS))

    return read
