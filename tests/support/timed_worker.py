"""A bench worker whose only model has known times and a known size: `timed_worker.py LOG`.

The real `bench.run.worker` around a false runtime. The spec is `name ttft_ms step_ms megabytes`; what it really slept
is appended to LOG, by another clock than the one that measures.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bench.run.worker
from bench.models.kind import RuntimeKind
from bench.models.loaded import Floats, LoadedModel, TimedReply, as_timed_reply

LOG = Path(sys.argv[1])


class TimedModel(LoadedModel):
    """Sleeps in place of computing. The id after a prompt is its sum modulo 50; "wrong" says another one."""

    context = 64
    supports_concurrency = True

    @classmethod
    def open(cls, spec: str, threads: int, device: str, slots: int = 1) -> "TimedModel":
        return cls(spec, threads, slots)

    def __init__(self, spec: str, threads: int, slots: int) -> None:
        self._name, *numbers = spec.split()
        self._first_s, self._step_s, size = (float(number) / 1000 for number in numbers)
        self._ballast = np.ones(int(size * 1e9 / 8))
        self._note(op="load", threads=threads, slots=slots)

    def generate(
        self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int, *, reuse: bool = False
    ) -> TimedReply:
        times: list[float] = []
        ids: list[int] = []
        slept: list[float] = []
        started = time.perf_counter()
        for index in range(new_tokens):
            before = time.monotonic_ns()
            time.sleep(self._step_s if index else self._first_s)
            slept.append((time.monotonic_ns() - before) / 1e6)
            ids.append((sum(prompt) + index + (self._name == "wrong" and index == 2)) % 50)
            times.append(time.perf_counter())
        self._note(op="sample", prompt=list(prompt), slept=slept, reuse=reuse)
        return as_timed_reply(started, times, ids, new_tokens)

    def generate_concurrent(self, prompts: Sequence[Sequence[int]], new_tokens: int, end_of_turn_id: int) -> Any:
        return [self.generate(prompt, new_tokens, end_of_turn_id) for prompt in prompts]

    def logits(self, ids: Sequence[int]) -> Floats:
        """One peak: the id that `generate` says after another one of its own; "undecided" finds all ids equal."""
        rows = np.zeros((len(ids), 50))
        rows[-1, (ids[-1] + 1) % 50] = self._name != "undecided"
        return rows

    def scorer(self) -> Any:
        raise NotImplementedError

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        raise NotImplementedError

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Floats:
        raise NotImplementedError

    def _note(self, **entry: Any) -> None:
        with LOG.open("a") as file:
            print(json.dumps({"name": self._name, **entry}), file=file)


if __name__ == "__main__":
    kind = RuntimeKind(name="timed", model=TimedModel, modules=("numpy",))
    bench.run.worker.find_kind = lambda address: kind
    bench.run.worker.main()
