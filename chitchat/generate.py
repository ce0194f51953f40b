"""The full-precision generator: transformers' `generate` with its KV cache, from ids to ids, one at a time.

Compressed models are compared with it, so nothing is exported, fused or quantized.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from chitchat.dialogue import Dialogue
from chitchat.errors import BadInput
from serve.scored import ScoredToken

# Defaults of the options: a short greedy reply.
_DEFAULTS: dict[str, Any] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 64,
    "min_new_tokens": 0,
    "seed": None,
    "min_p": 0.0,
    "no_repeat_ngram": 0,
    "logprobs": None,
    "earlier_ids": (),
}


class TorchGenerator:
    """Replies of a torch model. `context` is the most ids of prompt and reply together."""

    def __init__(self, model: PreTrainedModel, dialogue: Dialogue, threads: int | None = None) -> None:
        """`threads` sets torch's thread count, which is one for the whole process."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = model.eval()
        self.dialogue = dialogue
        self.context: int = model.config.max_position_embeddings

    def stream(self, prompt_ids: list[int], options: Any = None) -> Iterator[int]:
        """Yield the ids of a reply as they are generated, without its end of turn.

        `options` is a mapping or dataclass with the field names of `serve.options.ReplyOptions`. The repetition
        penalty is transformers' (divides positive logits, multiplies negative ones) over `earlier_ids` (the bot's
        earlier turns) and this reply; the no-repeat n-gram is over this reply. The reply ends with the context. With a
        `seed` it is the same every time. With `logprobs` the ids are `ScoredToken`s, with natural logarithms of the
        softmax of the model's logits before any processor, as the engine of a bundle gives them. Generation stops if
        the consumer does. Raises `BadInput` for a prompt that leaves no space for a reply.
        """
        limit = self.context - len(prompt_ids)
        if not prompt_ids or limit < 1:
            raise BadInput(
                f"prompt of {len(prompt_ids)} ids: give 1 to {self.context - 1} for a context of {self.context}"
            )
        return self._stream(list(prompt_ids), _settings(options), limit)

    def blank(self, options: Any = None) -> Iterator[int]:
        """Unconditional generation: a turn without a prompt."""
        return self.stream(list(self.dialogue.unconditional_prompt_ids), options)

    def _stream(self, prompt_ids: list[int], settings: dict[str, Any], limit: int) -> Iterator[int]:
        """Run `generate` in a thread and yield what it puts into a queue."""
        streamer, stop = _QueueStreamer(), threading.Event()

        def work() -> None:
            try:
                self._generate(prompt_ids, settings, limit, streamer, stop)
            except BaseException as error:
                streamer.ids.put(error)
            else:
                streamer.ids.put(None)

        thread = threading.Thread(target=work, name="generate", daemon=True)
        thread.start()
        try:
            while (item := streamer.ids.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if item != self.dialogue.end_of_turn_id:
                    yield item
        finally:
            stop.set()
            thread.join()

    def _generate(
        self,
        prompt_ids: list[int],
        settings: dict[str, Any],
        limit: int,
        streamer: "_QueueStreamer",
        stop: threading.Event,
    ) -> None:
        device = self.model.device
        ids = torch.tensor([prompt_ids], device=device)
        devices = [] if device.type == "cpu" else [device]
        count = settings["logprobs"]
        scoring = nullcontext() if count is None else streamer.scoring(self.model, count)
        with torch.inference_mode(), torch.random.fork_rng(devices=devices), no_defaults(self.model), scoring:
            if settings["seed"] is not None:
                torch.manual_seed(settings["seed"])
            else:
                torch.seed()  # otherwise every fork would be the same
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._configuration(settings, limit),
                logits_processor=self._processors(settings, len(prompt_ids)),
                stopping_criteria=StoppingCriteriaList([_StopWhen(stop)]),
                streamer=streamer,
            )

    def _processors(self, settings: dict[str, Any], prompt_length: int) -> LogitsProcessorList:
        """transformers' own logits processors, applied to the bot's turns and not to the prompt."""
        processors = LogitsProcessorList()
        if settings["repetition_penalty"] != 1.0:
            penalty = RepetitionPenaltyLogitsProcessor(float(settings["repetition_penalty"]))
            earlier = [i for i in settings["earlier_ids"] if i != self.dialogue.end_of_turn_id]
            processors.append(_OverReply(penalty, prompt_length, earlier))
        if settings["no_repeat_ngram"]:
            ngrams = NoRepeatNGramLogitsProcessor(settings["no_repeat_ngram"])
            processors.append(_OverReply(ngrams, prompt_length))
        return processors

    def _configuration(self, settings: dict[str, Any], limit: int) -> GenerationConfig:
        new = min(settings["max_new_tokens"], limit)
        fields: dict[str, Any] = {
            "max_new_tokens": new,
            "min_new_tokens": min(settings["min_new_tokens"], new),
            "do_sample": settings["temperature"] > 0,
            "use_cache": True,
            "bos_token_id": self.dialogue.unconditional_prompt_ids[0],
            "eos_token_id": self.dialogue.end_of_turn_id,
            "pad_token_id": self.dialogue.pad_id,
            "suppress_tokens": list(self.dialogue.banned_ids) or None,
        }
        if settings["temperature"] > 0:
            fields |= {name: settings[name] for name in ("temperature", "top_k", "top_p", "min_p")}
        return GenerationConfig(**fields)


@contextmanager
def no_defaults(model: PreTrainedModel) -> Iterator[None]:
    """A context in which `generate` uses only the given configuration.

    transformers 5 would take settings that are not given from the checkpoint, for example a repetition penalty. The
    model's own padding id is hidden too: it would warn of a prompt that ends with it, although no row here is padded.
    """
    kept, pad_id = model.generation_config, model.config.pad_token_id
    model.generation_config, model.config.pad_token_id = GenerationConfig(), None
    try:
        yield
    finally:
        model.generation_config, model.config.pad_token_id = kept, pad_id


class _QueueStreamer(BaseStreamer):
    """Puts generated ids into a queue; the first ids from `generate` are the prompt's."""

    def __init__(self) -> None:
        self.ids: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._prompt_seen = False
        self._score: Callable[[int], int] = int

    @contextmanager
    def scoring(self, model: PreTrainedModel, count: int) -> Iterator[None]:
        """A context in which each id is scored on the newest logits of `model`, with the `count` likeliest ids.

        A hook reads the logits: what `generate` hands to logits processors has its own applied.
        """
        newest = torch.empty(0)

        def keep(_module: torch.nn.Module, _given: Any, output: Any) -> None:
            nonlocal newest
            newest = output.logits[0, -1]

        self._score = lambda token: _score(newest, token, count)
        hook = model.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()
            self._score = int

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate` with int64 [1, prompt] once, then [1] per step."""
        if self._prompt_seen:
            self.ids.put(self._score(int(value.reshape(-1)[-1])))
        self._prompt_seen = True

    def end(self) -> None:
        """Called by `generate` at the end; consumers wait for its return instead."""


class _StopWhen(StoppingCriteria):
    """Ends generation when the event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Bool [batch]: whether each row is done."""
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class _OverReply(LogitsProcessor):
    """Applies a processor to `earlier` ids and those of the reply, without the prompt."""

    def __init__(self, processor: LogitsProcessor, prompt_length: int, earlier: Sequence[int] = ()) -> None:
        self.processor = processor
        self.prompt_length = prompt_length
        self.earlier = list(earlier)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores float [1, vocab] of int64 [1, prompt + reply]."""
        earlier = torch.tensor([self.earlier], dtype=torch.long, device=input_ids.device)
        return self.processor(torch.cat([earlier, input_ids[:, self.prompt_length :]], dim=1), scores)


def _settings(options: Any) -> dict[str, Any]:
    """The known fields of a mapping or dataclass over the defaults."""
    if options is None:
        given: Mapping[str, Any] = {}
    elif is_dataclass(options) and not isinstance(options, type):
        given = asdict(options)
    else:
        given = dict(options)
    settings = {name: given.get(name, default) for name, default in _DEFAULTS.items()}
    if settings["max_new_tokens"] < 1:
        raise BadInput(f"--max-new-tokens {settings['max_new_tokens']}: give at least 1")
    settings["top_p"] = settings["top_p"] or 1.0  # 0 is off, as 1 is
    return settings


def _score(logits: torch.Tensor, token: int, count: int) -> ScoredToken:
    """The token with its log-probability and those of the `count` likeliest ids; logits float [vocab]."""
    nats = logits.double().cpu().log_softmax(dim=-1)
    scored = ScoredToken(token)
    scored.logprob = float(nats[token])
    likeliest = nats.sort(descending=True, stable=True) if count else None  # of equals the smaller id first
    pairs = zip(likeliest.indices[:count].tolist(), likeliest.values[:count].tolist(), strict=True) if likeliest else ()
    scored.likeliest = tuple(pairs)
    return scored
