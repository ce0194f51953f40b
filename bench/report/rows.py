"""The rows of a report out of what was measured. What a field means stands in `bench.report.row`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.evaluate.measure import Quality
from bench.models.handle import ModelHandle
from bench.report.row import FIGURES, ReportRow
from bench.run.controller import Measurement
from bench.run.entries import PlannedRow
from bench.run.rounds import BenchResult
from bench.run.scenarios import scenario_figures
from bench.run.timing import ceiling_share, is_busy, latency_figures, ratio_interval, speed_ratio

MB = 1_000_000
# Of a model whose ids are others than the first one's, these say nothing beside the first one's.
_BY_TOKEN = {"perplexity", "token_accuracy", "perplexity_interval", "token_accuracy_interval"}


def build_rows(planned: Sequence[PlannedRow], result: BenchResult) -> list[ReportRow]:
    """One row a model. The first one, where it is a plain checkpoint, is the full-precision generator."""
    first = result.rows[0]
    reference = Quality.from_json(first.quality) if first.quality and first.error is None else None
    rows = []
    for index, (plan, measured) in enumerate(zip(planned, result.rows, strict=True)):
        row = _facts(plan, measured, is_first=index == 0)
        if measured.error is None:
            row = _with_figures(row, plan, measured, result, reference if index else None)
        rows.append(row)
    return rows


def _facts(plan: PlannedRow, measured: Measurement, *, is_first: bool) -> ReportRow:
    """What is known of a row that may have been lost."""
    runtime = plan.model.runtime
    if plan.peer is not None:
        runtime = f"{plan.peer.peer.name} {measured.version or ''}".rstrip()
    elif is_first and measured.entry.kind.name == "checkpoint":
        runtime += " (full-precision generator)"
    return ReportRow(
        name=measured.entry.name,
        spec=plan.spec,
        kind=measured.entry.kind.name,
        runtime=runtime,
        device=measured.entry.device,
        parameters=plan.model.parameters,
        weight_mb=plan.weight_bytes / MB,
        file_mb=plan.file_bytes / MB,
        runtime_version=measured.version,
        agreement=measured.agreement,
        error=measured.error,
    )


def _with_figures(
    row: ReportRow, plan: PlannedRow, measured: Measurement, result: BenchResult, reference: Quality | None
) -> ReportRow:
    samples, first = measured.samples, result.rows[0]
    figures: dict[str, Any] = {
        "load_s": measured.load_s,
        "peak_rss_mb": measured.peak_rss_mb,
        "device_mb": measured.device_mb,
        "busy": is_busy(samples),
        **latency_figures(samples),
        **scenario_figures(measured.extra),
        **_quality_figures(measured, reference),
    }
    if measured.entry.kind.reads_stored_weights and row.device == "cpu":  # whose memory was measured
        figures["ceiling"] = ceiling_share(samples, plan.weight_bytes, result.bandwidth)
    if first.error is None and not row.answers_wrong:  # what computes something else is not faster
        figures["ratio"] = speed_ratio(first.samples, samples)
        figures["ratio_interval"] = ratio_interval(first.samples, samples)
    return replace(row, **figures)


def _quality_figures(measured: Measurement, reference: Quality | None) -> dict[str, Any]:
    """The figures of one row, and its ratios to those of the first row where it is given; {} without quality."""
    if not measured.quality:
        return {}
    figures = Quality.from_json(measured.quality).figures(reference)
    hidden = _BY_TOKEN if measured.entry.data is not None else set()
    shown = {name: value for name, value in figures.items() if name in FIGURES and name not in hidden}
    return shown | {"eval_tokens": figures["tokens"]}


def pruning_candidates(models: Mapping[str, ModelHandle]) -> dict[str, list[dict[str, Any]]]:
    """The shapes that were tried for each row's model, from the prune stages of its lineage; a search is told once.

    A shape is {shape, parameters, perplexity_ratio, kl, ms_per_token (null: not measured), chosen, steps}. Figures are
    those that the choice was made on: on fewer tokens, after `steps` of healing.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, model in models.items():
        tried = [
            dict(candidate)
            for record in model.lineage()
            if record["stage"] == "prune"
            for candidate in record["metrics"].get("candidates") or ()
            if candidate["kl"] is not None  # the only one of a search is not tried
        ]
        if tried and tried not in found.values():
            found[name] = tried
    return found
