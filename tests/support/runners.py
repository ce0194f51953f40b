"""What the server's worker drives in tests: a generator with a `stream`, or the engine with its slots."""

from collections.abc import Sequence
from typing import Any

from serve.engine import Engine
from serve.scheduler import Event, GenerationRequest, Runner, Scheduler


class OneAtATime:
    """A Runner of one request at a time over a generator that has only `stream`."""

    slots = 1

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self.context, self.dialogue = generator.context, generator.dialogue
        self._running: tuple[GenerationRequest, Any] | None = None

    @property
    def free(self) -> int:
        """How many more requests can be started now."""
        return int(self._running is None)

    @property
    def busy(self) -> bool:
        """Whether there is work for `step`."""
        return self._running is not None

    def start(self, prompt_ids: Sequence[int], options: Any) -> GenerationRequest:
        """Begin the generator's stream. Raises what it raises."""
        request = GenerationRequest(prompt_ids, options)
        self._running = request, self._generator.stream(request.prompt_ids, options)
        return request

    def cancel(self, request: GenerationRequest) -> None:
        """Leave the stream now, not when it is collected."""
        if self._running is not None and self._running[0] is request:
            stream, self._running = self._running[1], None
            close = getattr(stream, "close", None)
            if close is not None:
                close()

    def step(self) -> list[Event]:
        """Wait for the next token."""
        if self._running is None:
            return []
        request, stream = self._running
        try:
            token = next(stream, None)
        except Exception as error:
            self.cancel(request)
            return [Event(request, error=error)]
        if token is None:
            self.cancel(request)
            return [Event(request)]
        request.reply.append(token)
        return [Event(request, token)]


def runner_of(generator: Any) -> Runner:
    """A scheduler over an engine with its slots; one at a time over any other generator."""
    return Scheduler(generator) if isinstance(generator, Engine) else OneAtATime(generator)
