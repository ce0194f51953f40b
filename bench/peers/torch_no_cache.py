"""The loop of GPT2-chitchat's `interact.py`: the whole conversation is computed anew for every token."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from bench.models.loaded import Floats, TimedReply, as_timed_reply
from bench.models.torch import TORCH_MODULES, CheckpointModel, as_float32
from bench.peers.descriptor import Peer, Source

if TYPE_CHECKING:
    from torch import Tensor

    from serve.dialogue import Dialogue
    from serve.options import SamplingOptions


class NoCacheModel(CheckpointModel):
    """A checkpoint in float32 without a KV cache; its quality is measured as that of any other checkpoint."""

    supports_concurrency: ClassVar[bool] = False

    def generate(
        self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int, *, reuse: bool = False
    ) -> TimedReply:
        """See `LoadedModel.generate`."""
        import torch

        times: list[float] = []
        started = time.perf_counter()
        ids = list(prompt)
        for _ in range(new_tokens):
            logits = self._last_logits(ids)
            logits[end_of_turn_id] = -torch.inf
            ids.append(int(logits.argmax()))
            times.append(time.perf_counter())
        return as_timed_reply(started, times, ids[len(prompt) :], new_tokens)

    def reply(self, prompt: Sequence[int], options: "SamplingOptions", dialogue: "Dialogue") -> Iterator[int]:
        """See `LoadedModel.reply`: the same loop, with our sampler."""
        from serve.sampler import build_sampler, draw

        ids = list(prompt)

        def step(token: int) -> Floats:
            ids.append(token)
            return as_float32(self._last_logits(ids))

        end = dialogue.end_of_turn_id
        sample = build_sampler(options, dialogue.banned_ids, end)
        most = min(options.max_new_tokens, self.context - len(prompt))
        return draw(sample, end, most, as_float32(self._last_logits(ids)), step)

    def _last_logits(self, ids: Sequence[int]) -> "Tensor":
        """Logits [vocab] after the whole text."""
        import torch

        input_ids = torch.tensor([ids], device=self._model.device)
        with torch.no_grad():
            output = self._model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
        logits: Tensor = output.logits[0, -1]
        return logits


KINDS = (
    Peer(
        name="torch-no-cache",
        model=NoCacheModel,
        modules=TORCH_MODULES,
        reads_stored_weights=False,
        weight_formats=("fp32",),
        full_precision="fp32",
        source=Source.CHECKPOINT,
        install="torch",
        import_name="torch",
    ),
)
