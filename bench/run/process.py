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
from typing import IO, Any

from chitchat.errors import WorkFailed
from chitchat.system.child import child_environment

WORKER = ("-P", "-m", "bench.run.worker")  # -P: a file in the current folder is not imported in place of a package


class WorkerLost(WorkFailed):
    """A worker crashed, hung or refused; the message is one line with what it last said."""


class WorkerProcess:
    """A `bench.run.worker`: ask it, one request at a time. The process starts with the first one."""

    def __init__(self, command: Sequence[str], threads: int, timeout_s: float) -> None:
        self._command, self._timeout_s = list(command), timeout_s
        # The same thread count for every library, and the project importable from any folder.
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        self._environment = {**child_environment(), **counts, "TOKENIZERS_PARALLELISM": "false"}
        self._process: subprocess.Popen[bytes] | None = None
        self._since = 0.0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - what it says to stderr; closed in `close`
        self._answers: queue.Queue[bytes] = queue.Queue()

    @property
    def age_s(self) -> float:
        """Seconds since the process was started; 0 before that."""
        return 0.0 if self._process is None else time.perf_counter() - self._since

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the answer to one request. Raises `WorkerLost`."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise WorkerLost(f"no answer to {request['op']} in {self._timeout_s:g} s") from None
        except OSError:
            line = b""
        if not line:
            raise WorkerLost(self._last_words(process))
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise WorkerLost(f"answered {line[:80]!r}, which is not JSON") from error
        if not answer.pop("ok"):
            raise WorkerLost(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, politely first. It may be called twice."""
        process = self._process
        if process is not None and not self._log.closed:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.close()
                process.wait(timeout=2.0)
            except (OSError, subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()
            self._reader.join()
            process.stdout.close()
        self._log.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._since = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is the controller's to answer
            )
        except OSError as error:
            raise WorkerLost(f"cannot be started: {error}") from error
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout], daemon=True)
        self._reader.start()
        return self._process

    def _read(self, output: IO[bytes]) -> None:
        for line in output:
            self._answers.put(line)
        self._answers.put(b"")  # the end

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        """How the process ended, and the last lines that it wrote to stderr."""
        try:
            code = process.wait(timeout=10)
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
