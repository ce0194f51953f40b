"""A whole reply as a user has it: text in, text out as it comes, with everything in between on the clock.

The tokenizer, the sampler and its options are the same for every runtime (`serve.text`, `serve.sampler`), and so is the
seed, so runtimes whose logits agree say the same words. One that cannot be led token by token without computing its
cache anew (`bench.models.backend.ReplyBackend`) has its own loop and sampler, with the same options.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from serve.dialogue import Dialogue
from serve.options import SamplingOptions
from serve.sampler import build_sampler, draw
from serve.text import TextCodec


@dataclass(frozen=True)
class TextPipelineSpec:
    """What a runtime needs to answer text: the path of a tokenizer.json, and the dialogue as bundles say it."""

    tokenizer: str
    dialogue: Mapping[str, Any]

    def open(self, backend: Any) -> "TextPipeline":
        """Read the tokenizer, once for all replies of `backend`."""
        return TextPipeline(TextCodec.open(Path(self.tokenizer)), Dialogue.from_json(self.dialogue), backend)


class TextPipeline:
    """Answers texts with a backend (`bench.models.backend.Backend`)."""

    def __init__(self, codec: TextCodec, dialogue: Dialogue, backend: Any) -> None:
        self._codec, self._dialogue = codec, dialogue
        self._backend, self._runtime = backend, backend.runtime()

    def reply(self, text: str, seed: int, new_tokens: int) -> dict[str, Any]:
        """`ms` from text to the last piece of text, `first_ms` to the first token, `tokens`, and the reply's `text`.

        A reply ends at its end of turn, after one token at least, or with the context, half of which a prompt may take.
        """
        options = SamplingOptions(seed=seed, max_new_tokens=new_tokens, min_new_tokens=1)
        started = time.perf_counter()
        prompt = self._dialogue.encode([self._codec.encode(text)])
        decoder, pieces, tokens, first = self._codec.stream(), [], 0, 0.0
        for token in self._ids(prompt[-(self._runtime.context // 2) :], options):
            tokens += 1
            first = first or time.perf_counter() - started
            pieces.append(decoder.feed(token))
        pieces.append(decoder.flush())
        took = time.perf_counter() - started
        return {"ms": took * 1000, "first_ms": first * 1000, "tokens": tokens, "text": "".join(pieces)}

    def _ids(self, prompt: Sequence[int], options: SamplingOptions) -> Iterator[int]:
        if hasattr(self._backend, "reply"):
            return cast(Iterator[int], self._backend.reply(prompt, options, self._dialogue))
        runtime, end = self._runtime, self._dialogue.end_of_turn_id
        sample = build_sampler(options, self._dialogue.banned_ids, end)
        most = min(options.max_new_tokens, runtime.context - len(prompt))
        return draw(sample, end, most, runtime.start([prompt])[0], lambda token: runtime.step([0], [token])[0])
