"""What the raw samples of a run say: medians and tails, ratios round by round, and whether the machine was busy.

A sample is one reply: `ttft_ms`, `token_ms`, `ids`. All models of a run answered the same prompts in turn, so samples
of one round are pairs. Intervals are bootstrapped over rounds (percentiles, 95 %); they say what other rounds of the
same run could have given, not what another machine would. No files, no processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.evaluate.bootstrap import percentiles

DRAWS = 2000
BUSY_SPREAD = 0.15  # of the replies of a quiet machine, the middle half lies within 3 to 6 % of its median
_SEED = 0

TimedReply = Mapping[str, Any]
Floats = npt.NDArray[np.float64]


def latency_figures(samples: Sequence[TimedReply]) -> dict[str, float]:
    """Medians and tails of the samples of one model; ms, and new tokens over prompt + decode time in tokens/s."""
    first = [sample["ttft_ms"] for sample in samples]
    steps = [step for sample in samples for step in sample["token_ms"]]
    rates = [len(sample["ids"]) / total_ms(sample) * 1000 for sample in samples]
    tails = {
        f"{name}_ms_p{at}": float(np.percentile(values, at))
        for name, values in (("ttft", first), ("tpot", steps))
        for at in (50, 95, 99)
    }
    used = sum(sample.get("cpu_s", 0.0) for sample in samples) / sum(len(sample["ids"]) for sample in samples)
    return {
        **tails,
        "tokens_per_s": float(np.median(rates)),
        "spread": spread(samples),
        **({"cpu_s_per_token": used} if used else {}),
    }


def total_ms(sample: TimedReply) -> float:
    """From the prompt's ids to the last new one."""
    return float(sample["ttft_ms"] + sum(sample["token_ms"]))


def spread(samples: Sequence[TimedReply]) -> float:
    """The middle half of the replies' times over their median: how steady the machine was for this row."""
    low, middle, high = np.percentile([total_ms(sample) for sample in samples], (25, 50, 75))
    return float((high - low) / middle)


def is_busy(samples: Sequence[TimedReply]) -> bool:
    """Whether other work on the machine shows in a row: its times scatter, or one half of the run is slower."""
    if len(samples) < 4:
        return False
    times = np.array([total_ms(sample) for sample in samples])
    halves = [float(np.median(part)) for part in np.array_split(times, 2)]
    return spread(samples) > BUSY_SPREAD or max(halves) / min(halves) > 1 + BUSY_SPREAD


def ceiling_share(samples: Sequence[TimedReply], weight_bytes: int, bandwidth: Sequence[float]) -> float | None:
    """How near decoding comes to reading `weight_bytes` once a token as fast as memory gave them in the same round.

    `bandwidth` is in GB/s, one a round; None without it. Above 1 where the weights stay in the CPU's caches.
    """
    shares = [
        weight_bytes / (rate * 1e9) / (float(np.median(sample["token_ms"])) / 1e3)
        for sample, rate in zip(samples, bandwidth, strict=False)
        if sample["token_ms"]
    ]
    return float(np.median(shares)) if shares else None


def speed_ratio(base: Sequence[TimedReply], other: Sequence[TimedReply]) -> float:
    """How many times faster `other` is than `base`: the median over the rounds of the ratio within a round."""
    return float(np.median(round_ratios(base, other)))


def ratio_interval(base: Sequence[TimedReply], other: Sequence[TimedReply]) -> list[float] | None:
    """The interval of `speed_ratio` over rounds; None for fewer than two."""
    ratios = round_ratios(base, other)
    return None if len(ratios) < 2 else percentiles(medians(ratios, np.random.default_rng(_SEED)))


def round_ratios(base: Sequence[TimedReply], other: Sequence[TimedReply]) -> Floats:
    """Time of `base` over that of `other`, [rounds]."""
    pairs = zip(base, other, strict=True)
    return np.array([total_ms(before) / total_ms(after) for before, after in pairs])


def medians(values: Floats, random: np.random.Generator) -> Floats:
    """The median of `DRAWS` resamples of `values`."""
    chosen = random.integers(0, len(values), size=(DRAWS, len(values)))
    return np.asarray(np.median(values[chosen], axis=1), dtype=np.float64)
