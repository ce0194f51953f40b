"""Closed-form repair after pruning: every linear that lost inputs is fitted anew by ridge regression.

What a sliced model lacks is mostly linear in what is left. Sublayer by sublayer, the student's own (already repaired)
streams are run beside the teacher's on calibration conversations, and the weights that write to the residual stream are
solved for, so that the stream after them comes as near to the teacher's as least squares can bring it: what earlier
layers got wrong is corrected by later ones. Where the width was cut or layers are gone, what reads the stream is fitted
first, towards the teacher's queries, keys, values and pre-activations. At the end the last norm is fitted towards the
teacher's logits.

Least squares with the inputs of the pruned model is how channel pruning has been repaired since He et al. (arXiv
1707.06168); the penalty pulls towards the sliced weights, not towards 0. No gradients, no labels; seconds on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of
from chitchat.architectures.sublayers import Projection, Sublayer
from compress.calibrate.batches import Batch
from compress.calibrate.final_norm import fit_final_norm
from compress.calibrate.moments import DAMPING, Moments
from compress.calibrate.walk import FittedStreams, Streams
from compress.prune.slicing import Kept


@dataclass(frozen=True)
class Sliced:
    """A model that was sliced out of another: `layers` of it stayed, and of these the units `kept`."""

    student: PreTrainedModel
    layers: Sequence[int]
    kept: Kept


@torch.no_grad()
def refit(
    sliced: Sequence[Sliced], teacher: PreTrainedModel, batches: Sequence[Batch], damping: float = DAMPING
) -> None:
    """Fit students, sliced out of `teacher`, to it in place, on right-padded calibration windows.

    The teacher is run once for all of them, and does not change. All models are left in eval mode.
    """
    architecture, reference = architecture_of(teacher), Streams(teacher, batches)
    fits = [_Refit(one, teacher, FittedStreams(one.student, reference, batches, one.kept.channels)) for one in sliced]

    def store(projection: Projection, moments: Moments) -> None:
        projection.store(*moments.ridge(projection.weight, projection.bias, damping))

    for layer in tqdm(range(len(architecture.layers(teacher))), desc="refitting", unit="layer", disable=None):
        for place, theirs in enumerate(architecture.sublayers(teacher, layer)):
            here = [(fit, fit.sublayers(layer)[place]) for fit in fits if layer in fit.sliced.layers]
            for fit, ours in here:
                if fit.reads_change:
                    fit.streams.fit_in(ours, theirs, store, theirs.in_columns(fit.units(layer, theirs.kind)))
            reference.advance(theirs)
            for fit, ours in here:
                fit.streams.fit_out(ours, store)
    for fit in fits:
        fit_final_norm(fit.sliced.student, teacher, fit.streams.final_rows(), damping)


class _Refit:
    """A student while it is fitted."""

    def __init__(self, sliced: Sliced, teacher: PreTrainedModel, streams: FittedStreams) -> None:
        self.sliced, self.streams = sliced, streams
        full = architecture_of(teacher).geometry(teacher.config)
        self.reads_change = len(sliced.layers) < full.layers or len(sliced.kept.channels) < full.width

    def sublayers(self, layer: int) -> Sequence[Sublayer]:
        """Those of the student that came of a layer of the teacher."""
        student = self.sliced.student
        return architecture_of(student).sublayers(student, list(self.sliced.layers).index(layer))

    def units(self, layer: int, kind: str) -> Sequence[int]:
        """The units of a sublayer of the teacher that stayed."""
        kept, index = self.sliced.kept, list(self.sliced.layers).index(layer)
        return kept.heads[index] if kind == "attention" else kept.neurons[index]
