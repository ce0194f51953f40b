"""Our torch-free engine over a bundle: what ships."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.models.backend import TimedReply, as_timed_reply


class EngineBackend:
    """A bundle, with as many slots as conversations are to run at once."""

    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        from serve.bundle import Bundle
        from serve.engine import Engine

        self._engine = Engine(Bundle.open(spec), threads=threads, slots=slots, device=device)

    def generate(
        self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int, *, reuse: bool = False
    ) -> TimedReply:
        """See `bench.models.backend.Backend.generate`."""
        times: list[float] = []
        ids: list[int] = []
        if not reuse:
            self._engine.reset()
        started = time.perf_counter()
        for token in self._engine.stream(list(prompt), _greedy(new_tokens)):
            times.append(time.perf_counter())
            ids.append(int(token))
        return as_timed_reply(started, times, ids, new_tokens)

    def generate_concurrent(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, end_of_turn_id: int
    ) -> list[TimedReply]:
        """See `bench.models.backend.ConcurrentBackend`. The server's own scheduler decides who runs when."""
        from serve.scheduler import Scheduler

        self._engine.reset()
        scheduler = Scheduler(self._engine)
        started = time.perf_counter()
        talks = [scheduler.start(list(prompt), _greedy(new_tokens)) for prompt in prompts]
        times: dict[int, list[float]] = {id(talk): [] for talk in talks}
        waiting = len(talks) * new_tokens
        while waiting:
            for event in scheduler.step():
                if event.error is not None:
                    raise event.error
                if event.token is not None:
                    times[id(event.request)].append(time.perf_counter())
                    waiting -= 1
        return [as_timed_reply(started, times[id(talk)], talk.reply, new_tokens) for talk in talks]

    def reply(self, prompt: Sequence[int], options: Any, dialogue: Any) -> Iterator[int]:
        """See `bench.models.backend.ReplyBackend`: the loop that ships, with the bundle's own dialogue."""
        return self._engine.stream(prompt, options)

    def runtime(self) -> Any:
        """See `bench.models.backend.Backend.runtime`."""
        from bench.models.runtime import EngineRuntime

        return EngineRuntime(self._engine)


def _greedy(new_tokens: int) -> Any:
    """Options for exactly `new_tokens` of the likeliest tokens."""
    from serve.options import SamplingOptions

    return SamplingOptions(temperature=0, repetition_penalty=1.0, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
