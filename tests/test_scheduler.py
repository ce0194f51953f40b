"""The scheduler: who runs when, on a real engine over a tiny model. Time is counted in runs of the engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import exported, random_gpt2

from serve.engine import Engine
from serve.errors import BadRequest, ContextExceeded, ServeError
from serve.options import SamplingOptions
from serve.scheduler import CHUNK, GenerationRequest, Scheduler

BROKEN = 100  # the token whose embedding is no number


def options(new: int, **changes: Any) -> SamplingOptions:
    """Greedy, of exactly `new` tokens."""
    return SamplingOptions(**{"temperature": 0.0, "max_new_tokens": new, "min_new_tokens": new, **changes})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory):
    """A model of context 128 that gives NaN to who says `BROKEN`."""
    model = random_gpt2(n_positions=128, tie_word_embeddings=False)
    model.transformer.wte.weight.data[BROKEN] = np.nan
    return exported(model, tmp_path_factory.mktemp("bundle"))


class Counted(Engine):
    """An engine that writes down its runs: ("feed", slot, tokens) and ("decode", slots)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.runs: list[tuple[Any, ...]] = []

    def feed(self, slot: int, ids: Any) -> Any:
        self.runs.append(("feed", slot, len(ids)))
        return super().feed(slot, ids)

    def decode(self, slots: Any, tokens: Any) -> Any:
        self.runs.append(("decode", tuple(slots)))
        return super().decode(slots, tokens)


@pytest.fixture
def engine(bundle) -> Counted:
    return Counted(bundle, threads=1, slots=3)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random ids without special or broken ones."""
    return np.random.default_rng(seed).integers(3, BROKEN, size=length).tolist()


def finish(scheduler: Scheduler) -> dict[GenerationRequest, Exception | None]:
    """Step until nothing is left to do; give how each conversation ended."""
    ended: dict[GenerationRequest, Exception | None] = {}
    while scheduler.busy:
        for event in scheduler.step():
            assert event.request not in ended, "an event after the end"
            if event.token is None:
                ended[event.request] = event.error
    return ended


def reply(engine: Engine, ids: list[int], new: int, **changes: Any) -> list[int]:
    """What a conversation alone is given, on an engine that remembers nothing."""
    engine.reset()
    scheduler = Scheduler(engine)
    conversation = scheduler.start(ids, options(new, **changes))
    finish(scheduler)
    return conversation.reply


def test_a_long_prompt_costs_the_others_a_chunk_a_token(engine: Counted) -> None:
    """A prompt computed in one piece freezes every reply that is being made (ik_llama.cpp issue 1210)."""
    scheduler = Scheduler(engine)
    speaker = scheduler.start(prompt(4), options(60))
    scheduler.step()
    engine.runs.clear()
    late = scheduler.start(prompt(100), options(2))
    steps = 0
    while not late.reply:
        said = len(speaker.reply)
        scheduler.step()
        assert len(speaker.reply) == said + 1
        steps += 1
    assert steps == -(-100 // CHUNK)
    assert max(run[2] for run in engine.runs if run[0] == "feed") == CHUNK


def test_a_short_prompt_does_not_wait_behind_a_long_one_nor_the_long_one_forever(engine: Counted) -> None:
    """First come, first served makes a question wait for a document; shortest first, the document for all questions."""
    scheduler = Scheduler(engine)
    speaker = scheduler.start(prompt(4), options(100))
    scheduler.step()
    long, steps = scheduler.start(prompt(100, 1), options(1)), 0
    while not long.reply:
        short = scheduler.start(prompt(10, steps + 2), options(1))
        for _ in range(2):
            scheduler.step()
        assert short.reply or long.reply
        steps += 2
    assert steps <= 2 * -(-100 // CHUNK)
    assert len(speaker.reply) >= steps


def test_all_who_speak_are_decoded_in_one_run(engine: Counted) -> None:
    """A run for each would cost as much as one conversation after the other."""
    scheduler = Scheduler(engine)
    talks = [scheduler.start(prompt(5, seed), options(9)) for seed in range(3)]
    while not all(talk.reply for talk in talks):
        scheduler.step()
    engine.runs.clear()
    scheduler.step()
    assert [run[0] for run in engine.runs] == ["decode"]
    assert sorted(engine.runs[0][1]) == [0, 1, 2]


def test_a_slot_serves_a_short_conversation_after_a_long_one(engine: Counted) -> None:
    """What is left behind the new end of a slot leaks one user's words into another's reply."""
    want = reply(engine, prompt(5), 20)
    engine.reset()
    scheduler = Scheduler(engine)
    for seed in range(3):
        scheduler.start(prompt(100, seed + 10), options(20))
    finish(scheduler)
    again = scheduler.start(prompt(5), options(20))
    finish(scheduler)
    assert again.reply == want


def test_the_next_turn_computes_only_what_is_new(engine: Counted) -> None:
    """A conversation of many turns that is computed from its beginning each time grows slower and slower."""
    scheduler = Scheduler(engine)
    first = scheduler.start(prompt(40), options(10))
    finish(scheduler)
    said = [*first.prompt_ids, *first.reply]
    others = [scheduler.start(prompt(30, seed), options(3)) for seed in (1, 2)]
    finish(scheduler)
    assert all(len(other.reply) == 3 for other in others)
    engine.runs.clear()
    second = scheduler.start([*said, 2, *prompt(7, 3)], options(5))
    while not second.reply:
        scheduler.step()
    assert sum(run[2] for run in engine.runs if run[0] == "feed") == 1 + 7
    finish(scheduler)
    assert second.reply == reply(engine, second.prompt_ids, 5)


def test_a_new_conversation_leaves_those_that_may_go_on(engine: Counted) -> None:
    """All conversations begin with the same token: that match must not overwrite a long one while a slot is empty."""
    scheduler = Scheduler(engine)
    first = scheduler.start([1, *prompt(40)], options(2))
    finish(scheduler)
    scheduler.start([1, *prompt(5, 9)], options(2))
    finish(scheduler)
    engine.runs.clear()
    scheduler.start([*first.prompt_ids, *first.reply, *prompt(3, 4)], options(1))
    scheduler.step()
    assert engine.runs[0] == ("feed", 0, 3)


def test_the_slot_that_was_used_longest_ago_is_overwritten_first(engine: Counted) -> None:
    """The conversation that has just paused is the one that goes on."""
    scheduler = Scheduler(engine)
    talks = [scheduler.start(prompt(20, seed), options(2)) for seed in range(3)]
    finish(scheduler)
    scheduler.start([*talks[0].prompt_ids, *talks[0].reply, 7], options(1))
    finish(scheduler)
    engine.runs.clear()
    scheduler.start(prompt(20, 3), options(1))
    assert [engine.match(slot, talks[0].prompt_ids) for slot in range(3)] == [19, 0, 0]
    assert [engine.match(slot, talks[1].prompt_ids) for slot in range(3)] == [0, 0, 0]
    assert [engine.match(slot, talks[2].prompt_ids) for slot in range(3)] == [0, 0, 19]


def test_a_conversation_that_is_given_up_leaves_at_once(engine: Counted) -> None:
    """A model that goes on talking to nobody holds the slot of one who waits (llama.cpp issue 24496)."""
    scheduler = Scheduler(engine)
    talks = [scheduler.start(prompt(5, seed), options(50)) for seed in range(3)]
    with pytest.raises(BadRequest, match="all 3 slots are taken"):
        scheduler.start(prompt(5), options(1))
    for _ in range(4):
        scheduler.step()
    said = len(talks[1].reply)
    scheduler.cancel(talks[1])
    scheduler.cancel(talks[1])
    assert scheduler.free == 1
    events = scheduler.step()
    assert {event.request for event in events} == {talks[0], talks[2]}
    assert len(talks[1].reply) == said
    late = scheduler.start(prompt(80, 5), options(3))
    scheduler.step()
    scheduler.cancel(late)  # while its prompt is being computed
    ended = finish(scheduler)
    assert set(ended) == {talks[0], talks[2]}
    for seed in (0, 2):
        assert talks[seed].reply == reply(engine, prompt(5, seed), 50)


def test_logits_that_are_no_numbers_end_that_conversation_alone(engine: Counted) -> None:
    """One poisoned row must not end the engine, nor spread to others, nor stay in the slot."""
    want = [reply(engine, prompt(6, seed), 12) for seed in range(3)]
    engine.reset()
    scheduler = Scheduler(engine)
    talks = [scheduler.start(prompt(6, seed), options(12)) for seed in range(2)]
    poisoned = scheduler.start([*prompt(6, 9), BROKEN, *prompt(3)], options(12))
    ended = finish(scheduler)
    assert isinstance(ended[poisoned], ServeError)
    assert "not numbers" in str(ended[poisoned])
    assert poisoned.reply == []
    assert [talk.reply for talk in talks] == want[:2]
    assert [ended[talk] for talk in talks] == [None, None]
    for _ in range(3):  # every slot
        talk = scheduler.start(prompt(6, 2), options(12))
        finish(scheduler)
        assert talk.reply == want[2]


@pytest.mark.parametrize("exact", [True, False])
def test_a_slot_that_failed_keeps_nothing_of_what_it_held(bundle, exact: bool) -> None:
    """Keys that are NaN would answer the same prompt with NaN for ever, since a slot is chosen for what it holds."""
    engine = Counted(bundle, threads=1, slots=3, exact=exact)
    want = reply(engine, prompt(40), 5)
    engine.reset()
    scheduler = Scheduler(engine)
    talk = scheduler.start(prompt(40), options(5))
    scheduler.step()
    slot = engine.runs[-1][1][0] if engine.runs[-1][0] == "decode" else engine.runs[-1][1]
    for array in engine._cache._owners.values():
        array[slot] = np.nan
    ended = finish(scheduler)
    assert "not numbers" in str(ended[talk])
    assert engine.held(slot) == 0
    again = scheduler.start(prompt(40), options(5))
    assert finish(scheduler) == {again: None}
    assert again.reply == want


def test_a_run_that_fails_ends_those_who_were_in_it_and_the_next_ones_are_served(
    engine: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is dead after one fault turns away everybody (vllm issue 27194)."""
    want = reply(engine, prompt(5), 6)
    engine.reset()
    scheduler = Scheduler(engine)
    talk = scheduler.start(prompt(5), options(6))
    scheduler.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "decode", lambda *_: (_ for _ in ()).throw(ServeError("onnxruntime failed: test")))
        events = scheduler.step()
    assert [(event.request, str(event.error)) for event in events] == [(talk, "onnxruntime failed: test")]
    again = scheduler.start(prompt(5), options(6))
    finish(scheduler)
    assert again.reply == want


def test_replies_end_at_their_limit_or_where_the_context_is_full(engine: Counted) -> None:
    """The last row of a slot is free for runs over its neighbours, and the last token is never computed."""
    scheduler = Scheduler(engine)
    talks = [scheduler.start(prompt(length, length), options(1000)) for length in (126, 127, 100)]
    ended = finish(scheduler)
    assert [len(talk.reply) for talk in talks] == [2, 1, 28]
    assert set(ended) == set(talks)
    for ids, error in (([], BadRequest), (prompt(128), ContextExceeded), ([5, -1], BadRequest), ([5, 101], BadRequest)):
        with pytest.raises(error):
            scheduler.start(ids, options(1))
    assert scheduler.free == 3


def test_a_full_slot_survives_runs_over_its_neighbours(engine: Counted) -> None:
    """A row that rides along writes behind its last token; a full slot has such a place too."""
    scheduler = Scheduler(engine)
    full = scheduler.start(prompt(120, 1), options(1000))
    finish(scheduler)
    others = [scheduler.start(prompt(4, seed), options(30)) for seed in (2, 3)]
    finish(scheduler)
    for seed, other in zip((2, 3), others, strict=True):
        assert other.reply == reply(Engine(engine.bundle, 1, slots=3), prompt(4, seed), 30)
    engine.runs.clear()
    again = scheduler.start(full.prompt_ids, options(1000))
    finish(scheduler)
    assert again.reply == full.reply
    assert engine.runs[0][2] == 1, "its prompt was there"


def test_finished_replies_are_fed_only_when_nobody_waits(engine: Counted) -> None:
    """Work for later must not slow what is asked now, and must come to an end."""
    scheduler = Scheduler(engine)
    scheduler.start(prompt(5, 1), options(2))
    long = scheduler.start(prompt(5, 2), options(30))
    while len(long.reply) < 29:
        scheduler.step()
    assert sum(run[0] == "feed" for run in engine.runs) == 2
    assert [event.token is None for event in scheduler.step()] == [False, True]
    assert scheduler.busy
    assert not finish(scheduler)
    before = len(engine.runs)
    assert scheduler.step() == []
    assert len(engine.runs) == before


def test_a_slot_that_is_given_away_is_not_fed_its_last_conversation_any_more(engine: Counted) -> None:
    """Work for a conversation that was overwritten helps nobody, and overwrites the one that came."""
    scheduler = Scheduler(engine)
    others = [scheduler.start(prompt(30, seed), options(50)) for seed in (1, 2)]
    first = scheduler.start(prompt(5), options(2))
    while len(first.reply) < 2 or not all(other.reply for other in others):
        scheduler.step()
    second = scheduler.start(prompt(100, 3), options(2))  # takes the only free slot
    scheduler.step()
    for request in (second, *others):
        scheduler.cancel(request)
    engine.runs.clear()
    finish(scheduler)
    assert {slot for name, slot, *_ in engine.runs if name == "feed"} == {0, 1}


def test_an_engine_that_need_not_be_exact_uses_all_that_is_there(bundle) -> None:
    """It trades bits for speed: a lone conversation runs the one-row kernel, and replies are not computed twice."""
    engine = Counted(bundle, threads=1, slots=3, exact=False)
    scheduler = Scheduler(engine)
    first = scheduler.start(prompt(20), options(5))
    finish(scheduler)
    assert [run[0] for run in engine.runs].count("feed") == 1
    engine.runs.clear()
    scheduler.start([*first.prompt_ids, *first.reply, 2, 9], options(1))
    finish(scheduler)
    assert engine.runs[0][2] == 3  # the last token of a reply was never computed


@pytest.mark.parametrize("chunk", [1, 0, -5])
def test_a_chunk_of_one_token_is_refused(engine: Counted, chunk: int) -> None:
    """It would make a prompt slower than a decode."""
    with pytest.raises(BadRequest, match=f"chunk {chunk}"):
        Scheduler(engine, chunk)


def test_slots_and_slot_numbers_are_checked(bundle, tmp_path: Path) -> None:
    """A slot of another number is another conversation's memory, or none at all."""
    for slots in (0, 65):
        with pytest.raises(BadRequest, match=f"slots {slots}"):
            Engine(bundle, 1, slots=slots)
    engine = Engine(bundle, 1, slots=2)
    for call in (lambda: engine.feed(2, [5]), lambda: engine.feed(-1, [5]), lambda: engine.decode([0, 2], [5, 5])):
        with pytest.raises(BadRequest, match="the engine has 0 to 1"):
            call()
    engine.feed(0, [5, 6])
    for slots, tokens in (([0, 0], [5, 6]), ([0, 1], [5]), ([0], [5, 6])):
        with pytest.raises(BadRequest, match="one token for each of different slots"):
            engine.decode(slots, tokens)
    with pytest.raises(BadRequest, match="the vocabulary has 0 to 100"):
        engine.decode([0], [-1])
    with pytest.raises(ContextExceeded):
        engine.feed(0, [5] * 126)
    assert engine.begin(0, [5, 6, 7]) == 2, "a refused call has changed nothing"
