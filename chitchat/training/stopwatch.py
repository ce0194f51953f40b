"""The seconds that a run has taken, over all the processes that worked on it one after another.

Minutes that a user gives are kept by this figure. It is read from a clock that is passed, so that a test can be slow
without waiting. The default, `time.monotonic`, goes on while a process is stopped or its machine busy, and stands still
while the machine is suspended (Linux, macOS): a sleeping machine does not work, so that time is not counted.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chitchat.system.folder import write_json

CLOCK = "clock.json"
NOTE_SECONDS = 5.0  # between two notes in the file: what a kill can make a resumed run forget, at most


class Stopwatch:
    """Runs from the moment that it is made; `clock` gives seconds from any beginning."""

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
        """When that share of the time from now to `ends` will be over."""
        now = self.seconds
        return now + share * max(0.0, ends - now)

    def keep_in(self, file: Path, resume: bool) -> None:
        """Note the seconds in `file` from now on and, to `resume`, add those that an earlier process noted there.

        Only the first call has an effect: parts of a run share the stopwatch of the whole.
        """
        if self._file is not None:
            return
        self._file, self._noted = file, self.seconds
        if resume:
            try:
                self._begun -= float(json.loads(file.read_text(encoding="utf-8"))["seconds"])
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
            ):  # none yet, or the disk was full: what is lost is seconds
                return

    def note(self) -> None:
        """Write the seconds down, once in a while."""
        if self._file is not None and self.seconds - self._noted >= NOTE_SECONDS:
            self._noted = self.seconds
            write_json(self._file, {"seconds": self._noted})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, the stopwatch stands still."""
        begun = self.clock()
        try:
            yield
        finally:
            self._begun += self.clock() - begun
