"""Calibration windows: randomly chosen conversations of a data set, as padded batches or as plain sequences of ids."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from chitchat.data.dataset import Windows, collate
from chitchat.errors import BadInput

Batch = dict[str, Tensor]

CALIBRATION_TOKENS = 16_384  # training tokens that ranges, scales and second moments are taken on
_BATCH_TOKENS = 2048


def calibration_batches(
    windows: Windows, pad_id: int, max_tokens: int, seed: int = 0, batch_tokens: int = _BATCH_TOKENS
) -> list[Batch]:
    """Right-padded batches of randomly chosen windows, at most `max_tokens` ids in all (and at least one window).

    Each is what `collate` gives: int64 [batch, longest] `input_ids`, `attention_mask` and `labels`. Windows of like
    length share a batch, so there is little padding. Raises `BadInput` for a split without any window.
    """
    chosen = _draw(windows, max_tokens, seed)
    chosen = chosen[np.argsort(-windows.lengths[chosen], kind="stable")]
    batches, begin = [], 0
    while begin < len(chosen):
        rows = max(1, batch_tokens // int(windows.lengths[chosen[begin]]))
        batches.append(collate([windows[int(index)] for index in chosen[begin : begin + rows]], pad_id))
        begin += rows
    return batches


def calibration_sequences(windows: Windows, max_tokens: int = CALIBRATION_TOKENS, seed: int = 0) -> list[list[int]]:
    """The ids of randomly chosen windows, at most `max_tokens` in all (and at least one window).

    Raises `BadInput` for a split without any window.
    """
    return [windows[int(index)]["input_ids"] for index in _draw(windows, max_tokens, seed)]


def thin(batches: Sequence[Batch], tokens: int) -> list[Batch]:
    """Every n-th of the batches, so that about `tokens` ids or somewhat more are left; all where there are no more."""
    held = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return list(batches[:: max(1, held // max(1, tokens))])


def _draw(windows: Windows, max_tokens: int, seed: int) -> NDArray[np.int64]:
    """Numbers of randomly chosen windows, in the order drawn."""
    if len(windows) == 0:
        raise BadInput("--data: has no conversation to measure on; make the data set from more conversations")
    order = np.random.default_rng(seed).permutation(len(windows))
    fits = np.cumsum(windows.lengths[order]) <= max_tokens
    return order[: max(1, int(fits.sum()))]
