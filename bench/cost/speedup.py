"""Whether integers pay here: the graph of a quantized checkpoint against the float32 graph of its shape, in turn.

Which scheme is fast hangs on the CPU's instructions and on the shape. So `compress quantize` and `compress export` ask
this machine, with the real integers in the engine that ships, and say what they found; a scheme that is slower than
float32 is never handed over in silence. The float32 weights are drawn, since time does not hang on them.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.cost.random_bundle import END_OF_TURN_ID, random_weights, write_weights
from bench.models.engine import EngineModel
from bench.models.loaded import TimedReply
from chitchat.architectures.registry import geometry_of
from compress.quantize.checkpoint import load_quantized
from export.weights import quantized_weights
from serve.cpu import physical_cores

PROMPT_TOKENS = 64
NEW_TOKENS = 24
ROUNDS = 7
_SETTLE_S = 0.1  # the engine before goes on spinning for up to 70 ms
_NOISE = 0.97  # a ratio below this counts as slower


@dataclass(frozen=True)
class Speedup:
    """Medians on this machine: ms to the first token of a prompt of `prompt_tokens`, and ms a further token; the
    `speed`s are ratios round by round, float32 over the scheme, so that more than 1 is faster."""

    scheme: str
    prompt_tokens: int
    ttft_ms: float
    tpot_ms: float
    ttft_speed: float
    tpot_speed: float

    def as_json(self) -> dict[str, float]:
        """The figures of a verb: how many times as fast as float32."""
        return {"prompt_vs_fp32": round(self.ttft_speed, 3), "decode_vs_fp32": round(self.tpot_speed, 3)}

    def warning(self) -> str:
        """One line where the scheme is slower than float32 on this machine, else ""."""
        slower = []
        if self.tpot_speed < _NOISE:
            slower.append(f"decodes at {self.tpot_speed:.2f} x the speed of float32 ({self.tpot_ms:.2f} ms a token)")
        if self.ttft_speed < _NOISE:
            tokens = f"a prompt of {self.prompt_tokens} tokens"
            slower.append(f"reads {tokens} at {self.ttft_speed:.2f} x ({self.ttft_ms:.1f} ms)")
        if not slower:
            return ""
        remedy = "export the float checkpoint where speed matters more than size, or try another --scheme"
        return f"warning: on this machine {self.scheme} {' and '.join(slower)}; {remedy}"


def measure_speedup(checkpoint: str | Path, threads: int | None = None, rounds: int = ROUNDS) -> Speedup:
    """Time the quantized checkpoint against float32 on this machine's CPU; `threads` None takes the physical cores."""
    stored = load_quantized(checkpoint)
    shape = geometry_of(stored.config)
    weights = quantized_weights(stored.matrices, stored.floats, tied=shape.tied)
    scheme = str(stored.config["quantization_config"]["scheme"])
    new_tokens = max(2, min(NEW_TOKENS, shape.context // 2))
    prompt = (np.arange(max(1, min(PROMPT_TOKENS, shape.context - new_tokens))) % shape.vocab).tolist()
    backends = []
    for name, arrays in ((scheme, weights), ("fp32", random_weights(shape, "fp32", np.random.default_rng(0)))):
        with tempfile.TemporaryDirectory() as folder:
            write_weights(shape, name, arrays, Path(folder))
            # Mapped files outlive their folder.
            backends.append(EngineModel.open(folder, threads or physical_cores(), "cpu"))
    ours, floats = take_turns(backends, prompt, new_tokens, rounds)
    return Speedup(
        scheme=scheme,
        prompt_tokens=len(prompt),
        ttft_ms=float(np.median([sample.ttft_ms for sample in ours])),
        tpot_ms=float(np.median([step for sample in ours for step in sample.token_ms])),
        ttft_speed=_ratio([sample.ttft_ms for sample in floats], [sample.ttft_ms for sample in ours]),
        tpot_speed=_ratio(*([float(np.median(sample.token_ms)) for sample in replies] for replies in (floats, ours))),
    )


def take_turns(backends: Sequence[Any], prompt: Sequence[int], new_tokens: int, rounds: int) -> list[list[TimedReply]]:
    """`rounds` replies of each backend, A B A B …, after one of each that warms up."""
    samples: list[list[TimedReply]] = [[] for _ in backends]
    for number in range(rounds + 1):
        for index, backend in enumerate(backends):
            time.sleep(_SETTLE_S)
            sample = backend.generate(prompt, new_tokens, END_OF_TURN_ID)
            if number:
                samples[index].append(sample)
    return samples


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios, pair by pair."""
    return float(np.median(np.asarray(above) / np.asarray(below)))
