"""Whether integers pay here: the graph of a quantized checkpoint against the float32 graph of its shape, in turn.

Which scheme is fast hangs on the CPU's instructions and on the shape. So `compress quantize` and `compress export` ask
this machine, with the real integers in the engine that ships, and say what they found; a scheme that is slower than
float32 is never handed over in silence. The float32 weights are drawn, since time does not hang on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.cost.probe import PROMPT_TOKENS, open_engine, prompt_and_length, take_turns
from bench.cost.random_bundle import END_OF_TURN_ID, random_weights
from chitchat.architectures.registry import geometry_of
from compress.quantize.checkpoint import load_quantized
from export.weights import quantized_weights

NEW_TOKENS = 24
ROUNDS = 7
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
    prompt, new_tokens = prompt_and_length(shape, PROMPT_TOKENS, NEW_TOKENS)
    both = {scheme: weights, "fp32": random_weights(shape, "fp32", np.random.default_rng(0))}
    engines = [open_engine(shape, name, arrays, threads) for name, arrays in both.items()]
    replies = [partial(engine.generate, prompt, new_tokens, END_OF_TURN_ID) for engine in engines]
    ours, floats = take_turns(replies, rounds)
    return Speedup(
        scheme=scheme,
        prompt_tokens=len(prompt),
        ttft_ms=float(np.median([sample.ttft_ms for sample in ours])),
        tpot_ms=float(np.median([step for sample in ours for step in sample.token_ms])),
        ttft_speed=_ratio([sample.ttft_ms for sample in floats], [sample.ttft_ms for sample in ours]),
        tpot_speed=_ratio(*([float(np.median(sample.token_ms)) for sample in replies] for replies in (floats, ours))),
    )


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios, pair by pair."""
    return float(np.median(np.asarray(above) / np.asarray(below)))
