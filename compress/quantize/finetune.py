"""A short fine-tune through the rounding (method "kd"): the integers learn to say what the original says.

Behind every linear layer stands a float matrix that is rounded in each forward pass, and whose gradient passes the
rounding as if it were not there (straight-through). The scales learn too (LSQ, arXiv 1902.08153), as do biases and
LayerNorms; tables stay the integers that they are. The loss is the forward KL to the full-precision original, as in
healing (QuantGPT, arXiv 2203.10705, distils from it as well), and the best held-out KL decides which step is kept.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of
from chitchat.data.dataset import ChatData
from chitchat.training.options import FitOptions, FitResult
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.train import scratch_rate
from chitchat.training.trainer import fit
from compress.distill.objective import Distillation
from compress.quantize.blockwise import LIMITS, BlockTensor, from_integers, round_to, unpack
from compress.quantize.options import QuantizeOptions
from compress.quantize.scales import per_column

RATE = 0.05  # of the rate of training from scratch
BATCH_SIZE = 4
MARGIN = 0.45  # of a step: how far a float weight may begin from the number that it is rounded to


@dataclass(frozen=True)
class Tuned:
    """The integers after the fine-tune, by module, and what the run did."""

    matrices: dict[str, BlockTensor]
    result: FitResult


class FakeQuant(nn.Module):
    """Rounds the matrix [in, out] behind it to the grid of a `BlockTensor` [out, in], with gradients to both."""

    first: Tensor  # the scales that the integers came with, float32 [out, blocks]

    def __init__(self, tensor: BlockTensor) -> None:
        super().__init__()
        self.bits, self.block_size = tensor.bits, tensor.block_size
        self.register_buffer("first", torch.from_numpy(tensor.scales.copy()))
        # Relative to the first scales, so that one learning rate suits all of them.
        self.stretch = nn.Parameter(torch.zeros_like(self.first))

    def forward(self, latent: Tensor) -> Tensor:
        """What the rounded matrix stands for, float32 [in, out]."""
        low, high = LIMITS[self.bits]
        scales = (self.scales)[..., None]
        columns = latent.shape[0]
        blocks = nn.functional.pad(latent.T, (0, -columns % self.block_size)).unflatten(1, (-1, self.block_size))
        bounded = (blocks / torch.where(scales == 0, 1.0, scales)).clamp(low, high)
        integers = bounded + (bounded.round() - bounded).detach()
        return (integers * scales).flatten(1)[:, :columns].T

    @property
    def scales(self) -> Tensor:
        """float32 [out, blocks]."""
        return self.first * (1 + self.stretch)

    def tensor(self, latent: Tensor) -> BlockTensor:
        """The integers and scales of the matrix [in, out]."""
        scales = self.scales.detach().numpy().astype(np.float32)
        weight = latent.detach().T.contiguous().numpy()
        steps = per_column(scales, weight.shape[1], self.block_size)
        return from_integers(round_to(weight, steps, self.bits), scales, self.bits, self.block_size)


def finetune(
    model: PreTrainedModel,
    original: PreTrainedModel,
    matrices: Mapping[str, BlockTensor],
    floats: Mapping[str, NDArray[np.float32]],
    data: ChatData,
    work: Path,
    options: QuantizeOptions,
    *,
    resume: bool = False,
    stopwatch: Stopwatch | None = None,
) -> Tuned:
    """Fine-tune `model`, whose linear layers are `matrices`, in place, and give its new integers.

    `floats` are the matrices [N, K] before they were rounded, by the same names. Afterwards the model computes with
    what the new integers stand for. `options.kd_minutes` is the budget, on the `stopwatch` (default: one that begins
    now), `work` the folder of a run that can be resumed with the same data and options. Raises what `fit` raises.
    """
    stopwatch = stopwatch or Stopwatch()
    own = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = {name: model.get_submodule(name) for name in matrices}
    for name, layer in layers.items():
        layer.weight.data.copy_(torch.from_numpy(_latent(matrices[name], floats[name])).T)
        parametrize.register_parametrization(layer, "weight", FakeQuant(matrices[name]))
    architecture = architecture_of(model)
    for _, table in (*architecture.tables(model), architecture.head(model)):
        table.weight.requires_grad_(False)
    context = model.config.max_position_embeddings
    windows, held_out = (data.windows(split, context) for split in ("train", "validation"))
    fit_options = FitOptions(
        learning_rate=RATE * scratch_rate(model.config.hidden_size),
        batch_size=BATCH_SIZE,
        max_minutes=options.kd_minutes,
        weight_decay=0.0,
        seed=options.seed,
    )
    objective = Distillation(original, held_out, layers_dropped=False)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    inputs = {"data": data.identity, "options": asdict(options)}
    result = fit(model, windows, objective, fit_options, work, inputs, resume=resume, stopwatch=stopwatch)
    if result.before["loss"] <= result.after["loss"]:
        model.load_state_dict(before)
    tuned = {name: _settle(layer) for name, layer in layers.items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in own)
    return Tuned(tuned, result)


def _latent(tensor: BlockTensor, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest floats to `weight` [N, K] that are rounded to the integers of `tensor`."""
    integers = unpack(tensor.q, tensor.bits).reshape(len(weight), -1)[:, : tensor.K].astype(np.float32)
    integers -= 2 ** (tensor.bits - 1)
    steps = per_column(tensor.scales, tensor.K, tensor.block_size)
    middle, reach = integers * steps, np.float32(MARGIN) * np.abs(steps)
    return np.clip(weight, middle - reach, middle + reach)


def _settle(layer: nn.Module) -> BlockTensor:
    """Take the rounding off a layer: it keeps what its integers stand for."""
    rounding, latent = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    tensor = rounding.tensor(latent)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return tensor
