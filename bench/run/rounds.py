"""Several models side by side: each in its own process, taking turns.

Every model is loaded until its first token, a cold start, warmed up, and then has one prompt a round, the same for all.
Raw samples are kept; ratios are taken round by round (`bench.run.timing`). Turns and processes are
`bench.run.controller`'s; what else the models are asked to do is in `bench.run.scenarios`, what the workers do in
`bench.run.worker`; tables and files are `bench.report.document`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from tqdm import tqdm

from bench.machine.bandwidth import reader
from bench.run.agreement import check_agreement
from bench.run.controller import BenchEntry, BenchPlan, Controller, Measurement, ask_sample, wait_for_idle_threads
from bench.run.process import WorkerProcess
from bench.run.scenarios import SCENARIOS


@dataclass
class BenchResult:
    """All rows; `bandwidth` in GB/s, one a round; `partial` when the run was stopped before its end."""

    rows: list[Measurement]
    bandwidth: list[float] = field(default_factory=list)
    partial: bool = False


def measure(entries: Sequence[BenchEntry], plan: BenchPlan, command: Sequence[str] | None = None) -> BenchResult:
    """Measure all entries side by side, in their order. Ctrl-C ends it early: complete rounds are kept.

    Raises `KeyboardInterrupt` when it came before the first round was complete.
    """
    chosen = [SCENARIOS[name] for name in plan.scenarios]
    rounds = len(plan.warmups) + len(plan.prompts)
    checked = any(entry.full_precision for entry in entries)
    steps = 2 + rounds + (plan.data is not None) + sum(scenario.steps(plan) for scenario in chosen)
    with tqdm(total=checked + len(entries) * steps, desc="bench", unit="step", disable=None) as progress:
        controller = Controller(entries, plan, progress, command)
        measured = BenchResult(controller.rows)
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


def _one_conversation(controller: Controller, measured: BenchResult) -> None:
    """The timed rounds; then memory, and quality one model after the other."""
    plan = controller.plan
    read = reader(plan.threads)
    with controller.workers() as workers:
        controller.turn(workers, controller.first_token, settle_first=False)
        for index in range(len(plan.warmups) + len(plan.prompts)):
            controller.turn(workers, partial(_round, plan, index))
            if index >= len(plan.warmups):
                wait_for_idle_threads()
                measured.bandwidth.append(read())
        controller.turn(workers, _memory, settle_first=False)
        for worker, row in zip(workers, controller.rows, strict=True):
            if plan.data is not None:
                controller.attempt(worker, row, partial(_quality, plan, controller.rows[0]), settle_first=False)
            worker.close()  # makes room for the next one's scoring


def _round(plan: BenchPlan, index: int, worker: WorkerProcess, row: Measurement) -> None:
    prompts = row.entry.prompts or [*plan.warmups, *plan.prompts]
    sample = ask_sample(worker, row, prompts[index], plan.new_tokens)
    if index >= len(plan.warmups):
        row.samples.append(sample)


def _memory(worker: WorkerProcess, row: Measurement) -> None:
    answer = worker.ask({"op": "memory"})
    row.peak_rss_mb, row.device_mb = answer["peak_rss_mb"], answer.get("device_mb")


def _quality(plan: BenchPlan, first: Measurement, worker: WorkerProcess, row: Measurement) -> None:
    teacher = None
    if row.entry.compared and first.error is None:
        teacher = {"spec": first.entry.spec, "kind": first.entry.kind.address}
    data = str(row.entry.data or plan.data)
    row.quality = worker.ask({"op": "quality", "data": data, "task": dict(plan.task), "teacher": teacher})["quality"]


def _keep_complete_rounds(measured: BenchResult) -> int:
    """Cut every row to the rounds that all of them have; how many those are."""
    alive = [row for row in measured.rows if row.error is None]
    rounds = min((len(row.samples) for row in alive), default=0)
    for row in alive:
        del row.samples[rounds:]
    del measured.bandwidth[rounds:]
    return rounds
