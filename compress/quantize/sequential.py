"""Quantizing a model in the order in which it computes, each layer on what the quantized ones before it give.

Tables come first, then every sublayer's in-projections and its out-projection. Before its integers are decided a matrix
is fitted, by ridge regression, to give on the quantized model's stream what the original gives on its own: so that
later layers take back what earlier ones lost. Then the integers are decided with the covariance of the inputs, and
the bias, which stays a float, takes up the mean of what rounding lost. Last, the final norm is fitted to the original's
logits.

GPTQ (arXiv 2210.17323) feeds a layer from the quantized prefix; that the target is the original's output on the
original's inputs is the asymmetric calibration of GPTAQ (arXiv 2504.02692).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of
from chitchat.architectures.sublayers import Projection
from compress.calibrate.batches import Batch
from compress.calibrate.final_norm import fit_final_norm
from compress.calibrate.moments import Moments
from compress.calibrate.walk import FittedStreams, Streams
from compress.quantize.checkpoint import QuantizedTensor, dequantize

# (module, weight float32 [N, K], covariance of its input float64 [K, K] or None) to the integers
Decide = Callable[[str, NDArray[np.float32], NDArray[np.float64] | None], QuantizedTensor]

DAMPING = 1e-2  # of the fit before the integers are decided


@torch.no_grad()
def quantize_in_turn(
    model: PreTrainedModel,
    original: PreTrainedModel,
    batches: Sequence[Batch],
    head_inputs: Tensor,
    quantize_matrix: Decide,
) -> dict[str, QuantizedTensor]:
    """Decide the integers of every matrix and table, and put what they stand for into `model`, in place.

    `model` computes what `original` does (the same weights, or rescaled ones) and is not it; biases and the final norm
    change with its matrices. `batches` are right-padded calibration windows. A tied table is decided as the head that
    it is, with `head_inputs`, the mean of x x^T over what the original's head reads, float64 [width, width]. Both
    models are left in eval mode.
    """
    model.eval()
    original.eval()
    architecture, matrices = architecture_of(model), dict[str, QuantizedTensor]()

    def decide(name: str, weight: Tensor, inputs: Tensor | None) -> Tensor:
        """Decide [N, K] and give what the integers stand for."""
        given = None if inputs is None else inputs.numpy()
        matrices[name] = quantize_matrix(name, np.ascontiguousarray(weight.float().numpy()), given)
        return torch.from_numpy(dequantize(matrices[name]))

    def store(projection: Projection, moments: Moments) -> None:
        """Fit a projection, decide its integers, and put into it what they stand for and the bias that suits them."""
        weight, bias = moments.ridge(projection.weight, projection.bias, DAMPING)
        inputs = moments.second if bias is None else moments.covariance
        rounded = decide(projection.name, weight.T, inputs).T
        if bias is not None:
            bias = bias + (moments.mean @ (weight - rounded).double()).to(bias.dtype)
        projection.store(rounded, bias)

    tied = model.config.tie_word_embeddings
    for name, table in architecture.tables(model):
        used_as_head = tied and name == architecture.token_table(model)[0]
        table.weight.copy_(decide(name, table.weight, head_inputs if used_as_head else None))
    reference = Streams(original, batches)
    streams = FittedStreams(model, reference, batches)
    pairs = list(zip(streams.model.sublayers(), reference.sublayers(), strict=True))
    for ours, theirs in tqdm(pairs, desc="quantizing", unit="sublayer", disable=None):
        streams.fit_in(ours, theirs, store)
        reference.advance(theirs)
        streams.fit_out(ours, store)
    if not tied:
        name, head = architecture.head(model)
        head.weight.copy_(decide(name, head.weight, head_inputs))
    fit_final_norm(model, original, streams.final_rows(), DAMPING)
    return matrices
