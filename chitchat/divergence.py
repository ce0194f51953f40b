"""KL, negative log-likelihood and top-1 agreement of next-token predictions, for numpy and for torch.

KL(reference || model) = sum p (log p - log q) in nats, with p and q the softmax of a row of logits. The negative
log-likelihood (NLL) of a target is -log q(target). Top-1 agreement: both models have the same most likely token.
A KL is computed in float64, since between a model and its 8-bit version its terms nearly cancel; an NLL in float32, to
be summed in float64. Rows are processed in chunks, so memory does not grow with the number of positions.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

Floats = npt.NDArray[np.floating[Any]]

# Logits of one chunk, at most (but one row at least): 8 MB and 32 MB of float64 in each of a few arrays.
MAX_NUMPY_LOGITS = 2**20
MAX_TORCH_LOGITS = 2**22


def compare_logits(reference: Floats, model: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """KL(reference || model) in nats, float64 [n], and whether both have the same top-1 token, bool [n].

    Logits [n, vocab] of any float dtype. If tokens tie for the first place, the lowest id counts.
    """
    kl, same = np.zeros(len(reference)), np.zeros(len(reference), dtype=bool)
    rows = max(1, MAX_NUMPY_LOGITS // reference.shape[1])
    for start in range(0, len(reference), rows):
        chunk = slice(start, start + rows)
        log_p, log_q = _log_softmax(reference[chunk]), _log_softmax(model[chunk])
        kl[chunk] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        same[chunk] = reference[chunk].argmax(axis=1) == model[chunk].argmax(axis=1)
    return kl, same


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probabilities: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def kl_divergence(log_p: "Tensor", log_q: "Tensor") -> "Tensor":
    """KL(p || q) in nats of each row of log-probabilities [n, vocab]; [n] in their dtype, differentiable."""
    from torch.nn.functional import kl_div

    return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


class Prediction(NamedTuple):
    """How a model predicts n targets, on the CPU: `nll` float64 [n] in nats, `hit` bool [n] (its top-1 token is it)."""

    nll: "Tensor"
    hit: "Tensor"


class Comparison(NamedTuple):
    """Two models on n targets, tensors [n] on the CPU: `kl`, `nll` and `reference_nll` float64 in nats, `same` bool."""

    kl: "Tensor"
    nll: "Tensor"
    reference_nll: "Tensor"
    same: "Tensor"


def score_states(head: "Linear", states: "Tensor", targets: "Tensor") -> Prediction:
    """The prediction of `targets` int64 [n] from final hidden states [n, width], which `head` turns into logits."""
    import torch

    def score(states: "Tensor", targets: "Tensor") -> tuple["Tensor", ...]:
        logits = head(states).float()
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
        return nll, logits.argmax(-1) == targets

    return Prediction(*_in_chunks(score, head, states, targets))


def nll_of_states(head: "Linear", states: "Tensor", targets: "Tensor") -> "Tensor":
    """The `nll` of `score_states` alone, which is a third quicker for a large vocabulary."""
    from torch.nn.functional import cross_entropy

    def score(states: "Tensor", targets: "Tensor") -> tuple["Tensor"]:
        return (cross_entropy(head(states).float(), targets, reduction="none").double(),)

    return _in_chunks(score, head, states, targets)[0]


def compare_states(
    reference_head: "Linear", reference_states: "Tensor", head: "Linear", states: "Tensor", targets: "Tensor"
) -> Comparison:
    """Compare two models of one vocabulary at n positions, by final hidden states [n, width] and their heads.

    `targets` int64 [n] are the next tokens; the arithmetic is done on their device.
    """
    import torch

    def compare(reference_states: "Tensor", states: "Tensor", targets: "Tensor") -> tuple["Tensor", ...]:
        log_p, log_q = (
            one(hidden).to(targets.device, torch.float64).log_softmax(-1)
            for one, hidden in ((reference_head, reference_states), (head, states))
        )
        nll, reference_nll = (-logs.gather(1, targets[:, None])[:, 0] for logs in (log_q, log_p))
        return kl_divergence(log_p, log_q), nll, reference_nll, log_p.argmax(-1) == log_q.argmax(-1)

    return Comparison(*_in_chunks(compare, head, reference_states, states, targets))


def _in_chunks(function: Any, head: "Linear", *tensors: "Tensor") -> list["Tensor"]:
    """The tensors that `function` gives for chunks of rows, joined, on the CPU."""
    import torch

    rows = max(1, MAX_TORCH_LOGITS // head.out_features)  # a quantized Linear has no tensor `weight`
    with torch.inference_mode():
        chunks = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
        parts = [[column.cpu() for column in function(*chunk)] for chunk in chunks]
    return [torch.cat(column) for column in zip(*parts, strict=True)]
