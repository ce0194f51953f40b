"""Quantizing a model in the order in which it computes, each layer on what the quantized ones before it give.

Tables come first, then every layer's reader (`c_attn`, `c_fc`) and writer (`c_proj`). Before its integers are decided a
matrix is fitted, by ridge regression, to give on the quantized model's stream what the original gives on its own: so
that later layers take back what earlier ones lost. Then the integers are decided with the covariance of the inputs, and
the bias, which stays a float, takes up the mean of what rounding lost. Last, `ln_f` is fitted to the original's logits.

GPTQ (arXiv 2210.17323) feeds a layer from the quantized prefix; that the target is the original's output on the
original's inputs is the asymmetric calibration of GPTAQ (arXiv 2504.02692).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from compress.calibrate.calibration import Batch
from compress.calibrate.ridge import Ridge, fit_final_norm
from compress.calibrate.sublayers import Sublayer, embed, sublayers
from compress.quantize.checkpoint import QuantizedTensor, dequantize

# (module, weight float32 [N, K], covariance of its input float64 [K, K] or None) to the integers
Decide = Callable[[str, NDArray[np.float32], NDArray[np.float64] | None], QuantizedTensor]

DAMPING = 1e-2  # of the fit before the integers are decided


@torch.no_grad()
def quantize_in_turn(
    model: GPT2LMHeadModel, original: GPT2LMHeadModel, batches: Sequence[Batch], quantize_matrix: Decide
) -> dict[str, QuantizedTensor]:
    """Decide the integers of every matrix and table, and put what they stand for into `model`, in place.

    `model` computes what `original` does (the same weights, or folded ones) and is not it; biases and `ln_f` change
    with its matrices. `batches` are right-padded calibration windows. A tied table is decided as the head that it is,
    with the covariance of the original's last states. Both models are left in eval mode.
    """
    model.eval()
    original.eval()
    masks = [batch["attention_mask"].bool() for batch in batches]
    matrices: dict[str, QuantizedTensor] = {}

    def store(name: str, weight: Tensor, inputs: NDArray[np.float64] | None) -> Tensor:
        """Decide [N, K] and give what the integers stand for."""
        matrices[name] = quantize_matrix(name, np.ascontiguousarray(weight.float().numpy()), inputs)
        return torch.from_numpy(dequantize(matrices[name]))

    tied = model.config.tie_word_embeddings
    states = _head_inputs(original, batches, masks)
    table = model.transformer.wte.weight
    table.copy_(store("transformer.wte", table, states if tied else None))
    model.transformer.wpe.weight.copy_(store("transformer.wpe", model.transformer.wpe.weight, None))
    ours, theirs = embed(model, batches), embed(original, batches)
    blocks = list(zip(model.transformer.h, original.transformer.h, strict=True))
    for index, pair in enumerate(tqdm(blocks, desc="quantizing", unit="layer", disable=None)):
        for name, our_half, their_half in zip(("attn", "mlp"), *map(sublayers, pair), strict=True):
            module = f"transformer.h.{index}.{name}"
            in_proj = _reader(our_half, their_half, ours, theirs, masks)
            _quantize(our_half.in_proj, in_proj, partial(store, f"{module}.{_READERS[name]}"))
            after = [stream + their_half(stream) for stream in theirs]
            out_proj = _writer(our_half, ours, after, masks)
            _quantize(our_half.out_proj, out_proj, partial(store, f"{module}.c_proj"))
            ours, theirs = [stream + our_half(stream) for stream in ours], after
    if not tied:
        model.lm_head.weight.copy_(store("lm_head", model.lm_head.weight, states))
    pairs = zip(masks, ours, theirs, strict=True)
    fit_final_norm(model, original, [(our[mask], their[mask]) for mask, our, their in pairs], DAMPING)
    return matrices


_READERS = {"attn": "c_attn", "mlp": "c_fc"}


def _head_inputs(original: GPT2LMHeadModel, batches: Sequence[Batch], masks: Sequence[Tensor]) -> NDArray[np.float64]:
    """The mean product of the states that the head reads, float64 [width, width]."""
    width = original.config.n_embd
    sums, rows = torch.zeros(width, width, dtype=torch.float64), 0
    for batch, mask in zip(batches, masks, strict=True):
        states = original.transformer(batch["input_ids"], use_cache=False).last_hidden_state[mask]
        sums += (states.T @ states).double()
        rows += len(states)
    return (sums / max(1, rows)).numpy()


def _reader(
    ours: Sublayer,
    theirs: Sublayer,
    our_streams: Sequence[Tensor],
    their_streams: Sequence[Tensor],
    masks: Sequence[Tensor],
) -> Ridge:
    """What reads the stream, towards what the original's reads out of its own."""
    ridge = Ridge(*ours.in_proj.weight.shape)
    for mask, our, their in zip(masks, our_streams, their_streams, strict=True):
        ridge.add(ours.norm(our)[mask], theirs.in_proj(theirs.norm(their))[mask])
    return ridge


def _writer(ours: Sublayer, streams: Sequence[Tensor], after: Sequence[Tensor], masks: Sequence[Tensor]) -> Ridge:
    """What writes to the stream, so that the stream after it is the original's."""
    ridge = Ridge(*ours.out_proj.weight.shape)
    for mask, stream, target in zip(masks, streams, after, strict=True):
        _, inputs = ours.with_inputs(stream)
        ridge.add(inputs[mask], target[mask] - stream[mask])
    return ridge


def _quantize(module: nn.Module, ridge: Ridge, store: Callable[[Tensor, NDArray[np.float64]], Tensor]) -> None:
    """Fit a Conv1D, decide its integers, and put into it what they stand for and the bias that suits them."""
    weight, bias = ridge.solve(module.weight, module.bias, DAMPING)
    rounded = store(weight.T, ridge.covariance.numpy()).T
    lost = ridge.mean @ (weight - rounded).double()
    module.weight.copy_(rounded)
    module.bias.copy_(bias + lost.to(bias.dtype))
