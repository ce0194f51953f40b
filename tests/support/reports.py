"""Reports of a benchmark with made-up figures."""

from typing import Any

import numpy as np

from bench.report.row import FIGURES


def report(speeds: dict[str, float], *, day: float = 1.0, seed: int = 0, rounds: int = 9) -> dict[str, Any]:
    """A report of rows with the given ms a reply; all rows of a round share the weather."""
    random = np.random.default_rng(seed)
    weather = day * random.lognormal(0, 0.1, rounds)
    samples = {
        name: [
            {"ttft_ms": time / 2, "token_ms": [time / 2], "ids": [1, 2]}
            for time in ms * weather * random.lognormal(0, 0.02, rounds)
        ]
        for name, ms in speeds.items()
    }
    rows = [{"name": name, "error": None, "file_mb": 10.0, "peak_rss_mb": 100.0} for name in speeds]
    settings = {"data": "d", "context": 64, "max_eval_tokens": None, "prompt_tokens": 64}
    environment = {"cpu": "c", "cores": 2, "threads": 2, "governor": None, "versions": {"onnxruntime": "1.32.0"}}
    quality = {name: record(0) for name in speeds}
    beside = {"settings": settings, "environment": environment, "quality": quality}
    return {"format": 2, "rows": rows, "samples": samples, **beside}


def record(worse: float) -> dict[str, Any]:
    """A quality over 40 conversations, `worse` nats a token more."""
    random = np.random.default_rng(5)
    tokens = random.integers(20, 60, 40)
    nll = tokens * random.normal(3, 0.2, 40) + worse * tokens
    columns = {"conversation": np.arange(40), "nll": nll, "tokens": tokens, "hits": tokens // 3, "bytes": tokens * 4}
    scores = {name: column.tolist() for name, column in columns.items()}
    return {"context": 64, "scores": scores, "replies": [], "divergence": None}


def full_report() -> dict[str, Any]:
    """A report with every field that the page reads, and names that must not be taken for markup."""
    made = report({"teacher": 100.0, '<b>&"w8"': 40.0, "lost": 50.0})
    for index, row in enumerate(made["rows"]):
        row |= dict.fromkeys(FIGURES) | {"name": row["name"]}
        row |= {"runtime": "onnx w8", "kind": "bundle", "parameters": 1e6, "file_mb": 4.0 - index, "perplexity": 20.0}
        row |= {"bits_per_byte": 2.0 + index / 10, "tokens_per_s": 100.0 * (1 + index), "ttft_ms_p50": 9.0}
        row |= {"tpot_ms_p50": 2.0, "tpot_ms_p95": 3.0, "tpot_ms_p99": 4.0, "ratio": 1.0, "ratio_interval": [0.9, 1.1]}
        row |= {"busy": index == 1, "error": None, "eval_tokens": 500, "kl_tokens": None, "replies": None}
        row |= {"distinct_2_interval": None}
    made["rows"][2] |= {"error": "ended with exit code 1 </script><script>alert(1)</script>", "tokens_per_s": None}
    made["settings"] |= {"new_tokens": 8, "repetitions": 9}
    made["environment"] |= {"date": "2026-01-01T00:00:00+00:00", "load_average_after": [0.1, 0.1, 0.1]}
    return made
