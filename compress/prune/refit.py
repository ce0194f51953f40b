"""Closed-form repair after the knife: every linear that lost inputs is fitted anew by ridge regression.

What a sliced model lacks is mostly linear in what is left. Layer by layer, the student's own (already repaired) streams
are run beside the teacher's on calibration conversations, and the weights that write to the residual stream
(`attn.c_proj`, `mlp.c_proj`) are solved for, so that the stream after them comes as near to the teacher's as least
squares can bring it: what earlier layers got wrong is corrected by later ones. Where the width was cut or layers are
gone, what reads the stream (`attn.c_attn`, `mlp.c_fc`) is fitted first, towards the teacher's queries, keys, values and
pre-activations. At the end the gain and bias of `ln_f` are fitted towards the teacher's logits.

Least squares with the inputs of the pruned model is how channel pruning has been repaired since He et al. (arXiv
1707.06168); the penalty pulls towards the sliced weights, not towards 0. No gradients, no labels; seconds on a CPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from compress.calibrate.calibration import Batch
from compress.calibrate.ridge import DAMPING, Ridge, fit_final_norm
from compress.calibrate.sublayers import Sublayer, embed, sublayers
from compress.prune.slicing import Kept


@torch.no_grad()
def refit(
    student: GPT2LMHeadModel,
    teacher: GPT2LMHeadModel,
    layers: Sequence[int],
    kept: Kept,
    batches: Sequence[Batch],
    damping: float = DAMPING,
) -> None:
    """Fit `student`, sliced out of `teacher`, to it in place, on right-padded calibration windows.

    `layers` are the teacher's layers that stayed, `kept` the units (of these layers). Both models are left in eval
    mode; the teacher does not change.
    """
    student.eval()
    teacher.eval()
    streams = _Streams(student, teacher, kept, batches)
    readers_too = len(layers) < len(teacher.transformer.h) or len(kept.channels) < teacher.config.n_embd
    previous = -1
    for index, layer in enumerate(tqdm(layers, desc="refitting", unit="layer", disable=None)):
        for skipped in range(previous + 1, layer):
            streams.skip(teacher.transformer.h[skipped])
        previous = layer
        ours, theirs = (sublayers(model.transformer.h[at]) for model, at in ((student, index), (teacher, layer)))
        for our_half, their_half, columns in zip(ours, theirs, _read_columns(teacher, kept, index), strict=True):
            streams.advance(our_half, their_half, columns if readers_too else None, damping)
    for skipped in range(previous + 1, len(teacher.transformer.h)):
        streams.skip(teacher.transformer.h[skipped])
    streams.final_norm(student, teacher, damping)


def _read_columns(teacher: GPT2LMHeadModel, kept: Kept, index: int) -> tuple[Tensor, Tensor]:
    """The columns of the teacher's `c_attn` and `c_fc` that stayed in a layer."""
    width = teacher.config.n_embd
    head_dim = width // teacher.config.n_head
    columns = torch.tensor([head * head_dim + i for head in kept.heads[index] for i in range(head_dim)])
    return torch.cat([columns, columns + width, columns + 2 * width]), torch.tensor(kept.neurons[index])


class _Streams:
    """The residual streams of both models, [batch, tokens, width] a calibration batch, moved on half a layer a call."""

    def __init__(
        self, student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, kept: Kept, batches: Sequence[Batch]
    ) -> None:
        self.channels = torch.tensor(kept.channels)
        self.masks = [batch["attention_mask"].bool() for batch in batches]
        self.ours, self.theirs = (embed(model, batches) for model in (student, teacher))

    def skip(self, theirs: nn.Module) -> None:
        """Move the teacher's stream through a layer that the student does not have."""
        for half in sublayers(theirs):
            self.theirs = [stream + half(stream) for stream in self.theirs]

    def advance(self, ours: Sublayer, theirs: Sublayer, columns: Tensor | None, damping: float) -> None:
        """Fit half a layer and move both streams over it; its reader too, to those `columns` of the teacher's."""
        if columns is not None:
            self._fit_reader(ours, theirs, columns, damping)
        after = [stream + theirs(stream) for stream in self.theirs]
        self._fit_writer(ours, after, damping)
        self.ours = [stream + ours(stream) for stream in self.ours]
        self.theirs = after

    def _fit_reader(self, ours: Sublayer, theirs: Sublayer, columns: Tensor, damping: float) -> None:
        """Fit what reads the stream to the kept columns of what the teacher's reads out of its own."""
        ridge = Ridge(*ours.in_proj.weight.shape)
        for mask, our_stream, their_stream in zip(self.masks, self.ours, self.theirs, strict=True):
            target = theirs.in_proj(theirs.norm(their_stream))[mask][:, columns]
            ridge.add(ours.norm(our_stream)[mask], target)
        _store(ours.in_proj, ridge, damping)

    def _fit_writer(self, ours: Sublayer, after: Sequence[Tensor], damping: float) -> None:
        """Fit what writes to the stream, so that the stream after it is the teacher's."""
        ridge = Ridge(*ours.out_proj.weight.shape)
        for mask, stream, target in zip(self.masks, self.ours, after, strict=True):
            _, inputs = ours.with_inputs(stream)
            ridge.add(inputs[mask], target[mask][:, self.channels] - stream[mask])
        _store(ours.out_proj, ridge, damping)

    def final_norm(self, student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, damping: float) -> None:
        """Fit `ln_f` to the teacher's logits."""
        pairs = zip(self.masks, self.ours, self.theirs, strict=True)
        fit_final_norm(student, teacher, [(ours[mask], theirs[mask]) for mask, ours, theirs in pairs], damping)


def _store(module: nn.Module, ridge: Ridge, damping: float) -> None:
    weight, bias = ridge.solve(module.weight, module.bias, damping)
    module.weight.copy_(weight)
    module.bias.copy_(bias)
