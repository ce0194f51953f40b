"""The seconds that a run has taken, over all processes that worked on it one after another.

The clock is an argument, so that a test can simulate time. The default, `time.monotonic`, continues while a process is
stopped or the machine is busy, and stands still while the machine is suspended (Linux, macOS).
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chitchat.system.folder import write_json

CLOCK = "clock.json"
NOTE_SECONDS = 5.0  # between two notes in the file: the most that a kill loses


class Stopwatch:
    """Runs from the moment that it is made; `clock` gives seconds from an arbitrary time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._begun = clock()
        self._noted = 0.0
        self._file: Path | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far, those of earlier processes included."""
        return self.clock() - self._begun

    def part(self, ends: float, share: float) -> float:
        """The time at which that share of the time from now to `ends` is over."""
        now = self.seconds
        return now + share * max(0.0, ends - now)

    def keep_in(self, file: Path, resume: bool) -> None:
        """Note the seconds in `file` from now on and, to `resume`, add those that an earlier process noted there.

        Only the first call has an effect: the parts of a run share its stopwatch.
        """
        if self._file is not None:
            return
        self._file, self._noted = file, self.seconds
        if resume:
            with suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or the disk was full
                self._begun -= float(json.loads(file.read_text(encoding="utf-8"))["seconds"])

    def note(self) -> None:
        """Write the seconds to the file, at most every `NOTE_SECONDS`."""
        if self._file is not None and self.seconds - self._noted >= NOTE_SECONDS:
            self._noted = self.seconds
            write_json(self._file, {"seconds": self._noted})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the stopwatch stands still."""
        begun = self.clock()
        try:
            yield
        finally:
            self._begun += self.clock() - begun
