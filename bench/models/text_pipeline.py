"""A whole reply as a user has it: text in, text out as it comes, with everything in between on the clock.

The tokenizer, the sampler and its options are the same for every runtime (`serve.text`, `serve.sampler`), and so is the
seed, so runtimes whose logits agree say the same words. One that cannot be led token by token without computing its
cache anew overrides `LoadedModel.reply` with its own loop and sampler, with the same options.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.models.loaded import LoadedModel
from serve.dialogue import Dialogue
from serve.options import SamplingOptions
from serve.text import TextCodec


class TextPipeline:
    """Answers texts with a loaded model: `tokenizer` is the path of a tokenizer.json, `dialogue` as bundles say it."""

    def __init__(self, model: LoadedModel, tokenizer: str, dialogue: Mapping[str, Any]) -> None:
        self._model = model
        self._codec, self._dialogue = TextCodec.open(Path(tokenizer)), Dialogue.from_json(dialogue)

    def reply(self, text: str, seed: int, new_tokens: int) -> dict[str, Any]:
        """`ms` from text to the last piece of text, `first_ms` to the first token, `tokens`, and the reply's `text`.

        A reply ends at its end of turn, after one token at least, or with the context, half of which a prompt may take.
        """
        options = SamplingOptions(seed=seed, max_new_tokens=new_tokens, min_new_tokens=1)
        started = time.perf_counter()
        prompt = self._dialogue.encode([self._codec.encode(text)])[-(self._model.context // 2) :]
        decoder, pieces, tokens, first = self._codec.stream(), [], 0, 0.0
        for token in self._model.reply(prompt, options, self._dialogue):
            tokens += 1
            first = first or time.perf_counter() - started
            pieces.append(decoder.feed(token))
        pieces.append(decoder.flush())
        took = time.perf_counter() - started
        return {"ms": took * 1000, "first_ms": first * 1000, "tokens": tokens, "text": "".join(pieces)}
