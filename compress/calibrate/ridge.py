"""Ridge regression on what flows through a model, and the closed-form fit of its last LayerNorm.

Pruning and quantization both repair by least squares what they did to a layer: weights are solved for on calibration
conversations, on the inputs that the compressed model really has, towards what the original gives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

DAMPING = 1e-2  # penalty on leaving the given weights, as a share of the mean squared input


class Ridge:
    """Normal equations of y = x W + b: products of a batch in its own dtype, summed over batches in float64.

    x float [rows, inputs], y float [rows, outputs]. The penalty is `damping` times the mean of x^2 over all inputs,
    on the distance of W from a given weight; the bias is free.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.xx = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.xy = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows."""
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        self.xx += (x.T @ x).double().cpu()
        self.xy += (x.T @ y).double().cpu()

    @property
    def mean(self) -> Tensor:
        """The mean input, float64 [inputs]."""
        return self.xx[-1, :-1] / self.xx[-1, -1]

    @property
    def covariance(self) -> Tensor:
        """The covariance of the inputs, float64 [inputs, inputs]: what an error in W costs when the bias is free."""
        return self.xx[:-1, :-1] / self.xx[-1, -1] - torch.outer(self.mean, self.mean)

    def solve(self, weight: Tensor, bias: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        """The best `(weight [inputs, outputs], bias [outputs])`, in the dtype and on the device of `weight`."""
        before = torch.cat([weight, bias[None]]).detach().double().cpu()
        penalty = torch.full((len(self.xx),), damping * float(self.xx.diagonal()[:-1].mean()), dtype=torch.float64)
        penalty[-1] = 1e-9 * self.xx[-1, -1]
        change = torch.linalg.solve(self.xx + penalty.diag(), self.xy - self.xx @ before, left=True)
        after = (before + change).to(weight.device, weight.dtype)
        return after[:-1], after[-1]


@torch.no_grad()
def fit_final_norm(
    student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, streams: Sequence[tuple[Tensor, Tensor]], damping: float
) -> None:
    """Fit gain and bias of the student's `ln_f` to the teacher's logits: before a tied head they alone are the head's.

    `streams` are the final residual streams of both, float [rows, width] a batch. With logits (g * x + b) E^T the
    normal equations in (g, b) need x^T x and E^T E only, never a logit.
    """
    norm, table = student.transformer.ln_f, student.lm_head.weight.double()
    gram, cross = table.T @ table, teacher.lm_head.weight.double().T @ table  # [ours, ours], [theirs, ours]
    width = len(gram)
    xx = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    xy = torch.zeros(width + 1, width, dtype=torch.float64)
    for ours, theirs in streams:
        x = nn.functional.layer_norm(ours, (width,), eps=norm.eps).double()
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        xx += x.T @ x
        xy += x.T @ (teacher.transformer.ln_f(theirs).double() @ cross)
    square = torch.block_diag(xx[:-1, :-1] * gram, xx[-1, -1] * gram)
    square[:width, width:] = xx[:-1, -1:] * gram
    square[width:, :width] = square[:width, width:].T
    right = torch.cat([xy[:-1].diagonal(), xy[-1]])
    before = torch.cat([norm.weight, norm.bias]).double()
    penalty = damping * square.diagonal().mean() * torch.eye(2 * width, dtype=torch.float64)
    after = before + torch.linalg.solve(square + penalty, right - square @ before)
    norm.weight.copy_(after[:width])
    norm.bias.copy_(after[width:])
