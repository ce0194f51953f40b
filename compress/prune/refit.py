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

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of
from chitchat.architectures.sublayers import Projection
from compress.calibrate.batches import Batch
from compress.calibrate.final_norm import fit_final_norm
from compress.calibrate.moments import DAMPING, Moments
from compress.calibrate.walk import PairedStreams
from compress.prune.slicing import Kept


@torch.no_grad()
def refit(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layers: Sequence[int],
    kept: Kept,
    batches: Sequence[Batch],
    damping: float = DAMPING,
) -> None:
    """Fit `student`, sliced out of `teacher`, to it in place, on right-padded calibration windows.

    `layers` are the teacher's layers that stayed, `kept` the units (of these layers). Both models are left in eval
    mode; the teacher does not change.
    """
    architecture = architecture_of(teacher)
    streams = PairedStreams(student, teacher, batches, kept.channels)
    every = range(len(architecture.layers(teacher)))
    reads_change = len(layers) < len(every) or len(kept.channels) < architecture.geometry(teacher.config).width

    def store(projection: Projection, moments: Moments) -> None:
        projection.store(*moments.ridge(projection.weight, projection.bias, damping))

    for layer in tqdm(every, desc="refitting", unit="layer", disable=None):
        theirs = architecture.sublayers(teacher, layer)
        if layer not in layers:
            for sublayer in theirs:
                streams.reference.advance(sublayer)
            continue
        index = list(layers).index(layer)
        units = {"attention": kept.heads[index], "feed_forward": kept.neurons[index]}
        for ours, their in zip(architecture.sublayers(student, index), theirs, strict=True):
            streams.fit(ours, their, store, their.in_columns(units[their.kind]), in_projs=reads_change)
    fit_final_norm(student, teacher, streams.final_rows(), damping)
