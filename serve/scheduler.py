"""Continuous batching: which requests the engine computes next, a step at a time. Ids only; no text, HTTP or threads.

A step is at most two runs of the engine: prefill of one chunk of one prompt, then decode of one token of every request
whose prompt is done. So a long prompt delays the others by a chunk per token, never by the whole of itself, and a short
prompt does not wait behind it.

A request gets the free slot that holds most of its prompt from an earlier turn; those tokens are not computed again. No
slot ever reads another. Keys and values that decode computed cannot be reused exactly (serve/engine.py), so while there
are no requests the scheduler prefills finished conversations again, chunk by chunk: the next turn then finds all but
its own tokens computed. This changes no result, only when it is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve.dialogue import Dialogue
from serve.engine import MAX_CHUNK, Engine
from serve.errors import BadRequest
from serve.options import SamplingOptions
from serve.protocols import Model
from serve.sampler import Sampler, build_sampler
from serve.session import Logits

CHUNK = 16  # tokens of a prompt that are computed between two tokens of the other requests


class GenerationRequest:
    """One reply in the making: `prompt_ids`, `options`, and `reply`, its ids so far without an end of turn."""

    def __init__(self, prompt_ids: Sequence[int], options: Any) -> None:
        self.prompt_ids = list(prompt_ids)
        self.options = options
        self.reply: list[int] = []


@dataclass(frozen=True)
class Event:
    """What a step did for one request: a token; or, with `token` None, its end, with an error if it failed."""

    request: GenerationRequest
    token: int | None = None
    error: Exception | None = None


class Runner(Model, Protocol):
    """What the server's worker drives: `start` takes a request while `free` is not 0, `step` does a piece of work."""

    @property
    def slots(self) -> int:
        """How many requests can run at once."""

    @property
    def free(self) -> int:
        """How many more requests can be started now."""

    @property
    def busy(self) -> bool:
        """Whether there is work for `step`."""

    def start(self, prompt_ids: Sequence[int], options: Any) -> GenerationRequest:
        """Begin a request. Raises BadRequest for a prompt that cannot be run."""

    def cancel(self, request: GenerationRequest) -> None:
        """Cancel a request; it has no further events. One that has ended is left alone."""

    def step(self) -> list[Event]:
        """Work for about the time of one token; returns what happened."""


@dataclass
class _ActiveRequest:
    """A running request's slot, its sampler, and the ids of its prompt that are not computed yet."""

    slot: int
    sample: Sampler
    todo: list[int]


class Scheduler:
    """Runs up to `engine.slots` requests at once. Not for use by two threads at once.

    `chunk` (at least 2) is how many tokens of a prompt are computed between two tokens of the other requests.
    """

    def __init__(self, engine: Engine, chunk: int = CHUNK) -> None:
        if chunk < 2:
            raise BadRequest(f"chunk {chunk}: give at least 2 tokens")
        self._engine = engine
        self.chunk = chunk
        self._free = list(range(engine.slots))  # least recently used first
        self._active: dict[GenerationRequest, _ActiveRequest] = {}
        self._prefilling: list[GenerationRequest] = []  # in the order of arrival
        self._oldest_next = True
        self._decoding: list[GenerationRequest] = []
        self._to_reprefill: dict[int, list[int]] = {}  # free slot: the ids of its last conversation

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its reply may have together."""
        return self._engine.context

    @property
    def dialogue(self) -> Dialogue:
        """The dialogue format of the model."""
        return self._engine.dialogue

    @property
    def slots(self) -> int:
        """How many requests can run at once."""
        return self._engine.slots

    @property
    def free(self) -> int:
        """How many more requests can be started now."""
        return len(self._free)

    @property
    def busy(self) -> bool:
        """Whether there is work for `step`."""
        return bool(self._active or self._to_reprefill)

    def start(self, prompt_ids: Sequence[int], options: SamplingOptions) -> GenerationRequest:
        """Give a request a slot. Raises BadRequest (ContextExceeded) for a prompt that cannot be run."""
        if not self._free:
            raise BadRequest(f"all {self.slots} slots are taken; wait until one is free")
        self._engine.check(prompt_ids, room=1)
        request, dialogue = GenerationRequest(prompt_ids, options), self._engine.dialogue
        sample = build_sampler(options, dialogue.banned_ids, dialogue.end_of_turn_id)
        slot = self._choose(request.prompt_ids)
        self._free.remove(slot)
        self._to_reprefill.pop(slot, None)
        kept = self._engine.begin(slot, request.prompt_ids)
        self._active[request] = _ActiveRequest(slot, sample, request.prompt_ids[kept:])
        self._prefilling.append(request)
        return request

    def cancel(self, request: GenerationRequest) -> None:
        """Cancel a request; its slot is free at once. One that has ended is left alone."""
        if request in self._active:
            self._release(request)

    def step(self) -> list[Event]:
        """Prefill a chunk of one prompt and decode a token of each other request; returns tokens, ends and errors."""
        events: list[Event] = []
        if self._prefilling:
            events += self._prefill(self._next_prompt())
        if self._decoding:
            events += self._decode(self._decoding[:])
        if not self._active and self._to_reprefill:
            self._reprefill()
        return events

    def _next_prompt(self) -> GenerationRequest:
        """In turns the one with the least left, so that most wait least, and the oldest, so that none waits forever."""
        self._oldest_next = not self._oldest_next
        if self._oldest_next:
            return self._prefilling[0]
        return min(self._prefilling, key=lambda request: len(self._active[request].todo))

    def _prefill(self, request: GenerationRequest) -> list[Event]:
        active = self._active[request]
        size = self.chunk if self._decoding else MAX_CHUNK  # the others wait for a chunk
        try:
            logits = self._engine.feed(active.slot, active.todo[:size])
        except Exception as error:
            return [self._fail(request, error)]
        del active.todo[:size]
        if active.todo:
            return []
        self._prefilling.remove(request)
        self._decoding.append(request)
        return self._sample(request, logits)

    def _decode(self, decoding: list[GenerationRequest]) -> list[Event]:
        slots = [self._active[request].slot for request in decoding]
        try:
            rows = self._engine.decode(slots, [request.reply[-1] for request in decoding])
        except Exception as error:
            return [self._fail(request, error) for request in decoding]
        events: list[Event] = []
        for request, logits in zip(decoding, rows, strict=True):
            events += self._sample(request, logits)
        return events

    def _sample(self, request: GenerationRequest, logits: Logits) -> list[Event]:
        """Draw a token. A fault, such as logits that are not numbers, is this request's alone."""
        reply, options = request.reply, request.options
        try:
            token = self._active[request].sample(logits, reply)
        except Exception as error:
            return [self._fail(request, error)]
        end = self._engine.dialogue.end_of_turn_id
        if token == end:
            self._release(request, [end])
            return [Event(request)]
        reply.append(token)
        events = [Event(request, token)]
        if len(reply) == options.max_new_tokens or len(request.prompt_ids) + len(reply) == self._engine.context:
            self._release(request)
            events.append(Event(request))
        return events

    def _fail(self, request: GenerationRequest, error: Exception) -> Event:
        slot = self._release(request)
        self._engine.forget(slot)  # its keys and values may be NaN
        self._to_reprefill.pop(slot, None)
        return Event(request, error=error)

    def _release(self, request: GenerationRequest, ended: Sequence[int] = ()) -> int:
        """Free the slot of a request; returns the slot."""
        slot = self._active.pop(request).slot
        self._free.append(slot)
        if request in self._decoding:
            self._decoding.remove(request)
            if self._engine.exact:
                ids = [*request.prompt_ids, *request.reply, *ended]
                self._to_reprefill[slot] = ids[: self._engine.context - 1]
        elif request in self._prefilling:
            self._prefilling.remove(request)
        return slot

    def _reprefill(self) -> None:
        """Prefill a chunk of a finished conversation in its slot."""
        slot, ids = next(iter(self._to_reprefill.items()))
        kept = self._engine.begin(slot, ids)
        size = min(len(ids) - kept, self.chunk)
        try:
            self._engine.feed(slot, ids[kept : kept + size])
        except Exception:  # nobody waits for it; a request with the same fault reports it
            self._engine.forget(slot)
            size = len(ids) - kept
        if kept + size == len(ids):
            del self._to_reprefill[slot]

    def _choose(self, ids: Sequence[int]) -> int:
        """The free slot whose reuse saves most net of what is overwritten; where none saves, the least recently used.

        A first token that all conversations share is no reason to overwrite a long one that may go on.
        """

        def gain(slot: int) -> int:
            return max(2 * self._engine.match(slot, ids) - self._engine.held(slot), 0)

        return max(self._free, key=gain)  # of equals the first
