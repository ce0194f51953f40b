"""One model in one process: `python -m bench.worker`, requests and answers as JSON lines on stdin and stdout.

A process of its own gives every model its own memory figure and its own thread pools, and a crash costs one row of
the table. Requests are `{"op": …}`, answers `{"ok": true, …}` or `{"ok": false, "error": one line}`:

    load     spec, kind, threads, device              -> load_s
    sample   prompt (ids), new_tokens, end_of_turn_id -> ttft_ms, token_ms (one a token after the first), ids
    memory                                            -> peak_rss_mb (of this process up to now)
    quality  data, task (`bench.quality.Task`), teacher (null, or spec and kind of a model to compare with)
                                                      -> quality (`bench.quality.Quality` as JSON)

It ends at the end of stdin. What libraries print to stdout goes to stderr, so that it cannot break the protocol. It
imports neither torch nor onnxruntime before a model asks for one: the memory figure is that of the runtime that ships.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.backends import open_backend
from bench.memory import status_mb
from bench.sample import Backend

MB = 1_000_000


def peak_rss_mb() -> float:
    """The most memory this process ever held, in MB of 10^6 bytes.

    From VmHWM: on Linux `getrusage` starts a child at its parent's peak, so that a small runtime started by a large
    process would look large.
    """
    peak = status_mb("VmHWM")
    if peak is not None:
        return peak
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


class Worker:
    """Answers requests about the one model that it was told to load."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._place: tuple[int, str] = (1, "cpu")  # threads and device

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what `request["op"]` names and give its figures."""
        operations = {"load": self._load, "sample": self._sample, "memory": self._memory, "quality": self._quality}
        return operations[request["op"]](request)

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        make = open_backend(request["kind"])  # imports the runtime, which is not what load_s measures
        started = time.perf_counter()
        self._place = request["threads"], request["device"]
        self._backend = make(request["spec"], *self._place)
        return {"load_s": time.perf_counter() - started}

    def _sample(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._backend is not None, "load comes first"
        sample = self._backend.generate(request["prompt"], request["new_tokens"], request["end_of_turn_id"])
        return {"ttft_ms": sample.ttft_ms, "token_ms": sample.token_ms, "ids": sample.ids}

    def _memory(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"peak_rss_mb": peak_rss_mb()}

    def _quality(self, request: dict[str, Any]) -> dict[str, Any]:
        from bench.quality import Task, measure_quality, open_held_out

        assert self._backend is not None, "load comes first"
        teacher, of = None, request["teacher"]
        if of is not None:
            teacher = open_backend(of["kind"])(of["spec"], *self._place).runtime()
        data = open_held_out(Path(request["data"]))
        return {"quality": measure_quality(self._backend.runtime(), data, Task(**request["task"]), teacher).as_json()}


def main() -> None:
    """Answer requests until stdin ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = {"ok": True, **worker.answer(json.loads(line))}
        except Exception as error:
            reason = " ".join(str(error).split())
            named = reason if hasattr(error, "exit_code") else f"{type(error).__name__}: {reason}"
            answer = {"ok": False, "error": named}
        print(json.dumps(answer), file=channel, flush=True)


if __name__ == "__main__":
    main()
