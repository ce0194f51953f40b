"""onnxruntime-genai: our own bundle (`compress export --genai`) in its generator; only the loop around it differs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.models.loaded import Floats, Ids
from bench.models.stepping import SteppingModel
from bench.peers.descriptor import Peer, Source
from serve.quiet import load


class GenaiModel(SteppingModel):
    """A bundle with `genai_config.json`."""

    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        genai = self._genai = load("onnxruntime_genai")
        config = genai.Config(spec)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = genai.Model(config)
        known = json.loads((Path(spec) / "genai_config.json").read_text(encoding="utf-8"))
        self.context = int(known["model"]["context_length"])
        self._generator: Any = None

    def greedy(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, *, reuse: bool) -> Iterator[int]:
        """See `SteppingModel.greedy`; the end of turn is kept out by genai's own `min_length`."""
        generator = self._open(len(prompt) + new_tokens, least=len(prompt) + new_tokens)
        generator.append_tokens(list(prompt))
        for _ in range(new_tokens):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def run(self, ids: Ids, *, fresh: bool) -> Floats:
        if fresh:
            self._generator = self._open(self.context)
        self._generator.append_tokens(list(ids))
        return np.array(self._generator.get_logits(), dtype=np.float32).reshape(1, -1)

    def logits(self, ids: Ids) -> Floats:
        """See `LoadedModel.logits`. genai gives those of the last id only, so the ids go in one by one."""
        return np.stack([self.feed([token], fresh=index == 0) for index, token in enumerate(ids)])

    def _open(self, most: int, least: int = 0) -> Any:
        options = self._genai.GeneratorParams(self._model)
        options.set_search_options(do_sample=False, repetition_penalty=1.0, max_length=most, min_length=least)
        return self._genai.Generator(self._model, options)


KINDS = (
    Peer(
        name="onnxruntime-genai",
        model=GenaiModel,
        modules=("onnxruntime_genai",),
        weight_formats=("fp32", "w8", "w4"),
        full_precision="fp32",
        source=Source.GENAI,
        install="onnxruntime-genai",
    ),
)
