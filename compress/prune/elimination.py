"""Which units a repair by least squares can do without: structured Optimal Brain Surgeon.

When the units that stay are refitted, what a unit is worth is not how large it is but how badly the others replace it.
With H the covariance of the inputs of a projection and W its weights, taking out the group J of rows and refitting the
rest costs tr(W_J^T (H^-1_JJ)^-1 W_J); the cheapest group goes, W and H^-1 are updated, and so on until none is left.
The order of leaving is the score. Not every direction of the residual stream matters alike: errors are measured in the
metric of the covariance of the loss's gradient there (the Kronecker-factored Fisher matrix of the projection).

Sources: Hassibi and Stork, Optimal Brain Surgeon (NIPS 1992); ZipLM (arXiv 2302.04089) for groups of rows, heads and
neurons; K-FAC (arXiv 1503.05671) for the metric. Measured on a 6 x 320 chat model with nine tenths of the FFN cut,
after the refit: perplexity +21 %, where the ranking by variance leaves +40 %.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GPT2LMHeadModel

from chitchat.training.objective import next_token_loss
from compress.calibrate.calibration import Batch
from compress.calibrate.sublayers import embed, sublayers

Floats = NDArray[np.float64]

DAMPING = 1e-2  # added to the diagonal of H, as a share of its mean
METRIC_DAMPING = 3e-2  # the same of the gradient's covariance
_ROUNDS = 160  # eliminations of a projection: of many units, several leave at once


def elimination_scores(covariance: Floats, out_weight: Floats, size: int) -> Floats:
    """When each unit leaves, 0 the first: float64 [units].

    `covariance` [inputs, inputs] of a projection's inputs, `out_weight` [inputs, outputs] its weights; a unit is `size`
    inputs in a row.
    """
    inputs = len(covariance)
    units = np.arange(inputs).reshape(-1, size)
    damping = DAMPING * float(np.trace(covariance)) / inputs or 1.0
    inverse: Floats = np.asarray(np.linalg.inv(covariance + damping * np.eye(inputs)), dtype=np.float64)
    weight: Floats = out_weight.astype(np.float64, copy=True)
    left, at_once = np.arange(len(units)), max(1, len(units) // _ROUNDS)
    scores = np.zeros(len(units))
    gone = 0
    while len(left):
        cheapest = np.argsort(_costs(inverse, weight, units[left]), kind="stable")[:at_once]
        scores[left[cheapest]] = gone + np.arange(len(cheapest))
        gone += len(cheapest)
        rows = units[left[cheapest]].ravel()
        left = np.delete(left, cheapest)
        stay = units[left].ravel()
        solved = np.linalg.solve(inverse[np.ix_(rows, rows)], np.hstack([weight[rows], inverse[np.ix_(rows, stay)]]))
        across = inverse[np.ix_(stay, rows)]
        outputs = weight.shape[1]
        weight[stay] -= across @ solved[:, :outputs]
        inverse[np.ix_(stay, stay)] -= across @ solved[:, outputs:]
    return scores


def _costs(inverse: Floats, weight: Floats, units: NDArray[np.int64]) -> Floats:
    """What leaving costs each unit, [units]; `units` holds the inputs of each, [units, size]."""
    blocks = inverse[units[:, :, None], units[:, None, :]]  # [units, size, size]
    rows = weight[units]  # [units, size, outputs]
    return np.einsum("uso,uso->u", rows, np.linalg.solve(blocks, rows))


class Covariance:
    """The covariance of rows float [n, columns], summed over batches in float64."""

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.sums = torch.zeros(columns, dtype=torch.float64)
        self.products = torch.zeros(columns, columns, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows."""
        self.count += len(rows)
        self.sums += rows.sum(0).double().cpu()
        self.products += (rows.T @ rows).double().cpu()

    def array(self) -> Floats:
        """float64 [columns, columns]."""
        mean = self.sums / max(1, self.count)
        return (self.products / max(1, self.count) - torch.outer(mean, mean)).numpy()


def stream_metrics(model: GPT2LMHeadModel, batches: Sequence[Batch]) -> list[Floats]:
    """Square roots of the covariance of the next-token loss's gradient at the output of every `attn.c_proj` and
    `mlp.c_proj`, in the order in which they run: float64 [width, width] each, scaled to a mean square of 1."""
    out_projs = [half.out_proj for block in model.transformer.h for half in sublayers(block)]
    width = model.config.n_embd
    sums = [torch.zeros(width, width, dtype=torch.float64) for _ in out_projs]
    written: list[Tensor] = []
    hooks = [
        out_proj.register_forward_hook(lambda _module, _inputs, output: written.append(output))
        for out_proj in out_projs
    ]
    try:
        for batch in batches:
            written.clear()
            ids, labels = (batch[name].to(model.device) for name in ("input_ids", "labels"))
            with torch.enable_grad():
                gradients = torch.autograd.grad(next_token_loss(model, ids, labels), written)
            mask = batch["attention_mask"].bool().to(model.device)
            for total, gradient in zip(sums, gradients, strict=True):
                rows = gradient[mask]
                total += (rows.T @ rows).double().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return [_root(total) for total in sums]


def _root(covariance: Tensor) -> Floats:
    scaled = covariance / covariance.diagonal().mean().clamp(min=1e-300)
    values, vectors = torch.linalg.eigh(scaled + METRIC_DAMPING * torch.eye(len(scaled), dtype=scaled.dtype))
    root: Floats = ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).numpy()
    return root


def unit_scores(model: GPT2LMHeadModel, batches: Sequence[Batch]) -> tuple[list[Floats], list[Floats]]:
    """Scores of the heads and of the neurons of every layer, from right-padded calibration windows.

    The layers are walked one after another, so that one covariance is in memory at a time. The metric is taken on the
    first half of the windows: it needs gradients, which cost twice as much.
    """
    model.eval()
    metrics = stream_metrics(model, batches[: (len(batches) + 1) // 2])
    return _walk(model, batches, metrics)


@torch.no_grad()
def _walk(
    model: GPT2LMHeadModel, batches: Sequence[Batch], metrics: Sequence[Floats]
) -> tuple[list[Floats], list[Floats]]:
    """Move all streams through the model, half a layer after another, and score the units of each."""
    masks = [batch["attention_mask"].bool().to(model.device) for batch in batches]
    streams = embed(model, batches)
    found: tuple[list[Floats], list[Floats]] = ([], [])
    for layer, block in enumerate(model.transformer.h):
        for number, (half, size) in enumerate(zip(sublayers(block), (block.attn.head_dim, 1), strict=True)):
            covariance = Covariance(half.out_proj.weight.shape[0])
            for place, (stream, mask) in enumerate(zip(streams, masks, strict=True)):
                added, inputs = half.with_inputs(stream)
                covariance.add(inputs[mask])
                streams[place] = stream + added
            out_weight = half.out_proj.weight.double().cpu().numpy() @ metrics[2 * layer + number]
            found[number].append(elimination_scores(covariance.array(), out_weight, size))
    return found
