"""The closed-form fit of a model's last norm to another model's logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chitchat.architectures.registry import architecture_of
from compress.calibrate.moments import DAMPING, Moments, solve_positive

_ROWS = 4096  # of a table, in float64 at once


@torch.no_grad()
def fit_final_norm(
    model: Any, reference: Any, streams: Sequence[tuple[Tensor, Tensor]], damping: float = DAMPING
) -> None:
    """Fit gain and (where there is one) bias of the model's last norm to the logits of `reference`, in place.

    Before a tied head they alone are the head's. `streams` are the final residual streams of both, float [rows, width]
    a batch. With logits (g * x + b) E^T the normal equations in (g, b) need x^T x and E^T E only, never a logit.
    """
    (norm, table), (their_norm, their_table) = (_norm_and_table(one) for one in (model, reference))
    gram, cross = _product(table, table), _product(their_table, table)  # [ours, ours], [theirs, ours]
    plain = {"weight": torch.ones_like(norm.weight)}
    bias = getattr(norm, "bias", None)
    if bias is not None:
        plain["bias"] = torch.zeros_like(bias)
    moments = Moments(*reversed(cross.shape))
    for ours, theirs in streams:
        moments.add(torch.func.functional_call(norm, plain, (ours,)), their_norm(theirs))
    square, right = moments.xx * gram, (moments.xy * cross.T).sum(1)
    before = norm.weight.double().cpu()
    if bias is not None:
        border = moments.x[:, None] * gram
        square = torch.cat(
            [torch.cat([square, border], dim=1), torch.cat([border.T, moments.count * gram], dim=1)], dim=0
        )
        right = torch.cat([right, moments.y @ cross])
        before = torch.cat([before, bias.double().cpu()])
    penalty = damping * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    after = before + solve_positive(square + penalty, (right - square @ before)[:, None])[:, 0]
    norm.weight.copy_(after[: len(norm.weight)])
    if bias is not None:
        bias.copy_(after[len(norm.weight) :])


def _norm_and_table(model: Any) -> tuple[Any, Tensor]:
    architecture = architecture_of(model)
    return architecture.final_norm(model)[1], architecture.head(model)[1].weight


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left^T right of two tables [vocab, width], float64 [width, width] on the CPU."""
    chunks = zip(left.split(_ROWS), right.split(_ROWS), strict=True)
    return sum((a.double().T @ b.double() for a, b in chunks), start=torch.zeros(())).cpu()
