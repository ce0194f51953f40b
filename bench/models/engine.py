"""Our torch-free engine over a bundle: what ships."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from bench.models.kind import RuntimeKind
from bench.models.loaded import Floats, Ids, LoadedModel, TimedReply, as_timed_reply, time_tokens

if TYPE_CHECKING:
    from chitchat.score import TokenScorer
    from serve.dialogue import Dialogue
    from serve.engine import Engine
    from serve.options import SamplingOptions


class EngineModel(LoadedModel):
    """A bundle, with as many slots as conversations are to run at once; logits and replies are those of slot 0."""

    supports_concurrency: ClassVar[bool] = True

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.context = engine.context

    @classmethod
    def open(cls, spec: str, threads: int, device: str, slots: int = 1) -> Self:
        from serve.bundle import Bundle
        from serve.engine import Engine

        return cls(Engine(Bundle.open(spec), threads=threads, slots=slots, device=device))

    def generate(self, prompt: Ids, new_tokens: int, end_of_turn_id: int, *, reuse: bool = False) -> TimedReply:
        if not reuse:
            self._engine.reset()
        return time_tokens(lambda: self._engine.stream(list(prompt), _greedy(new_tokens)), new_tokens)

    def generate_concurrent(self, prompts: Sequence[Ids], new_tokens: int, end_of_turn_id: int) -> list[TimedReply]:
        """See `LoadedModel.generate_concurrent`. The server's own scheduler decides who runs when."""
        from serve.scheduler import Scheduler

        self._engine.reset()
        scheduler = Scheduler(self._engine)
        started = time.perf_counter()
        requests = [scheduler.start(list(prompt), _greedy(new_tokens)) for prompt in prompts]
        times: dict[int, list[float]] = {id(request): [] for request in requests}
        missing = len(requests) * new_tokens
        while missing:
            for event in scheduler.step():
                if event.error is not None:
                    raise event.error
                if event.token is not None:
                    times[id(event.request)].append(time.perf_counter())
                    missing -= 1
        return [as_timed_reply(started, times[id(request)], request.reply, new_tokens) for request in requests]

    def scorer(self) -> "TokenScorer":
        return self._engine.scorer()

    def logits(self, ids: Ids) -> Floats:
        return self._engine.logits(ids)

    def start(self, prompts: Sequence[Ids]) -> Floats:
        (prompt,) = prompts
        return self._engine.prefill(prompt)[None]

    def step(self, rows: Sequence[int], tokens: Ids) -> Floats:
        (token,) = tokens
        return self._engine.step(token)[None]

    def reply(self, prompt: Ids, options: "SamplingOptions", dialogue: "Dialogue") -> Iterator[int]:
        """See `LoadedModel.reply`: the loop that ships, with the bundle's own dialogue."""
        return self._engine.stream(prompt, options)


def _greedy(new_tokens: int) -> "SamplingOptions":
    """Options for exactly `new_tokens` of the likeliest tokens."""
    from serve.options import SamplingOptions

    return SamplingOptions(temperature=0, repetition_penalty=1.0, min_new_tokens=new_tokens, max_new_tokens=new_tokens)


BUNDLE = RuntimeKind(name="bundle", model=EngineModel, modules=("onnxruntime", "serve.scheduler"))
KINDS = (BUNDLE,)
