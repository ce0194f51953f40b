"""transformers in other ways than the full-precision generator's: without a KV cache, in int8, in float16."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from bench.models.loaded import Floats, Ids, TimedReply, time_tokens
from bench.models.torch import TORCH_MODULES, CheckpointModel, as_float32
from bench.peers.descriptor import Peer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from serve.dialogue import Dialogue
    from serve.options import SamplingOptions


class NoCacheModel(CheckpointModel):
    """The loop of GPT2-chitchat's `interact.py`: the whole conversation is computed anew for every token.

    The quality of the checkpoint is measured as that of any other.
    """

    supports_concurrency: ClassVar[bool] = False

    def generate(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, *, reuse: bool = False) -> TimedReply:
        def tokens() -> Iterator[int]:
            ids = list(prompt)
            for _ in range(new_tokens):
                logits = self._last_logits(ids)
                logits[end_of_turn_id] = -float("inf")
                ids.append(int(logits.argmax()))
                yield ids[-1]

        return time_tokens(tokens, new_tokens)

    def reply(self, prompt: Ids, options: "SamplingOptions", dialogue: "Dialogue") -> Iterator[int]:
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

    def _last_logits(self, ids: Ids) -> "Tensor":
        """Logits [vocab] after the whole text."""
        import torch

        input_ids = torch.tensor([ids], device=self._model.device)
        with torch.no_grad():
            output = self._model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
        logits: Tensor = output.logits[0, -1]
        return logits


class DynamicInt8Model(CheckpointModel):
    """torch's dynamic int8: linear layers with integer products, activations rounded as they come."""

    supports_concurrency: ClassVar[bool] = False

    @classmethod
    def read(cls, spec: str) -> "PreTrainedModel":
        import torch
        from transformers.pytorch_utils import Conv1D

        model = super().read(spec)
        for module in list(model.modules()):  # nn.Linear for Conv1D, which dynamic quantization does not know
            for name, child in list(module.named_children()):
                if isinstance(child, Conv1D):
                    linear = torch.nn.Linear(child.nx, child.nf)
                    linear.weight.data = child.weight.data.T.contiguous()
                    linear.bias.data = child.bias.data
                    setattr(module, name, linear)
        quantized: PreTrainedModel = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        return quantized


class HalfModel(CheckpointModel):
    """float16: what GPU users run. A CPU has no fast products of that size."""

    supports_concurrency: ClassVar[bool] = False

    @classmethod
    def read(cls, spec: str) -> "PreTrainedModel":
        return super().read(spec).half()


KINDS = (
    Peer(
        name="torch-no-cache",
        model=NoCacheModel,
        modules=TORCH_MODULES,
        reads_stored_weights=False,
        weight_formats=("fp32",),
        full_precision="fp32",
    ),
    Peer(
        name="torch-int8",
        model=DynamicInt8Model,
        modules=TORCH_MODULES,
        reads_stored_weights=False,
        weight_formats=("int8",),
    ),
    Peer(name="torch-fp16", model=HalfModel, modules=TORCH_MODULES, weight_formats=("fp16",), device="cuda"),
)
