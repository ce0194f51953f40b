"""The runtimes that are measured, behind one small protocol. Each is imported only when a model needs it.

All get the same prompt ids, decode greedily, and give exactly the number of new tokens that was asked for: the end of
turn is suppressed, so that every model does the same work. Time to first token runs from ids in to the first id out,
sampling included. Text, files and tables are not handled here.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.sample import Backend, Sample, as_sample

Make = Callable[[str, int, str], Backend]


def open_backend(kind: str) -> Make:
    """Import the runtime of a kind of model and give its constructor.

    Kinds: `checkpoint`, `quantized`, `bundle`; `together`, a bundle with several conversations; `llama.cpp`.
    """
    if kind == "bundle":
        import onnxruntime  # noqa: F401 - here, so that load_s does not hold the import

        import serve.engine

        return EngineBackend
    if kind == "together":
        import serve.scheduler  # noqa: F401

        return TogetherBackend
    if kind == "llama.cpp":
        import llama_cpp  # noqa: F401

        from bench.peers import LlamaCppBackend

        return LlamaCppBackend
    import torch  # noqa: F401
    from transformers import GPT2LMHeadModel  # noqa: F401

    return QuantizedBackend if kind == "quantized" else TorchBackend


class _Stamps:
    """A transformers streamer that notes the time of each new id; the first `put` brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ids: list[int] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids.append(int(value.reshape(-1)[0]))  # reading the id waits for the device
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Part of the streamer protocol; nothing is buffered."""


class TorchBackend:
    """transformers' own `generate` with its KV cache in float32: the full-precision generator."""

    def __init__(self, spec: str, threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = self._read(spec).to(device)

    def _read(self, spec: str) -> Any:
        from chitchat.checkpoint import load_model

        return load_model(spec)

    def generate(self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int) -> Sample:
        """See `Backend.generate`."""
        import torch
        from transformers import GenerationConfig

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
        ids = torch.tensor([list(prompt)], device=self._model.device)
        with torch.no_grad():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=options,
                use_model_defaults=False,
                streamer=stamps,
            )
        return as_sample(started, stamps.times, stamps.ids, new_tokens)

    def runtime(self) -> Any:
        """See `Backend.runtime`."""
        from bench.runtime import TorchRuntime

        return TorchRuntime(self._model)


class QuantizedBackend(TorchBackend):
    """A quantized checkpoint de-quantized to float32 in torch: its quality is the shipped one, its speed is not."""

    def _read(self, spec: str) -> Any:
        from compress.quantize.checkpoint import load_quantized

        return load_quantized(spec).dequantized_model()


class EngineBackend:
    """Our torch-free runtime over a bundle: what ships."""

    slots = 1

    def __init__(self, spec: str, threads: int, device: str) -> None:
        from serve.bundle import Bundle
        from serve.engine import Engine

        self._engine = Engine(Bundle.open(spec), threads=threads, slots=self.slots, device=device)

    def generate(self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int) -> Sample:
        """See `Backend.generate`."""
        times: list[float] = []
        ids: list[int] = []
        self._engine.reset()  # else the prompt of the last repeat would be reused
        started = time.perf_counter()
        for token in self._engine.stream(list(prompt), _greedy(new_tokens)):
            times.append(time.perf_counter())
            ids.append(int(token))
        return as_sample(started, times, ids, new_tokens)

    def runtime(self) -> Any:
        """See `Backend.runtime`."""
        from bench.runtime import EngineRuntime

        return EngineRuntime(self._engine)


class TogetherBackend(EngineBackend):
    """Our runtime with several conversations at once, each with its own prompt: a rotation of the one given.

    A sample's ids are those of all conversations in the order of their coming; `token_ms` lies between any two.
    """

    slots = 4

    def generate(self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int) -> Sample:
        """See `Backend.generate`."""
        from serve.scheduler import Scheduler

        times: list[float] = []
        ids: list[int] = []
        self._engine.reset()
        scheduler = Scheduler(self._engine)
        started = time.perf_counter()
        for place in range(self.slots):
            scheduler.start([*prompt[place:], *prompt[:place]], _greedy(new_tokens))
        while len(ids) < self.slots * new_tokens:
            for event in scheduler.step():
                if event.error is not None:
                    raise event.error
                if event.token is not None:
                    times.append(time.perf_counter())
                    ids.append(event.token)
        return as_sample(started, times, ids, self.slots * new_tokens)


def _greedy(new_tokens: int) -> Any:
    """Options for exactly `new_tokens` of the likeliest tokens."""
    from serve.options import SamplingOptions

    return SamplingOptions(temperature=0, repetition_penalty=1.0, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
