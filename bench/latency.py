"""Several models side by side: each in its own process, taking turns.

The controller loads every model, warms each one up, and then goes A B C A B C …: one prompt a round, the same for all,
so that a slow minute of the machine falls on all models alike. Raw samples are kept; ratios are taken round by round
(`bench.timing`). A worker that fails or hangs loses its row, with its last words, and the others go on. What else the
models are asked to do is in `bench.scenarios`, what the workers do in `bench.worker`; tables and files are
`bench.report.document`'s.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.machine.bandwidth import reader
from bench.process import WORKER, WorkerLost, WorkerProcess

# The threads of the model before go on spinning: onnxruntime's for 50 to 70 ms, measured. A model that is timed beside
# them waits for whole time slices of the scheduler.
_SETTLE_S = 0.15


@dataclass(frozen=True)
class Job:
    """One row to measure; `kind` chooses the runtime (`bench.runtimes`), `python` the interpreter that has it.

    With `compared` its predictions are compared with those of the first job, which has the same vocabulary. `prompts`
    are its own where its ids are others than the first job's; `data` its own data set. A job with an `error` is not
    measured: its row says why. `whole` is the same runtime's model at full precision, whose greedy ids must be those of
    the first job (`bench.agreement`). `speech` is what it needs for texts (`bench.speech.Speech` as JSON).
    """

    name: str
    spec: str
    kind: str
    end_of_turn_id: int
    compared: bool = False
    device: str = "cpu"
    python: str = sys.executable
    prompts: Sequence[Sequence[int]] | None = None
    data: Path | None = None
    speech: Mapping[str, Any] | None = None
    whole: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """What every model is asked to do.

    `warmups` and `prompts` hold one prompt (ids) each per round. `data` and `task` (the fields of
    `bench.quality.measure.Task`) are for the quality; without `data` none is taken. `timeout_s` bounds one answer,
    loading and scoring included. `scenarios` are names of `bench.scenarios.SCENARIOS` that are run beside the one
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
    """What one model gave. `samples[i]` belongs to round i; `error` are the last words of a worker that was lost.

    `version` is that of the runtime's package. `quality` is a `bench.quality.measure.Quality` as JSON; `agreement` what
    `bench.agreement` found; `extra` holds raw samples by scenario.
    """

    job: Job
    load_s: float | None = None
    version: str | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    peak_rss_mb: float | None = None
    device_mb: float | None = None
    quality: dict[str, Any] | None = None
    agreement: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Measured:
    """All rows; `bandwidth` in GB/s, one a round; `partial` when the run was stopped before its end."""

    rows: list[Measurement]
    bandwidth: list[float] = field(default_factory=list)
    partial: bool = False


Step = Callable[[WorkerProcess, Measurement], None]


class Controller:
    """Workers for all jobs, and turns among them. `command` starts a worker in place of the job's own interpreter."""

    def __init__(
        self, jobs: Sequence[Job], plan: Plan, progress: "tqdm[Any]", command: Sequence[str] | None = None
    ) -> None:
        self.plan = plan
        self.rows = [Measurement(job, error=job.error) for job in jobs]
        self._progress = progress
        self._command = command

    @contextmanager
    def workers(self, threads: int | None = None) -> Iterator[list[WorkerProcess]]:
        """A fresh process for each row, ended afterwards; the model is not loaded yet."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.worker(row, threads)) for row in self.rows]

    @contextmanager
    def worker(self, row: Measurement, threads: int | None = None) -> Iterator[WorkerProcess]:
        """A fresh process for one row."""
        command = self._command or (row.job.python, *WORKER)
        worker = WorkerProcess(command, threads or self.plan.threads, self.plan.timeout_s)
        try:
            yield worker
        finally:
            worker.close()

    def turn(self, workers: Sequence[WorkerProcess], step: Step, *, settle_first: bool = True) -> None:
        """One step with every worker whose row is not lost; losing it ends its row only."""
        for worker, row in zip(workers, self.rows, strict=True):
            self.attempt(worker, row, step, settle_first=settle_first)

    def attempt(self, worker: WorkerProcess, row: Measurement, step: Step, *, settle_first: bool = True) -> None:
        """One step with one worker."""
        self._progress.set_postfix_str(row.job.name, refresh=False)
        if row.error is None:
            if settle_first:
                settle()
            try:
                step(worker, row)
            except WorkerLost as lost:
                row.error = str(lost)
                worker.close()
        self._progress.update()

    def pass_over(self, steps: int) -> None:
        """Steps that are asked of nobody."""
        self._progress.update(steps)


def measure(jobs: Sequence[Job], plan: Plan, command: Sequence[str] | None = None) -> Measured:
    """Measure all jobs side by side, in their order. Ctrl-C ends it early: complete rounds are kept.

    Raises `KeyboardInterrupt` when it came before the first round was complete.
    """
    from bench.agreement import check_agreement
    from bench.scenarios import SCENARIOS

    chosen = [SCENARIOS[name] for name in plan.scenarios]
    rounds = len(plan.warmups) + len(plan.prompts)
    judged = any(job.whole for job in jobs)
    each = 2 + rounds + (plan.data is not None) + sum(scenario.steps(plan) for scenario in chosen)
    with tqdm(total=judged + len(jobs) * each, desc="bench", unit="step", disable=None) as progress:
        controller = Controller(jobs, plan, progress, command)
        measured = Measured(controller.rows)
        try:
            check_agreement(controller)
            _one_conversation(controller, measured)
            for scenario in chosen:
                scenario.run(controller)
        except KeyboardInterrupt:
            if not _keep_complete_rounds(measured):
                raise
            measured.partial = True
    return measured


def load(plan: Plan, **options: Any) -> Step:
    """The step that loads a row's model; `options` override what the plan says (threads, slots)."""

    def step(worker: WorkerProcess, row: Measurement) -> None:
        _ask_load(worker, row, plan, **options)

    return step


def _ask_load(worker: WorkerProcess, row: Measurement, plan: Plan, **options: Any) -> dict[str, Any]:
    request = {"op": "load", "spec": row.job.spec, "kind": row.job.kind, "device": row.job.device}
    return worker.ask(request | {"threads": plan.threads} | options)


def ask_sample(worker: WorkerProcess, row: Measurement, prompt: Sequence[int], new_tokens: int, **options: Any) -> Any:
    """One reply of a row's model."""
    request = {"op": "sample", "prompt": [int(token) for token in prompt], "new_tokens": new_tokens}
    return worker.ask(request | {"end_of_turn_id": row.job.end_of_turn_id} | options)


def first_token(plan: Plan) -> Step:
    """The step that loads a row's model and has it say one token: with a fresh worker, a cold start."""

    def step(worker: WorkerProcess, row: Measurement) -> None:
        answer = _ask_load(worker, row, plan)
        if row.load_s is None:
            row.load_s, row.version = answer["load_s"], answer.get("version")
        ask_sample(worker, row, prompts_of(row, plan)[0], 1)
        row.extra.setdefault("cold-start", []).append(worker.age_s)

    return step


def prompts_of(row: Measurement, plan: Plan) -> Sequence[Sequence[int]]:
    """The timed prompts, in the row's own ids."""
    whole = row.job.prompts
    return plan.prompts if whole is None else whole[len(plan.warmups) :]


def settle() -> None:
    """Wait until the threads of the model before have gone to sleep."""
    time.sleep(_SETTLE_S)


def _one_conversation(controller: Controller, measured: Measured) -> None:
    """The timed rounds; then memory, and quality one model after the other."""
    plan = controller.plan
    read = reader(plan.threads)
    with controller.workers() as workers:
        controller.turn(workers, first_token(plan), settle_first=False)
        for place in range(len(plan.warmups) + len(plan.prompts)):
            controller.turn(workers, _round(plan, place))
            if place >= len(plan.warmups):
                settle()
                measured.bandwidth.append(read())
        controller.turn(workers, _memory, settle_first=False)
        for worker, row in zip(workers, controller.rows, strict=True):
            if plan.data is not None:
                controller.attempt(worker, row, _quality(plan, controller.rows[0]), settle_first=False)
            worker.close()  # makes room for the next one's scoring


def _round(plan: Plan, place: int) -> Step:
    def step(worker: WorkerProcess, row: Measurement) -> None:
        prompts = row.job.prompts or [*plan.warmups, *plan.prompts]
        sample = ask_sample(worker, row, prompts[place], plan.new_tokens)
        if place >= len(plan.warmups):
            row.samples.append(sample)

    return step


def _memory(worker: WorkerProcess, row: Measurement) -> None:
    answer = worker.ask({"op": "memory"})
    row.peak_rss_mb, row.device_mb = answer["peak_rss_mb"], answer.get("device_mb")


def _quality(plan: Plan, first: Measurement) -> Step:
    def step(worker: WorkerProcess, row: Measurement) -> None:
        of = {"spec": first.job.spec, "kind": first.job.kind} if row.job.compared and first.error is None else None
        data = row.job.data or plan.data
        request = {"op": "quality", "data": str(data), "task": dict(plan.task), "teacher": of}
        row.quality = worker.ask(request)["quality"]

    return step


def _keep_complete_rounds(measured: Measured) -> int:
    """Cut every row to the rounds that all of them have; how many those are."""
    alive = [row for row in measured.rows if row.error is None]
    rounds = min((len(row.samples) for row in alive), default=0)
    for row in alive:
        del row.samples[rounds:]
    del measured.bandwidth[rounds:]
    return rounds
