"""Several conversations at once through one torch model and one KV cache, padded on the left.

Only logits are computed, so any sampler can be used; `generate` would use the checkpoint's generation settings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class PaddedRows:
    """Rows of ids that are continued together, on the device of `model`, in its precision and mode.

    A row that has filled the context may be continued with the others: its logits are then meaningless.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._last = model.config.max_position_embeddings - 1
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0)  # int64 [rows, ids so far], 0 for padding

    def __len__(self) -> int:
        return len(self._mask)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Drop all rows and start one with each prompt; the logits after them, [prompts, vocab]."""
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        self._cache, self._mask = DynamicCache(config=self._model.config), mask.to(self._model.device)
        return self._run(ids)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, which become the rows 0, 1, …"""
        chosen = torch.tensor(rows, device=self._mask.device)
        self._cache.batch_select_indices(chosen)
        self._mask = self._mask[chosen]

    def step(self, ids: Sequence[int]) -> Tensor:
        """Add one id to each row; the logits after them, [rows, vocab]."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        return self._run(torch.tensor(ids)[:, None])

    def _run(self, ids: Tensor) -> Tensor:
        positions = (self._mask.cumsum(1) - 1).clamp(0, self._last)[:, -ids.shape[1] :]
        with torch.inference_mode():
            logits: Tensor = self._model(
                ids.to(self._mask.device),
                self._cache,  # by position: transformers 5.24 renamed it from past_key_values to cache
                attention_mask=self._mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return logits
