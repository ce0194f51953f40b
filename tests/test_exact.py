"""A conversation's logits have the same bits whatever else runs: the promise behind replies that can be repeated.

Every logit that is drawn from is compared, not only the ids: one bit that differs flips an id only now and then.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import exported, random_gpt2

import serve.scheduler
from serve.bundle import Bundle
from serve.engine import Engine
from serve.options import SamplingOptions
from serve.scheduler import GenerationRequest, Scheduler

CONTEXT, VOCAB, END = 96, 503, 2
TALKS = 200


GRAPHS = {  # weights, heads, cache
    "fp32": (None, 3, "float32"),
    "w8": (8, 3, "float32"),
    "w4": (4, 3, "float32"),
    "w8a8": ("w8a8", 3, "float32"),
    "fp32, int8 cache": (None, 3, "int8"),
    "w4, int8 cache": (4, 3, "int8"),
    "heads of 8": (None, 9, "float32"),
    "heads of 36": (None, 2, "float32"),
}
FAST = ("w8", "w4, int8 cache", "heads of 36")
CASES = [pytest.param(graph, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, graph in GRAPHS.items()]


@pytest.fixture(scope="module", params=CASES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Widths and a vocabulary that are no multiples of what kernels compute at once; heads of several sizes."""
    bits, heads, kv = request.param
    model = random_gpt2(n_embd=72, n_head=heads, n_positions=CONTEXT, vocab_size=VOCAB)
    return exported(model, tmp_path_factory.mktemp("bundle"), bits, kv=kv)


@dataclass
class Turn:
    """What is asked, how the reply is drawn, and after how many of its tokens the client leaves (None: it stays)."""

    asked: list[int]
    options: SamplingOptions
    leaves_after: int | None


@dataclass
class Talk:
    """A conversation and what became of it: the ids, and a hash of all logits that they were drawn from."""

    turns: list[Turn]
    history: list[int] = field(default_factory=lambda: [1])
    replies: list[list[int]] = field(default_factory=list)
    logits: list[str] = field(default_factory=list)

    def next_turn(self) -> Turn | None:
        return self.turns[len(self.replies)] if len(self.replies) < len(self.turns) else None

    def ended(self, reply: list[int], logits: str) -> None:
        self.replies.append(reply)
        self.logits.append(logits)
        self.history += [*reply, END]


def talks(seed: int) -> list[Talk]:
    """Talks of one to three turns, greedy and sampled, with clients that leave."""
    draw = random.Random(seed)
    made = []
    for number in range(TALKS):
        turns = []
        for _ in range(draw.choice([1, 1, 2, 3])):
            asked = [draw.randrange(3, VOCAB) for _ in range(draw.choice([1, 2, 5, 12, 20]))]
            sampled = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": number}
            options = SamplingOptions(
                **(sampled if draw.random() < 0.5 else {"temperature": 0.0}),
                max_new_tokens=draw.randint(1, 11),
                min_new_tokens=draw.choice([0, 4]),
            )
            turns.append(Turn([*asked, END], options, draw.choice([None, None, None, 0, 2])))
        made.append(Talk(turns))
    return made


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Every sampler hashes the logits that it sees; by the identity of the reply's options."""
    seen: dict[int, Any] = {}
    build = serve.scheduler.build_sampler

    def recording(options: SamplingOptions, banned: Any, end: int) -> Callable[..., int]:
        sample, digest = build(options, banned, end), hashlib.sha256()
        seen[id(options)] = digest

        def record(logits: np.ndarray, said: list[int]) -> int:
            digest.update(logits.tobytes())
            return sample(logits, said)

        return record

    monkeypatch.setattr(serve.scheduler, "build_sampler", recording)
    return seen


class Driver:
    """Plays talks on a scheduler."""

    def __init__(self, engine: Engine, digests: dict[int, Any], chunk: int = 16) -> None:
        self.scheduler = Scheduler(engine, chunk)
        self.digests = digests
        self.running: dict[GenerationRequest, tuple[Talk, Turn]] = {}
        self.most, self.prompt_tokens = 0, 0

    def begin(self, talk: Talk) -> None:
        turn = talk.next_turn()
        assert turn is not None
        talk.history += turn.asked
        self.running[self.scheduler.start(talk.history, turn.options)] = talk, turn
        self.most = max(self.most, len(self.running))
        self.prompt_tokens += len(talk.history)

    def step(self) -> Iterator[Talk]:
        """One step; yields the talks of which a turn has ended."""
        ended = []
        for event in self.scheduler.step():
            assert event.error is None
            turn = self.running[event.request][1]
            leaves = turn.leaves_after is not None and len(event.request.reply) > turn.leaves_after
            if event.token is None or leaves:
                ended.append(event.request)
        for conversation in dict.fromkeys(ended):
            self.scheduler.cancel(conversation)
            talk, turn = self.running.pop(conversation)
            talk.ended(conversation.reply[:], self.digests[id(turn.options)].hexdigest())
            yield talk


def alone(engine: Engine, digests: dict[int, Any], wanted: list[Talk]) -> None:
    """Play the talks one after another, each turn on an engine that remembers nothing."""
    for talk in wanted:
        while talk.next_turn() is not None:
            engine.reset()
            driver = Driver(engine, digests)
            driver.begin(talk)
            while driver.running:
                list(driver.step())


def together(engine: Engine, digests: dict[int, Any], wanted: list[Talk], seed: int) -> Driver:
    """Play the talks at once: random arrivals, chunks and pauses; later turns find what is left of earlier ones."""
    draw = random.Random(seed)
    driver, waiting = Driver(engine, digests), wanted[:]
    draw.shuffle(waiting)
    while waiting or driver.running:
        while waiting and driver.scheduler.free and draw.random() < 0.4:
            driver.begin(waiting.pop(draw.randrange(min(6, len(waiting)))))
        driver.scheduler.chunk = draw.choice([2, 3, 5, 16, 40])
        # The next turn of a talk mostly comes soon.
        waiting[:0] = [talk for talk in driver.step() if talk.next_turn() is not None]
    return driver


def test_two_hundred_conversations_are_the_same_alone_and_beside_others(
    bundle: Bundle, digests: dict[int, Any]
) -> None:
    """A reply that depends on the load of the server: nobody can repeat what a user saw (vllm issue 23138)."""
    solo, crowd = talks(seed=1), talks(seed=1)
    alone(Engine(bundle, threads=1, slots=4), digests, solo)
    engine = Engine(bundle, threads=2, slots=4)
    fed = count_feeds(engine)
    driver = together(engine, digests, crowd, seed=1)
    assert driver.most == 4
    assert fed() < 0.9 * driver.prompt_tokens, "what earlier turns left was not used"
    for one, other in zip(solo, crowd, strict=True):
        assert other.replies == one.replies
        assert other.logits == one.logits
    assert len({tuple(map(tuple, talk.replies)) for talk in solo}) > TALKS * 0.9, "replies all alike show nothing"


def test_the_fast_engine_is_not_exact(tmp_path: Path, digests: dict[int, Any]) -> None:
    """If it were, the test above could not fail, and the slower kernel would be for nothing."""
    solo, crowd = talks(seed=1), talks(seed=1)
    model = random_gpt2(n_embd=72, n_head=3, n_positions=CONTEXT, vocab_size=VOCAB)
    engine = Engine(exported(model, tmp_path, 4), threads=1, slots=4, exact=False)
    alone(engine, digests, solo)
    together(engine, digests, crowd, seed=1)
    assert sum(other.logits != one.logits for one, other in zip(solo, crowd, strict=True)) > 10


def test_threads_that_would_split_sums_are_not_started(tmp_path: Path) -> None:
    """With more threads than heads, attention over equally long slots adds up in another order (flash decoding)."""
    bundle = exported(random_gpt2(n_embd=64, n_head=1, n_positions=700, vocab_size=VOCAB), tmp_path)
    assert Engine(bundle, threads=3).threads == 3, "one slot is always split alike"
    engine = Engine(bundle, threads=7, slots=2)
    assert engine.threads == 2
    ids = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB, size=600)]
    engine.feed(0, ids)
    want = engine.decode([0], [5])[0].copy()
    engine.reset()
    for slot in (0, 1):
        engine.feed(slot, ids)
    for logits in engine.decode([0, 1], [5, 5]):
        np.testing.assert_array_equal(logits, want)


def test_one_slot_gives_the_same_reply_after_any_other(bundle: Bundle, digests: dict[int, Any]) -> None:
    """The one-row kernel of a single slot must not mix with what several rows computed."""
    solo, after = talks(seed=2)[:60], talks(seed=2)[:60]
    engine = Engine(bundle, threads=1)
    alone(engine, digests, solo)
    engine.reset()
    together(engine, digests, after, seed=2)
    assert [talk.logits for talk in after] == [talk.logits for talk in solo]


def count_feeds(engine: Engine) -> Callable[[], int]:
    """Count the prompt tokens that an engine computes, of prompts and of finished replies."""
    feed, counted = engine.feed, [0]

    def counting(slot: int, ids: Any) -> np.ndarray:
        counted[0] += len(ids)
        return feed(slot, ids)

    engine.feed = counting  # type: ignore[method-assign]
    return lambda: counted[0]
