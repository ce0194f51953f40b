"""The rows of a report: figures out of the raw samples of each model. What a key means stands in `document.py`."""

from collections.abc import Sequence
from typing import Any

from bench.evaluate.measure import Quality
from bench.models.handle import ModelHandle
from bench.peers.builder import PeerHandle
from bench.report.tables import is_wrong
from bench.run.controller import Measurement
from bench.run.rounds import BenchResult
from bench.run.scenarios import scenario_figures
from bench.run.timing import ceiling_share, is_busy, latency_figures, ratio_interval, speed_ratio

MB = 1_000_000
# Figures of `Quality.figures` that a row holds; those of _BOUNDED have an interval.
_BOUNDED = (
    *("perplexity", "bits_per_byte", "token_accuracy", "kl", "top1", "distinct_1", "distinct_2", "repetition_4"),
    *("empty_replies", "reply_tokens", "perplexity_ratio", "distinct_2_ratio", "repetition_4_difference"),
)
_QUALITY = (
    *_BOUNDED,
    *(f"{name}_interval" for name in _BOUNDED),
    *("kl_p99", "kl_tokens", "unfinished_replies", "replies"),
)
_FIGURES = (
    *(f"{name}_ms_p{at}" for name in ("ttft", "tpot") for at in (50, 95, 99)),
    *("tokens_per_s", "spread", "busy", "ratio", "ratio_interval", "cpu_s_per_token", "ceiling", "cold_start_s"),
)
# Of a model whose ids are others than the first one's, these say nothing beside the first one's.
_BY_TOKEN = {"perplexity", "token_accuracy", "perplexity_interval", "token_accuracy_interval"}


def build_rows(names: Sequence[str], models: Sequence[ModelHandle], measured: BenchResult) -> list[dict[str, Any]]:
    """One row a model. The first model that is a plain checkpoint at the top is the full-precision generator."""
    rows = []
    first = measured.rows[0]
    reference = Quality.from_json(first.quality) if first.quality and first.error is None else None
    for place, (name, model, result) in enumerate(zip(names, models, measured.rows, strict=True)):
        runtime = model.runtime
        if place == 0 and model.kind == "checkpoint":
            runtime += " (full-precision generator)"
        elif isinstance(model, PeerHandle) and result.version:
            runtime += f" {result.version}"
        lost = result.error is not None
        quality = {} if lost else _quality_figures(result, reference if place else None)
        row = {
            "name": name,
            "spec": model.spec,
            "kind": model.kind,
            "runtime": runtime,
            "device": result.entry.device,
            "parameters": model.parameters,
            "weight_mb": model.weight_bytes / MB,
            "file_mb": model.file_bytes / MB,
            "runtime_version": result.version,
            "load_s": None if lost else result.load_s,
            **dict.fromkeys(_FIGURES),
            "peak_rss_mb": None if lost else result.peak_rss_mb,
            "device_mb": None if lost else result.device_mb,
            "agreement": result.agreement,
            **{name: quality.get(name) for name in _QUALITY},
            "eval_tokens": quality.get("tokens"),
            "error": result.error,
        }
        if not lost:
            row |= latency_figures(result.samples) | {"busy": is_busy(result.samples)}
            row |= scenario_figures(result.extra)
            if model.runtime_kind.reads_stored_weights and result.entry.device == "cpu":  # whose memory was measured
                row["ceiling"] = ceiling_share(result.samples, model.weight_bytes, measured.bandwidth)
            if first.error is None and not is_wrong(row):  # what computes something else is not faster
                row["ratio"] = speed_ratio(first.samples, result.samples)
                row["ratio_interval"] = ratio_interval(first.samples, result.samples)
        rows.append(row)
    return rows


def _quality_figures(result: Measurement, reference: Quality | None) -> dict[str, Any]:
    """The figures of one row, and its ratios to those of the first row where it is given; {} without quality."""
    if not result.quality:
        return {}
    figures = Quality.from_json(result.quality).figures(reference)
    own_ids = result.entry.data is not None
    return {name: value for name, value in figures.items() if not (own_ids and name in _BY_TOKEN)}
