"""torch: transformers' own `generate` in float32 and float16, the loop without a cache, and dynamic int8.

All give exactly the number of new tokens that was asked for: the end of turn is suppressed. Time to first token runs
from ids in to the first id out.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.models.backend import TimedReply, as_timed_reply


class _Stamps:
    """A transformers streamer that notes the time of each new id of a batch; the first `put` brings the prompts."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ids: list[list[int]] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids.append(value.reshape(-1).tolist())  # reading the ids waits for the device
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Part of the streamer protocol; nothing is buffered."""


class TorchBackend:
    """transformers' own `generate` with its KV cache in float32: the full-precision generator."""

    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = self._read(spec, threads).to(device)

    def _read(self, spec: str, threads: int) -> Any:
        from chitchat.checkpoint import load_model

        return load_model(spec)

    def generate(
        self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int, *, reuse: bool = False
    ) -> TimedReply:
        """See `bench.models.backend.Backend.generate`; `generate` starts anew with every call."""
        (sample,) = self.generate_concurrent([prompt], new_tokens, end_of_turn_id)
        return sample

    def generate_concurrent(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, end_of_turn_id: int
    ) -> list[TimedReply]:
        """See `bench.models.backend.ConcurrentBackend`: one batch, whose prompts are of one length."""
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

    def runtime(self) -> Any:
        """See `bench.models.backend.Backend.runtime`."""
        from bench.models.runtime import TorchRuntime

        return TorchRuntime(self._model)


class QuantizedBackend(TorchBackend):
    """A quantized checkpoint de-quantized to float32 in torch: its quality is the shipped one, its speed is not."""

    def _read(self, spec: str, threads: int) -> Any:
        from compress.quantize.checkpoint import load_quantized

        return load_quantized(spec).dequantized_model()


class HalfBackend(TorchBackend):
    """transformers' own `generate` in float16: what GPU users run. A CPU has no fast products of that size."""

    def _read(self, spec: str, threads: int) -> Any:
        return super()._read(spec, threads).half()


class NoCacheBackend(TorchBackend):
    """The loop of GPT2-chitchat's `interact.py`: the whole conversation is computed anew for every token."""

    def generate(
        self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int, *, reuse: bool = False
    ) -> TimedReply:
        """See `bench.models.backend.Backend.generate`."""
        import torch

        times: list[float] = []
        started = time.perf_counter()
        ids = list(prompt)
        for _ in range(new_tokens):
            logits = self._anew(ids)
            logits[end_of_turn_id] = -torch.inf
            ids.append(int(logits.argmax()))
            times.append(time.perf_counter())
        return as_timed_reply(started, times, ids[len(prompt) :], new_tokens)

    def reply(self, prompt: Sequence[int], options: Any, dialogue: Any) -> Iterator[int]:
        """See `bench.models.backend.ReplyBackend`: the same loop, with our sampler."""
        from serve.sampler import build_sampler, draw

        ids = list(prompt)

        def step(token: int) -> Any:
            ids.append(token)
            return self._anew(ids).cpu().numpy()

        end = dialogue.end_of_turn_id
        most = min(options.max_new_tokens, self._model.config.n_positions - len(prompt))
        return draw(build_sampler(options, dialogue.banned_ids, end), end, most, self._anew(ids).cpu().numpy(), step)

    def _anew(self, ids: Sequence[int]) -> Any:
        """Logits [vocab] after the whole text."""
        import torch

        with torch.no_grad():
            return self._model(input_ids=torch.tensor([ids], device=self._model.device), use_cache=False).logits[0, -1]


class DynamicInt8Backend(TorchBackend):
    """torch's dynamic int8: linear layers with integer products, activations rounded as they come."""

    def _read(self, spec: str, threads: int) -> Any:
        import torch

        model = _as_linear(super()._read(spec, threads))
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def _as_linear(model: Any) -> Any:
    """The same model with nn.Linear for transformers' Conv1D, in place: what dynamic quantization knows."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                linear = torch.nn.Linear(child.nx, child.nf)
                linear.weight.data = child.weight.data.T.contiguous()
                linear.bias.data = child.bias.data
                setattr(module, name, linear)
    return model
