"""CTranslate2: its own format, float32 or int8, through `Generator.generate_tokens` and `forward_batch`.

Its decoding loop sees the prompt at once and then a token a step, and says each token as it comes. Token ids go in as
the tokenizer's strings, since that is what it takes. It keeps nothing between two calls.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.models.loaded import Floats, Ids, TimedReply, as_timed_reply
from bench.models.stepping import SteppingModel
from bench.peers.descriptor import Peer
from chitchat.architectures.registry import geometry_of

if TYPE_CHECKING:
    from serve.dialogue import Dialogue
    from serve.options import SamplingOptions


def convert(checkpoint: Path, out: Path, weight_format: str, threads: int) -> None:
    """Write a checkpoint as a CTranslate2 model; int8 is CTranslate2's own rounding, a scale a row."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(checkpoint)).convert(
        str(out), quantization=None if weight_format == "float32" else weight_format
    )
    # A tokenizer without some of the special tokens that GPT-2's has leaves nulls, which CTranslate2 refuses to load.
    names = json.loads((out / "vocabulary.json").read_text(encoding="utf-8"))
    settings = json.loads((out / "config.json").read_text(encoding="utf-8"))
    filled = {
        name: names[0] if name.endswith("_token") and value is None else value for name, value in settings.items()
    }
    (out / "config.json").write_text(json.dumps(filled), encoding="utf-8")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (out / "context.txt").write_text(str(geometry_of(config).context), encoding="utf-8")


class CTranslate2Model(SteppingModel):
    """A converted model, computed in the numbers that it is stored in."""

    supports_concurrency: ClassVar[bool] = True

    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(spec, device=device, intra_threads=threads, inter_threads=1)
        names = json.loads((Path(spec) / "vocabulary.json").read_text(encoding="utf-8"))
        self._tokens = [str(name) for name in names]
        self._held: list[int] = []
        self.context = int((Path(spec) / "context.txt").read_text(encoding="utf-8"))

    def greedy(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, *, reuse: bool) -> Iterator[int]:
        options = self._exactly(new_tokens, end_of_turn_id)
        for step in self._generator.generate_tokens(self._strings(prompt), **options):
            yield step.token_id

    def generate_concurrent(self, prompts: Sequence[Ids], new_tokens: int, end_of_turn_id: int) -> list[TimedReply]:
        """See `LoadedModel.generate_concurrent`: `generate_batch`, whose callback says each token as it comes."""
        times: list[list[float]] = [[] for _ in prompts]
        ids: list[list[int]] = [[] for _ in prompts]

        def note(step: Any) -> bool:
            times[step.batch_id].append(time.perf_counter())
            ids[step.batch_id].append(int(step.token_id))
            return False

        started = time.perf_counter()
        self._generator.generate_batch(
            [self._strings(prompt) for prompt in prompts],
            include_prompt_in_result=False,
            callback=note,
            **self._exactly(new_tokens, end_of_turn_id),
        )
        return [as_timed_reply(started, stamps, reply, new_tokens) for stamps, reply in zip(times, ids, strict=True)]

    def reply(self, prompt: Ids, options: "SamplingOptions", dialogue: "Dialogue") -> Iterator[int]:
        """See `LoadedModel.reply`: its own loop and sampler, which keep the cache that `run` cannot."""
        import ctranslate2

        ctranslate2.set_random_seed(options.seed)
        for step in self._generator.generate_tokens(
            self._strings(prompt),
            max_length=min(options.max_new_tokens, self.context - len(prompt)),
            min_length=options.min_new_tokens,
            sampling_topk=options.top_k,
            sampling_topp=options.top_p,
            sampling_temperature=options.temperature,
            repetition_penalty=options.repetition_penalty,
            end_token=[self._tokens[dialogue.end_of_turn_id]],
            suppress_sequences=[[self._tokens[token]] for token in dialogue.banned_ids],
        ):
            if step.token_id == dialogue.end_of_turn_id:
                return
            yield int(step.token_id)

    def run(self, ids: Ids, *, fresh: bool) -> Floats:
        """See `SteppingModel.run`: CTranslate2 takes no cache from outside, so the whole text is computed."""
        self._held = [*([] if fresh else self._held), *ids]
        return np.array(self._generator.forward_batch([self._strings(self._held)]))[0, -len(ids) :]

    def _strings(self, ids: Ids) -> list[str]:
        return [self._tokens[token] for token in ids]

    def _exactly(self, new_tokens: int, end_of_turn_id: int) -> dict[str, Any]:
        """Options of a greedy reply of `new_tokens`: the end of turn is kept out."""
        end = self._tokens[end_of_turn_id]
        length = {"max_length": new_tokens, "min_length": new_tokens, "sampling_topk": 1}
        return {**length, "end_token": [end], "suppress_sequences": [[end]]}


KINDS = (
    Peer(
        name="ctranslate2",
        model=CTranslate2Model,
        modules=("ctranslate2",),
        weight_formats=("float32", "int8"),
        full_precision="float32",
        convert=convert,
    ),
)
