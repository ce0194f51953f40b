"""Latency and memory of several models side by side: each in its own process, taking turns.

The controller loads every model, warms each one up, and then goes A B C A B C …: one prompt a round, the same for all,
so that a slow minute of the machine falls on all models alike. Ratios are taken round by round. Raw samples are kept.
A worker that fails or hangs loses its row, with its last words, and the others go on. What the workers do is in
`bench.worker`; tables and files are `bench.report`'s.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from chitchat.errors import WorkFailed

WORKER = (sys.executable, "-m", "bench.worker")
# The threads of the model before go on spinning: onnxruntime's for 50 to 70 ms, measured. A model that is timed beside
# them waits for whole time slices of the scheduler.
_SETTLE_S = 0.15


@dataclass(frozen=True)
class Job:
    """One model to measure; `kind` chooses the runtime (`bench.backends`).

    With `compared` its predictions are compared with those of the first job, which has the same vocabulary.
    """

    name: str
    spec: str
    kind: str
    end_of_turn_id: int
    compared: bool = False


@dataclass(frozen=True)
class Plan:
    """What every model is asked to do.

    `warmups` and `prompts` hold one prompt (ids) each per round. `data` and `task` (the fields of `bench.quality.Task`)
    are for the quality; without `data` none is taken. `timeout_s` bounds one answer, loading and scoring included.
    """

    warmups: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]
    new_tokens: int
    threads: int
    device: str = "cpu"
    data: Path | None = None
    task: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 1800.0


@dataclass
class Measurement:
    """What one model gave. `samples[i]` belongs to round i; `error` are the last words of a worker that was lost.

    `quality` is a `bench.quality.Quality` as JSON.
    """

    job: Job
    load_s: float | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    peak_rss_mb: float | None = None
    quality: dict[str, Any] | None = None
    error: str | None = None


class WorkerLost(WorkFailed):
    """A worker crashed, hung or refused; the message is one line with what it last said."""


class WorkerProcess:
    """A running `bench.worker`: ask it, one request at a time."""

    def __init__(self, command: Sequence[str], threads: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker, closed in `close`
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_worker_environment(threads),
        )
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the answer to one request. Raises `WorkerLost`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise WorkerLost(f"no answer to {request['op']} in {self._timeout_s:g} s") from None
        except OSError:
            line = b""
        try:
            answer: dict[str, Any] = json.loads(line) if line else {}
        except ValueError as error:
            raise WorkerLost(f"answered {line[:80]!r}, which is not JSON") from error
        if not answer:
            raise WorkerLost(self._last_words())
        if not answer.pop("ok"):
            raise WorkerLost(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, politely first. It may be called twice."""
        if self._log.closed:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=2.0)
        except (OSError, subprocess.TimeoutExpired):
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

    def _last_words(self) -> str:
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
        said = self._log.read().decode(errors="replace").split("\n")
        words = " / ".join(line.strip() for line in said if line.strip())[-300:]
        return f"{how}; last words: {words}" if words else f"{how} without a word"


def measure(jobs: Sequence[Job], plan: Plan, command: Sequence[str] = WORKER) -> list[Measurement]:
    """Measure all jobs side by side, in their order; `command` starts a worker."""
    results = [Measurement(job) for job in jobs]
    steps = len(jobs) * (1 + len(plan.warmups) + len(plan.prompts) + (plan.data is not None))
    with ExitStack() as stack, tqdm(total=steps, desc="bench", unit="step", disable=None) as progress:
        workers = [stack.enter_context(_worker(command, plan)) for _ in jobs]
        pairs = list(zip(workers, results, strict=True))
        for worker, result in pairs:
            _attempt(worker, result, progress, _load, plan)
        for prompt in plan.warmups:
            for worker, result in pairs:
                _attempt(worker, result, progress, _sample, plan, prompt, keep=False)
        for prompt in plan.prompts:
            for worker, result in pairs:
                _attempt(worker, result, progress, _sample, plan, prompt, keep=True)
        for worker, result in pairs:
            _attempt(worker, result, None, _memory)
        for worker, result in pairs:
            if plan.data is not None:
                teacher = results[0].job if result.job.compared and results[0].error is None else None
                _attempt(worker, result, progress, _quality, plan, teacher)
            worker.close()  # makes room for the next one's scoring
    return results


@contextmanager
def _worker(command: Sequence[str], plan: Plan) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(command, plan.threads, plan.timeout_s)
    try:
        yield worker
    finally:
        worker.close()


def _attempt(worker: WorkerProcess, result: Measurement, progress: Any, step: Any, *args: Any, **options: Any) -> None:
    """Do one step with one worker, unless it is lost already; losing it ends its row only."""
    if progress is not None:
        progress.set_postfix_str(result.job.name, refresh=False)
    if result.error is None:
        try:
            step(worker, result, *args, **options)
        except WorkerLost as lost:
            result.error = str(lost)
            worker.close()
    if progress is not None:
        progress.update()


def _load(worker: WorkerProcess, result: Measurement, plan: Plan) -> None:
    job = result.job
    request = {"op": "load", "spec": job.spec, "kind": job.kind, "threads": plan.threads, "device": plan.device}
    result.load_s = worker.ask(request)["load_s"]


def _sample(worker: WorkerProcess, result: Measurement, plan: Plan, prompt: Sequence[int], *, keep: bool) -> None:
    settle()
    request = {
        "op": "sample",
        "prompt": [int(token) for token in prompt],
        "new_tokens": plan.new_tokens,
        "end_of_turn_id": result.job.end_of_turn_id,
    }
    sample = worker.ask(request)
    if keep:
        result.samples.append(sample)


def settle() -> None:
    """Wait until the threads of the model before have gone to sleep."""
    time.sleep(_SETTLE_S)


def _memory(worker: WorkerProcess, result: Measurement) -> None:
    result.peak_rss_mb = worker.ask({"op": "memory"})["peak_rss_mb"]


def _quality(worker: WorkerProcess, result: Measurement, plan: Plan, teacher: Job | None) -> None:
    of = None if teacher is None else {"spec": teacher.spec, "kind": teacher.kind}
    request = {"op": "quality", "data": str(plan.data), "task": dict(plan.task), "teacher": of}
    result.quality = worker.ask(request)["quality"]


def latency_figures(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians and tails of the samples of one model; ms, and new tokens over prompt + decode time in tokens/s."""
    first = [sample["ttft_ms"] for sample in samples]
    steps = [step for sample in samples for step in sample["token_ms"]]
    rates = [len(sample["ids"]) / _total_ms(sample) * 1000 for sample in samples]
    return {
        "ttft_ms_p50": float(np.percentile(first, 50)),
        "ttft_ms_p95": float(np.percentile(first, 95)),
        "tpot_ms_p50": float(np.percentile(steps, 50)),
        "tpot_ms_p95": float(np.percentile(steps, 95)),
        "tokens_per_s": float(np.median(rates)),
    }


def speed_ratio(base: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> float:
    """How many times faster `other` is than `base`: the median over the rounds of the ratio within a round."""
    pairs = zip(base, other, strict=True)
    return float(np.median([_total_ms(before) / _total_ms(after) for before, after in pairs]))


def _total_ms(sample: dict[str, Any]) -> float:
    return float(sample["ttft_ms"] + sum(sample["token_ms"]))


def _worker_environment(threads: int) -> dict[str, str]:
    """Our environment with the same thread count for every library, and the project importable from any folder."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root,
    }
