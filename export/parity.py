"""Does the graph, in the runtime that ships, say what the checkpoint says in torch? A graded report.

Every prompt is continued greedily by the engine, token by token; then one torch run over prompt and reply gives the
logits that torch has at each of those positions, so that a divergence is found where it happens and later positions
still compare. Both paths of the engine are measured: whole sequences (prefill) and single tokens (decode), which run
different kernels. The limits stand in one table, `LIMITS`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from chitchat.data.dataset import ChatData, held_out_prompts
from chitchat.divergence import compare_logits
from chitchat.errors import BadInput, WorkFailed
from export.graph.layers import Channels
from export.graph.spec import GraphSpec
from export.weights import GraphWeights
from serve.engine import Engine

PROMPTS = 100
NEW_TOKENS = 16
PROMPT_TOKENS = 64

FIGURES: dict[str, str] = {
    "logits_relative": "largest |difference| of a row of logits over the row's largest |logit|",
    "greedy_diverged": "prompts whose greedy tokens differ by more than a tie",
    "kl_prefill": "mean KL(torch || graph) in nats over whole sequences",
    "kl_decode": "mean KL(torch || graph) in nats over tokens computed one by one",
    "logits_rms": "rms of the difference of centred logits over the rms of torch's",
    "weights_changed": "initializers that differ from the checkpoint's tensors by any bit",
}
# What a graph may differ by from torch, which computes in float32 and rounds no activation: the highest values that
# pass. The KL of an untrained model is small whatever the graph does; `logits_rms` has no scale and catches it there.
LIMITS: dict[str, dict[str, float]] = {
    # float32 all the way
    "float": {"logits_relative": 1e-4, "greedy_diverged": 0, "weights_changed": 0},
    # activations in float16, or rounded to 8 bits by block and row
    "rounded": {"kl_prefill": 3e-4, "kl_decode": 3e-4, "logits_rms": 0.03, "weights_changed": 0},
    # the cache rounded to 8 bits by scales that are the same for every input
    "int8 cache": {"kl_prefill": 5e-4, "kl_decode": 5e-4, "logits_rms": 0.05, "weights_changed": 0},
    # activations rounded to 8 bits by scales that are the same for every input
    "static": {"kl_prefill": 3e-3, "kl_decode": 3e-3, "logits_rms": 0.1, "weights_changed": 0},
}
TIE = 1e-4  # of a row's largest |logit|: two tokens no further apart are both right

Floats = npt.NDArray[np.floating[Any]]


@dataclass
class Parity:
    """What was measured. `figures` has those that `limits` grades (`FIGURES`) and, ungraded, what explains them."""

    prompts: dict[str, int]  # how many are held out, how many are random ids
    limits: dict[str, float]  # the highest values that pass
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """One phrase for each figure beyond its limit. A figure that is not a number fails."""
        return [
            f"{name} {self.figures[name]:.3g} (at most {limit:g})"
            for name, limit in self.limits.items()
            if not self.figures[name] <= limit
        ]

    def require(self) -> None:
        """Raise WorkFailed with the figures when one is beyond its limit."""
        if self.failures:
            raise WorkFailed(f"parity: the graph does not say what torch says: {', '.join(self.failures)}; no bundle")

    def as_json(self) -> dict[str, Any]:
        """The object that bundle.json holds under `parity`."""
        return asdict(self)


def grade_of(spec: GraphSpec) -> str:
    """The row of `LIMITS` that a graph is held to."""
    if any(isinstance(form, Channels) for form in spec.formats.values()):
        return "static"
    if spec.kv == "int8":
        return "int8 cache"
    return "rounded" if spec.formats or spec.target == "cuda" else "float"


def parity_prompts(
    data: ChatData | None, vocab: int, context: int, count: int = PROMPTS, seed: int = 0
) -> tuple[list[list[int]], dict[str, int]]:
    """`count` prompts that leave room for a reply: held-out ones as far as there are any, then random ids."""
    longest = max(1, min(PROMPT_TOKENS, context - NEW_TOKENS, context * 3 // 4))
    held_out = _held_out(data, count, longest) if data is not None else []
    random = np.random.default_rng(seed)
    prompts = list(held_out)
    while len(prompts) < count:
        prompts.append(random.integers(0, vocab, size=random.integers(1, longest + 1)).tolist())
    return prompts, {"held_out": len(held_out), "random": count - len(held_out)}


def check_parity(
    engine: Engine, model: PreTrainedModel, prompts: Sequence[Sequence[int]], origin: dict[str, int], grade: str
) -> Parity:
    """Measure the engine against a torch model with the same weights (de-quantized ones for a quantized graph).

    `grade` is the row of `LIMITS` that the graph is held to (`grade_of`).
    """
    parity = Parity(origin, dict(LIMITS[grade]))
    totals = _Totals()
    for prompt in tqdm(prompts, desc="parity", unit="prompt", disable=None):
        reply, steps = greedy_reply(engine, prompt)
        whole = [*prompt, *reply]
        want = torch_logits(model, whole)
        totals.add(want, engine.logits(whole), want[len(prompt) - 1 : -1], steps, reply)
    parity.figures = totals.figures()
    return parity


def greedy_reply(engine: Engine, prompt: Sequence[int]) -> tuple[list[int], Floats]:
    """Continue a prompt by the likeliest tokens, specials included: up to `NEW_TOKENS` ids and logits [ids, vocab]."""
    reply: list[int] = []
    logits, rows = engine.prefill(prompt), []
    for index in range(min(NEW_TOKENS, engine.context - len(prompt))):
        if index:
            logits = engine.step(reply[-1])
        rows.append(logits.copy())
        reply.append(int(logits.argmax()))
    return reply, np.stack(rows)


def torch_logits(model: PreTrainedModel, ids: Sequence[int]) -> Floats:
    """Torch's logits after every one of `ids`, float32 [n, vocab]."""
    with torch.no_grad():
        logits: Floats = model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()
    return logits


def changed_weights(graph: Path, weights: GraphWeights) -> int:
    """How many tensors of the checkpoint are not in the graph file bit for bit (read back from the disk)."""
    initializers = ir.load(graph).graph.initializers
    changed = 0
    for name, array in weights.arrays.items():
        stored = initializers[name].const_value if name in initializers else None
        changed += stored is None or stored.numpy().dtype != array.dtype or not np.array_equal(stored.numpy(), array)
    return changed


def same_tokens(
    prompts: Iterable[Sequence[int]], model: PreTrainedModel, reply_of: Callable[[Sequence[int]], list[int]]
) -> dict[str, float]:
    """Compare greedy replies of a generator without visible logits with torch: counts as in `Parity.figures`."""
    totals = _Totals()
    for prompt in prompts:
        reply = reply_of(prompt)
        want = torch_logits(model, [*prompt, *reply])[len(prompt) - 1 : -1]
        totals.add_tokens(want, reply)
    return {"greedy_prompts": totals.prompts, "greedy_tied": totals.tied, "greedy_diverged": totals.diverged}


class _Totals:
    """Running sums over prompts, so that no logits are kept."""

    def __init__(self) -> None:
        self.relative = 0.0
        self.squares = np.zeros(2)  # of the difference of centred logits, and of torch's
        self.prompts = self.tied = self.diverged = 0
        self.kl: dict[str, list[Floats]] = {"prefill": [], "decode": []}
        self.hits: list[npt.NDArray[np.bool_]] = []

    def add(self, want: Floats, whole: Floats, want_steps: Floats, steps: Floats, reply: Sequence[int]) -> None:
        rows = [self.relative, *_relative(want, whole), *_relative(want_steps, steps)]
        self.relative = float(np.max(rows))  # a NaN stays one
        for reference, got in ((want, whole), (want_steps, steps)):
            centred = reference - reference.mean(axis=1, keepdims=True, dtype=np.float64)
            error = got - got.mean(axis=1, keepdims=True, dtype=np.float64) - centred
            self.squares += np.square(error).sum(), np.square(centred).sum()
        kl, same = compare_logits(want, whole)
        self.kl["prefill"].append(kl)
        self.kl["decode"].append(compare_logits(want_steps, steps)[0])
        self.hits.append(same)
        self.add_tokens(want_steps, reply)

    def add_tokens(self, want: Floats, reply: Sequence[int]) -> None:
        """Count a reply as equal, tied or diverged.

        A tie: wherever the token is not torch's likeliest, torch's logits of the two are no further apart than the
        error that the logits may have, so either is a right answer.
        """
        best = want.max(axis=1)
        gap = best - want[np.arange(len(reply)), list(reply)]
        near = gap <= TIE * np.abs(want).max(axis=1)
        self.prompts += 1
        self.tied += bool((gap > 0).any() and near.all())
        self.diverged += not near.all()

    def figures(self) -> dict[str, float]:
        return {
            "logits_relative": self.relative,
            "logits_rms": float(np.sqrt(self.squares[0] / self.squares[1])),
            "kl_prefill": float(np.concatenate(self.kl["prefill"]).mean()),
            "kl_decode": float(np.concatenate(self.kl["decode"]).mean()),
            "top1_agreement": float(np.concatenate(self.hits).mean()),
            "greedy_prompts": self.prompts,
            "greedy_tied": self.tied,
            "greedy_diverged": self.diverged,
        }


def _relative(want: Floats, got: Floats) -> Floats:
    """The largest |difference| of each row of logits [n, vocab] over the row's largest |logit|: [n]."""
    relative: Floats = np.abs(want - got).max(axis=1) / np.abs(want).max(axis=1)
    return relative


def _held_out(data: ChatData, count: int, longest: int) -> list[list[int]]:
    """As many held-out prompts as there are, up to `count`: a small data set has fewer."""
    while count:
        try:
            return held_out_prompts(data, count, longest)
        except BadInput:
            count //= 2
    return []
