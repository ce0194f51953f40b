"""The bench's worker in the process that asks: the same requests and answers as JSON, without a start for each model.

A worker of its own imports torch, which takes longer than all that the tiny models are asked.
"""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from bench.run import controller, rounds
from bench.run.process import WorkerLost
from bench.run.worker import BenchWorker


class InProcessWorker:
    """In place of `bench.run.process.WorkerProcess`."""

    age_s = 0.1

    def __init__(self, command: Sequence[str], threads: int, timeout_s: float) -> None:
        self._worker = BenchWorker()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the answer to one request. Raises `WorkerLost`."""
        try:
            answer = self._worker.answer(json.loads(json.dumps(request)))
        except Exception as error:
            raise WorkerLost(f"{type(error).__name__}: {error}") from error
        read: dict[str, Any] = json.loads(json.dumps(answer))
        return read

    def close(self) -> None:
        """End nothing: the process is the test's own."""


def bench_in_process(patch: pytest.MonkeyPatch) -> None:
    """Let `bench` ask workers in this process, which has no other's threads to wait for, until `patch` is undone."""
    patch.setattr(controller, "WorkerProcess", InProcessWorker)
    for module in (controller, rounds):
        patch.setattr(module, "wait_for_idle_threads", lambda: None)
