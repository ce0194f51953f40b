"""`compress bench`: any number of models side by side, speed and memory beside quality, into a report folder.

It checks the input, makes the prompts, has the models measured (`bench.run.rounds`), and writes the report
(`bench.report.document`). The first model is the yardstick of the ratios, and the one that peers run in forms of their
own.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.evaluate.measure import EvalTask, check_vocabulary, open_held_out
from bench.machine.environment import cores, environment, load_average
from bench.models.handle import ModelHandle
from bench.models.open import CheckpointHandle, for_missing, open_model
from bench.peers.registry import read_peers
from bench.report.document import FORMAT, write_report
from bench.report.rows import build_rows, pruning_candidates
from bench.run.controller import BenchPlan
from bench.run.entries import PlannedRow, build_entries, model_rows, peer_rows, why_no_cuda
from bench.run.options import BenchOptions
from bench.run.prompts import WARMUPS, held_out_texts, make_prompts
from bench.run.rounds import BenchResult, measure
from bench.run.scenarios import SCENARIOS
from chitchat.errors import BadInput, WorkFailed
from chitchat.system.folder import check_output, staged_folder

if TYPE_CHECKING:
    from chitchat.data.dataset import ChatData

KL_TOKENS = 4_096  # every row computes the first row's predictions again, so fewer than `compress eval` takes


def bench(
    models: Sequence[str], out: Path, data: Path | None = None, options: BenchOptions | None = None
) -> dict[str, Any]:
    """Measure `models` and write report.json, .md, .html and .png into the folder `out`; give the report.

    With `data` (a data set folder) prompts are held-out conversations and quality is measured on them, in windows of
    the smallest context, so that all models score the same tokens, with replies to the same prompts and, where the
    vocabulary is the same, against the first model; without it prompts are random ids. A model of another tokenizer
    reads the same conversations in its own ids. `options.peers` are the tools of `bench.peers` that run the first
    model, a checkpoint, in the interpreters that have them (`bench.peers.builder.find_python`); `options.tokenizer` is
    that of checkpoints that hold none. Raises `BadInput`, and `WorkFailed` when no model at all could be measured.
    """
    out, options = Path(out), options or BenchOptions()
    check_output(out, "report")
    if not models:
        raise BadInput("MODEL: none given; name the checkpoints, bundles or hub ids to measure")
    if options.devices == ("cuda",) and (why := why_no_cuda()):  # beside the CPU its rows say why
        raise BadInput(f"--device cuda: {why}; use --device cpu")
    requests = read_peers(options.peers, options.devices)
    opened = [open_model(spec, tokenizer=for_missing(spec, options.tokenizer)) for spec in models]
    first = opened[0]
    if requests and not (isinstance(first, CheckpointHandle) and first.kind == "checkpoint"):
        raise BadInput(f"--peers: they run the first model, and {first.spec} is no checkpoint; name one first")
    for model in opened:
        _check_context(model, options)
    held_out = None if data is None else open_held_out(data)
    if held_out is not None:
        check_vocabulary(first, held_out)
    machine = environment(options.threads or cores())
    options = replace(options, threads=machine["threads"])
    with tempfile.TemporaryDirectory(prefix="compress-bench-") as scratch, staged_folder(out, "report") as staging:
        rows = model_rows(opened, options.devices)
        if requests:
            assert isinstance(first, CheckpointHandle)
            rows += peer_rows(requests, first, Path(scratch), options, data)
        plan = _plan(opened, held_out, options, data)
        measured = measure(build_entries(rows, held_out, Path(scratch), options), plan)
        if all(result.error for result in measured.rows):
            raise WorkFailed(f"no model could be measured; {rows[0].entry.name}: {measured.rows[0].error}")
        report = _report(rows, measured, plan, options, held_out, machine)
        write_report(staging, report)
    return report


def _plan(
    models: Sequence[ModelHandle], held_out: "ChatData | None", options: BenchOptions, data: Path | None
) -> BenchPlan:
    prompts = make_prompts(models, held_out, options.prompt_tokens, WARMUPS + options.repetitions, options.seed)
    context = min(model.context for model in models)
    scenarios = tuple(SCENARIOS) if options.full else options.scenarios
    return BenchPlan(
        warmups=prompts[:WARMUPS],
        prompts=prompts[WARMUPS:],
        new_tokens=options.new_tokens,
        threads=options.threads or 1,
        data=data,
        task=asdict(EvalTask(context, options.max_tokens, kl_tokens=KL_TOKENS)),
        scenarios=scenarios,
        texts=held_out_texts(held_out) if held_out is not None and "replies" in scenarios else (),
        context=context,
    )


def _report(
    rows: Sequence[PlannedRow],
    measured: BenchResult,
    plan: BenchPlan,
    options: BenchOptions,
    held_out: "ChatData | None",
    machine: dict[str, Any],
) -> dict[str, Any]:
    own = {row.entry.name: row.model for row in rows if row.peer is None and row.entry.device == "cpu"}
    return {
        "format": FORMAT,
        "partial": measured.partial,
        "rows": [row.as_json() for row in build_rows(rows, measured)],
        "samples": {result.entry.name: result.samples for result in measured.rows},
        "scenarios": {result.entry.name: result.extra for result in measured.rows},
        "bandwidth_gb_per_s": measured.bandwidth,
        "quality": {result.entry.name: result.quality for result in measured.rows if result.quality},
        "candidates": pruning_candidates(own),
        "settings": {
            "prompt_tokens": options.prompt_tokens,
            "new_tokens": options.new_tokens,
            "repetitions": options.repetitions,
            "warmups": WARMUPS,
            "seed": options.seed,
            "data": held_out.identity if held_out else None,
            "context": plan.context,
            "max_eval_tokens": options.max_tokens,
            "scenarios": list(plan.scenarios),
        },
        "environment": {**machine, "load_average_after": load_average()},
    }


def _check_context(model: ModelHandle, options: BenchOptions) -> None:
    tokens = options.prompt_tokens + options.new_tokens
    if tokens > model.context:
        raise BadInput(
            f"--prompt-tokens {options.prompt_tokens} and --new-tokens {options.new_tokens}: "
            f"{tokens} tokens do not fit the context of {model.spec}, {model.context}; give fewer"
        )
