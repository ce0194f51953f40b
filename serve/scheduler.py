"""Who runs when: conversations of several slots, a step at a time. Ids only; no text, no HTTP, no threads.

A step of the scheduler is at most two runs of the engine: one chunk of a prompt, then one token of every conversation
that speaks. So a long prompt costs the others a chunk a token, never the whole of itself, and a short prompt does not
wait behind it.

A conversation is given the slot that holds most of its prompt, from an earlier turn; what that slot holds is not
computed again. No slot ever reads another. What a reply decoded cannot be used again exactly (serve/engine.py), so
when nothing else is to be done the scheduler feeds finished replies once more, chunk by chunk: then the next turn finds
all but its own tokens computed. This changes no result, only when it is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve.engine import MAX_CHUNK, Engine
from serve.errors import BadRequest
from serve.options import SamplingOptions
from serve.sampler import Sampler, build_sampler
from serve.session import Logits

CHUNK = 16  # tokens of a prompt between two tokens of the others


class GenerationRequest:
    """One reply that is being made. `reply` are its ids so far, without an end of turn."""

    def __init__(self, prompt_ids: Sequence[int], options: Any) -> None:
        self.prompt_ids = list(prompt_ids)
        self.options = options
        self.reply: list[int] = []


@dataclass(frozen=True)
class Event:
    """What a step did for one conversation: a token; or its end, with an error if it failed."""

    conversation: GenerationRequest
    token: int | None = None
    error: Exception | None = None


class Runner(Protocol):
    """What a worker drives. `start` takes a conversation while `free` is not 0; `step` does a small piece of work."""

    @property
    def slots(self) -> int:
        """How many conversations can run at once."""
        ...

    @property
    def free(self) -> int:
        """How many more conversations can be started now."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there is work for `step`."""
        ...

    def start(self, prompt_ids: Sequence[int], options: Any) -> GenerationRequest:
        """Give a conversation its place. Raises BadRequest for a prompt that cannot be run."""
        ...

    def cancel(self, conversation: GenerationRequest) -> None:
        """Give a conversation up; it has no further events. One that has ended is left alone."""
        ...

    def step(self) -> list[Event]:
        """Work for about the time of one token; give what came of it."""
        ...


@dataclass
class _ActiveRequest:
    """The place of a running conversation: its slot, its sampler, and what of its prompt is not computed yet."""

    slot: int
    sample: Sampler
    todo: list[int]


class Scheduler:
    """Runs up to `engine.slots` conversations at once. Not for use by two threads at once.

    `chunk` is how many tokens of a prompt are computed between two tokens of the others.
    """

    def __init__(self, engine: Engine, chunk: int = CHUNK) -> None:
        if chunk < 2:
            raise BadRequest(f"chunk {chunk}: give at least 2 tokens")
        self._engine = engine
        self.chunk = chunk
        self._free = list(range(engine.slots))  # the one that was used longest ago first
        self._seats: dict[GenerationRequest, _ActiveRequest] = {}
        self._prefilling: list[GenerationRequest] = []  # in the order of arrival
        self._oldest_next = True
        self._decoding: list[GenerationRequest] = []
        self._to_reprefill: dict[int, list[int]] = {}  # free slot: the ids of its last conversation, to be fed

    @property
    def slots(self) -> int:
        """How many conversations can run at once."""
        return self._engine.slots

    @property
    def free(self) -> int:
        """How many more conversations can be started now."""
        return len(self._free)

    @property
    def busy(self) -> bool:
        """Whether there is work for `step`."""
        return bool(self._seats or self._to_reprefill)

    def start(self, prompt_ids: Sequence[int], options: SamplingOptions) -> GenerationRequest:
        """Give a conversation a slot. Raises BadRequest (ContextExceeded) for a prompt that cannot be run."""
        if not self._free:
            raise BadRequest(f"all {self.slots} slots are taken; wait until one is free")
        self._engine.check(prompt_ids, room=1)
        conversation, dialogue = GenerationRequest(prompt_ids, options), self._engine.dialogue
        sample = build_sampler(options, dialogue.banned_ids, dialogue.end_of_turn_id)
        slot = self._choose(conversation.prompt_ids)
        self._free.remove(slot)
        self._to_reprefill.pop(slot, None)
        kept = self._engine.begin(slot, conversation.prompt_ids)
        self._seats[conversation] = _ActiveRequest(slot, sample, conversation.prompt_ids[kept:])
        self._prefilling.append(conversation)
        return conversation

    def cancel(self, conversation: GenerationRequest) -> None:
        """Give a conversation up; its slot is free at once. One that has ended is left alone."""
        if conversation in self._seats:
            self._release(conversation)

    def step(self) -> list[Event]:
        """Compute a chunk of a prompt and a token of everyone who speaks; give the tokens, ends and errors."""
        events: list[Event] = []
        if self._prefilling:
            events += self._prefill(self._next_prompt())
        if self._decoding:
            events += self._decode(self._decoding[:])
        if not self._seats and self._to_reprefill:
            self._reprefill()
        return events

    def _next_prompt(self) -> GenerationRequest:
        """By turns the one that is done first, so that most wait least, and the oldest, so that none waits forever."""
        self._oldest_next = not self._oldest_next
        if self._oldest_next:
            return self._prefilling[0]
        return min(self._prefilling, key=lambda conversation: len(self._seats[conversation].todo))

    def _prefill(self, conversation: GenerationRequest) -> list[Event]:
        seat = self._seats[conversation]
        size = self.chunk if self._decoding else MAX_CHUNK  # a chunk is what the others wait for
        try:
            logits = self._engine.feed(seat.slot, seat.todo[:size])
        except Exception as error:
            return [self._fail(conversation, error)]
        del seat.todo[:size]
        if seat.todo:
            return []
        self._prefilling.remove(conversation)
        self._decoding.append(conversation)
        return self._sample(conversation, logits)

    def _decode(self, speaking: list[GenerationRequest]) -> list[Event]:
        slots = [self._seats[conversation].slot for conversation in speaking]
        try:
            rows = self._engine.decode(slots, [conversation.reply[-1] for conversation in speaking])
        except Exception as error:
            return [self._fail(conversation, error) for conversation in speaking]
        events: list[Event] = []
        for conversation, logits in zip(speaking, rows, strict=True):
            events += self._sample(conversation, logits)
        return events

    def _sample(self, conversation: GenerationRequest, logits: Logits) -> list[Event]:
        """Draw a token. A fault, such as logits that are not numbers, is this conversation's alone."""
        reply, options = conversation.reply, conversation.options
        try:
            token = self._seats[conversation].sample(logits, reply)
        except Exception as error:
            return [self._fail(conversation, error)]
        end = self._engine.dialogue.end_of_turn_id
        if token == end:
            self._release(conversation, [end])
            return [Event(conversation)]
        reply.append(token)
        events = [Event(conversation, token)]
        if len(reply) == options.max_new_tokens or len(conversation.prompt_ids) + len(reply) == self._engine.context:
            self._release(conversation)
            events.append(Event(conversation))
        return events

    def _fail(self, conversation: GenerationRequest, error: Exception) -> Event:
        slot = self._release(conversation)
        self._engine.forget(slot)  # what is there may be no numbers
        self._to_reprefill.pop(slot, None)
        return Event(conversation, error=error)

    def _release(self, conversation: GenerationRequest, ended: Sequence[int] = ()) -> int:
        """Free the slot of a conversation, and give it."""
        slot = self._seats.pop(conversation).slot
        self._free.append(slot)
        if conversation in self._decoding:
            self._decoding.remove(conversation)
            if self._engine.exact:
                said = [*conversation.prompt_ids, *conversation.reply, *ended]
                self._to_reprefill[slot] = said[: self._engine.context - 1]
        elif conversation in self._prefilling:
            self._prefilling.remove(conversation)
        return slot

    def _reprefill(self) -> None:
        """Feed a chunk of a finished conversation to its slot."""
        slot, ids = next(iter(self._to_reprefill.items()))
        kept = self._engine.begin(slot, ids)
        size = min(len(ids) - kept, self.chunk)
        try:
            self._engine.feed(slot, ids[kept : kept + size])
        except Exception:  # nobody waits for it; a request that meets the same fault will tell
            self._engine.forget(slot)
            size = len(ids) - kept
        if kept + size == len(ids):
            del self._to_reprefill[slot]

    def _choose(self, ids: Sequence[int]) -> int:
        """The free slot that spares most and loses least; where nothing is spared, the one used longest ago.

        A first token that all conversations share is no reason to overwrite a long one that may go on.
        """

        def gain(slot: int) -> int:
            return max(2 * self._engine.match(slot, ids) - self._engine.held(slot), 0)

        return max(self._free, key=gain)  # of equals the first


class Streams:
    """One conversation at a time, over a generator that has only `stream`: the full-precision one, a test's."""

    slots = 1

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._running: tuple[GenerationRequest, Any] | None = None

    @property
    def free(self) -> int:
        """How many more conversations can be started now."""
        return int(self._running is None)

    @property
    def busy(self) -> bool:
        """Whether there is work for `step`."""
        return self._running is not None

    def start(self, prompt_ids: Sequence[int], options: Any) -> GenerationRequest:
        """Begin the generator's stream. Raises what it raises."""
        conversation = GenerationRequest(prompt_ids, options)
        self._running = conversation, self._generator.stream(conversation.prompt_ids, options)
        return conversation

    def cancel(self, conversation: GenerationRequest) -> None:
        """Leave the stream now, not when it is collected."""
        if self._running is not None and self._running[0] is conversation:
            stream, self._running = self._running[1], None
            close = getattr(stream, "close", None)
            if close is not None:
                close()

    def step(self) -> list[Event]:
        """Wait for the next token."""
        if self._running is None:
            return []
        conversation, stream = self._running
        try:
            token = next(stream, None)
        except Exception as error:
            self.cancel(conversation)
            return [Event(conversation, error=error)]
        if token is None:
            self.cancel(conversation)
            return [Event(conversation)]
        conversation.reply.append(token)
        return [Event(conversation, token)]


def runner_of(generator: Any) -> Runner:
    """A scheduler over an engine with its slots; one at a time over any other generator."""
    return Scheduler(generator) if isinstance(generator, Engine) else Streams(generator)
