"""Who takes part in a bench, and whose turn it is: rows, their worker processes, and what all of them are asked.

A `Step` is what one row's worker is asked. The controller goes A B C A B C …, so that a slow minute of the machine
falls on all models alike; a worker that fails or hangs loses its row, with its last words, and the others go on.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.models.kind import RuntimeKind
from bench.run.process import WORKER, WorkerLost, WorkerProcess

# The threads of the model before go on spinning: onnxruntime's for 50 to 70 ms, measured. A model that is timed beside
# them waits for whole time slices of the scheduler.
_SETTLE_S = 0.15


@dataclass(frozen=True)
class BenchEntry:
    """One row to measure: `spec`, run by `kind` on `device`, in a process of the interpreter `python`.

    With `compared` its predictions are compared with those of the first entry, which has the same vocabulary. `prompts`
    are its own where its ids are others than the first entry's; `data` is its own data set. An entry with an `error` is
    not measured: its row says why. `full_precision` is the same runtime's model at full precision, whose greedy ids
    must be those of the first entry (`bench.run.agreement`). `text_pipeline` is what it needs for texts
    (`bench.models.text_pipeline.TextPipeline`).
    """

    name: str
    spec: str
    kind: RuntimeKind
    end_of_turn_id: int
    compared: bool = False
    device: str = "cpu"
    python: str = sys.executable
    prompts: Sequence[Sequence[int]] | None = None
    data: Path | None = None
    text_pipeline: Mapping[str, Any] | None = None
    full_precision: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class BenchPlan:
    """What every model is asked to do.

    `warmups` and `prompts` hold one prompt (ids) each per round. `data` and `task` (the fields of
    `bench.evaluate.measure.EvalTask`) are for the quality; without `data` none is taken. `timeout_s` bounds one answer,
    loading and scoring included. `scenarios` are names of `bench.run.scenarios.SCENARIOS` that are run beside the one
    conversation, `texts` what is said in them; `context` is the smallest one of all models.
    """

    warmups: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]
    new_tokens: int
    threads: int
    data: Path | None = None
    task: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 1800.0
    scenarios: Sequence[str] = ()
    texts: Sequence[str] = ()
    context: int = 0


@dataclass
class Measurement:
    """What was measured of one entry; `samples[i]` belongs to round i.

    `error` are the last words of a worker that was lost, `version` is that of the runtime's package. `quality` is a
    `bench.evaluate.measure.Quality` as JSON; `agreement` what `bench.run.agreement` found; `extra` holds raw samples by
    scenario.
    """

    entry: BenchEntry
    load_s: float | None = None
    version: str | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    peak_rss_mb: float | None = None
    device_mb: float | None = None
    quality: dict[str, Any] | None = None
    agreement: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


Step = Callable[[WorkerProcess, Measurement], object]


class Controller:
    """Workers for all entries, and turns among them. `command` starts a worker in place of the entry's interpreter."""

    def __init__(
        self,
        entries: Sequence[BenchEntry],
        plan: BenchPlan,
        progress: "tqdm[Any]",
        command: Sequence[str] | None = None,
    ) -> None:
        self.plan = plan
        self.rows = [Measurement(entry, error=entry.error) for entry in entries]
        self._progress = progress
        self._command = command

    @contextmanager
    def workers(self, threads: int | None = None) -> Iterator[list[WorkerProcess]]:
        """A fresh process for each row, ended afterwards; the model is not loaded yet."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.worker(row, threads)) for row in self.rows]

    @contextmanager
    def loaded(self, threads: int | None = None) -> Iterator[list[WorkerProcess]]:
        """A fresh process for each row, with its model."""
        with self.workers(threads) as workers:
            self.turn(workers, partial(self.load, threads=threads or self.plan.threads), settle_first=False)
            yield workers

    @contextmanager
    def worker(self, row: Measurement, threads: int | None = None) -> Iterator[WorkerProcess]:
        """A fresh process for one row."""
        command = self._command or (row.entry.python, *WORKER)
        with closing(WorkerProcess(command, threads or self.plan.threads, self.plan.timeout_s)) as worker:
            yield worker

    def turn(self, workers: Sequence[WorkerProcess], step: Step, *, settle_first: bool = True) -> None:
        """One step with every worker whose row is not lost; losing it ends its row only."""
        for worker, row in zip(workers, self.rows, strict=True):
            self.attempt(worker, row, step, settle_first=settle_first)

    def attempt(self, worker: WorkerProcess, row: Measurement, step: Step, *, settle_first: bool = True) -> None:
        """One step with one worker."""
        self._progress.set_postfix_str(row.entry.name, refresh=False)
        if row.error is None:
            if settle_first:
                wait_for_idle_threads()
            try:
                step(worker, row)
            except WorkerLost as lost:
                row.error = str(lost)
                worker.close()
        self._progress.update()

    def pass_over(self, steps: int) -> None:
        """Steps that are asked of nobody."""
        self._progress.update(steps)

    def load(self, worker: WorkerProcess, row: Measurement, **options: Any) -> dict[str, Any]:
        """The step that loads a row's model; `options` (threads, spec, slots) go before what plan and entry say."""
        entry = row.entry
        request = {"op": "load", "spec": entry.spec, "kind": entry.kind.address, "device": entry.device}
        return worker.ask(request | {"threads": self.plan.threads} | options)

    def first_token(self, worker: WorkerProcess, row: Measurement) -> None:
        """The step that loads a row's model and has it say one token: with a fresh worker, a cold start."""
        answer = self.load(worker, row)
        if row.load_s is None:
            row.load_s, row.version = answer["load_s"], answer.get("version")
        ask_sample(worker, row, self.prompts_of(row)[0], 1)
        row.extra.setdefault("cold-start", []).append(worker.age_s)

    def prompts_of(self, row: Measurement) -> Sequence[Sequence[int]]:
        """The timed prompts, in the row's own ids."""
        own = row.entry.prompts
        return self.plan.prompts if own is None else own[len(self.plan.warmups) :]


def ask_sample(
    worker: WorkerProcess, row: Measurement, prompt: Sequence[int], new_tokens: int, **options: Any
) -> dict[str, Any]:
    """One reply of a row's model."""
    request = {"op": "sample", "prompt": [int(token) for token in prompt], "new_tokens": new_tokens}
    return worker.ask(request | {"end_of_turn_id": row.entry.end_of_turn_id} | options)


def wait_for_idle_threads() -> None:
    """Wait until the threads of the model before have gone to sleep."""
    time.sleep(_SETTLE_S)
