"""A worker process of the bench, and how it is asked: one request, one answer, both a line of JSON.

A worker that crashes, hangs or refuses is lost with its last words; what it is asked is `bench.run.worker`'s.
"""

import json
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from chitchat.errors import WorkFailed
from chitchat.system.child import child_environment

WORKER = ("-P", "-m", "bench.run.worker")  # -P: a file in the current folder is not imported in place of a package


class WorkerLost(WorkFailed):
    """A worker crashed, hung or refused; the message is one line with what it last said."""


class WorkerProcess:
    """A `bench.run.worker`: ask it, one request at a time. The process starts with the first one."""

    def __init__(self, command: Sequence[str], threads: int, timeout_s: float) -> None:
        self._command, self._environment = list(command), _worker_environment(threads)
        self._timeout_s = timeout_s
        self._running: _Running | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the process was started; 0 before that."""
        return 0.0 if self._running is None else time.perf_counter() - self._running.since

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the answer to one request. Raises `WorkerLost`."""
        if self._running is None:
            try:
                self._running = _Running(self._command, self._environment)
            except OSError as error:
                raise WorkerLost(f"cannot be started: {error}") from error
        try:
            line = self._running.ask(json.dumps(request).encode() + b"\n", self._timeout_s)
        except queue.Empty:
            raise WorkerLost(f"no answer to {request['op']} in {self._timeout_s:g} s") from None
        except OSError:
            line = b""
        try:
            answer: dict[str, Any] = json.loads(line) if line else {}
        except ValueError as error:
            raise WorkerLost(f"answered {line[:80]!r}, which is not JSON") from error
        if not answer:
            raise WorkerLost(self._running.last_words())
        if not answer.pop("ok"):
            raise WorkerLost(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, politely first. It may be called twice."""
        if self._running is not None:
            self._running.close()


class _Running:
    """The process itself, with a thread that reads its answers."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process, closed in `close`
        self.since = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                start_new_session=True,  # Ctrl-C is the controller's to answer
            )
        except OSError:
            self._log.close()
            raise
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        """The next line of its output; empty at the end of it. Raises `queue.Empty`, and `OSError` for a lost one."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._answers.get(timeout=timeout_s)

    def close(self) -> None:
        if self._log.closed:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=2.0)
        except (OSError, subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")  # the end

    def last_words(self) -> str:
        """How the process ended, and the last lines that it wrote to stderr."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "closed its output without ending"
        how = f"ended with exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        words = " / ".join(line.strip() for line in lines if line.strip())[-300:]
        return f"{how}; last words: {words}" if words else f"{how} without a word"


def _worker_environment(threads: int) -> dict[str, str]:
    """Our environment with the same thread count for every library, and the project importable from any folder."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**child_environment(), **counts, "TOKENIZERS_PARALLELISM": "false"}
