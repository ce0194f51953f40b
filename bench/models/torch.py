"""torch: transformers' own `generate` in float32, and a quantized checkpoint after de-quantizing."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bench.models.kind import RuntimeKind
from bench.models.loaded import Floats, Ids, LoadedModel, TimedReply, as_timed_reply
from chitchat.architectures.registry import geometry_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from chitchat.padded import PaddedRows
    from chitchat.score import TokenScorer

TORCH_MODULES = ("torch", "transformers.models.gpt2.modeling_gpt2")
_BATCH_TOKENS = 8192  # keys and values of so many tokens of GPT-2 small take 600 MB


class _Stamps:
    """A transformers streamer that notes the time of each new id of a batch; the first `put` brings the prompts."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ids: list[list[int]] = []
        self._prompt_seen = False

    def put(self, value: "Tensor") -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids.append(value.reshape(-1).tolist())  # reading the ids waits for the device
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Part of the streamer protocol; nothing is buffered."""


class TransformersModel(LoadedModel):
    """Anything with transformers' `generate` and its KV cache, as `_model`."""

    _model: Any

    def generate(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, *, reuse: bool = False) -> TimedReply:
        """See `LoadedModel.generate`; `generate` starts anew with every call."""
        (reply,) = self._generate([prompt], new_tokens, end_of_turn_id)
        return reply

    def _generate(self, prompts: Sequence[Ids], new_tokens: int, end_of_turn_id: int) -> list[TimedReply]:
        """One batch of prompts of one length."""
        import torch
        from transformers import GenerationConfig

        from chitchat.generate import no_defaults

        options = GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            eos_token_id=end_of_turn_id,
            pad_token_id=end_of_turn_id,
        )
        stamps = _Stamps()
        started = time.perf_counter()
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self._model.device)
        with torch.no_grad(), no_defaults(self._model):
            self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options, streamer=stamps)
        replies = zip(*stamps.ids, strict=True)
        return [as_timed_reply(started, stamps.times, reply, new_tokens) for reply in replies]


class TorchModel(TransformersModel):
    """A torch model on the device where it is, in its precision. Several conversations are padded on the left."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self.context = geometry_of(model).context

    @classmethod
    def open(cls, spec: str, threads: int, device: str, slots: int = 1) -> Self:
        import torch

        torch.set_num_threads(threads)
        return cls(cls.read(spec).to(device))

    @classmethod
    @abstractmethod
    def read(cls, spec: str) -> "PreTrainedModel":
        """The torch model of `spec`, in the precision in which it is measured."""

    @cached_property
    def _rows(self) -> "PaddedRows":
        from chitchat.padded import PaddedRows

        return PaddedRows(self._model)

    def scorer(self) -> "TokenScorer":
        from chitchat.score import torch_scorer

        return torch_scorer(self._model)

    def logits(self, ids: Ids) -> Floats:
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([list(ids)], device=self._model.device), use_cache=False).logits[0]
        return as_float32(logits)

    def batch_size(self, tokens: int) -> int:
        """See `LoadedModel.batch_size`."""
        return max(1, _BATCH_TOKENS // tokens)

    def start(self, prompts: Sequence[Ids]) -> Floats:
        return as_float32(self._rows.start(prompts))

    def step(self, rows: Sequence[int], tokens: Ids) -> Floats:
        if len(rows) < len(self._rows):
            self._rows.keep(rows)
        return as_float32(self._rows.step(tokens))


def as_float32(tensor: "Tensor") -> Floats:
    """The numbers of a tensor on any device."""
    array: Floats = tensor.float().cpu().numpy()
    return array


class CheckpointModel(TorchModel):
    """A checkpoint in float32: the full-precision generator."""

    supports_concurrency: ClassVar[bool] = True

    @classmethod
    def read(cls, spec: str) -> "PreTrainedModel":
        from chitchat.checkpoint import load_model

        return load_model(spec)

    def generate_concurrent(self, prompts: Sequence[Ids], new_tokens: int, end_of_turn_id: int) -> list[TimedReply]:
        """See `LoadedModel.generate_concurrent`: one batch, whose prompts are of one length."""
        return self._generate(prompts, new_tokens, end_of_turn_id)


class DequantizedModel(TorchModel):
    """A quantized checkpoint de-quantized to float32: its quality is the shipped one, its speed is not."""

    @classmethod
    def read(cls, spec: str) -> "PreTrainedModel":
        from compress.quantize.checkpoint import load_quantized

        return load_quantized(spec).dequantized_model()


CHECKPOINT = RuntimeKind(name="checkpoint", model=CheckpointModel, modules=TORCH_MODULES)
QUANTIZED = RuntimeKind(name="quantized", model=DequantizedModel, modules=TORCH_MODULES, reads_stored_weights=False)
KINDS = (CHECKPOINT, QUANTIZED)
