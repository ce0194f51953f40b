"""A conversation never exceeds the context; what is dropped is whole old turns, and it is said."""

import random

import pytest

from serve.dialogue import Dialogue
from serve.errors import ContextExceeded
from serve.history import ChatHistory, fit

CHITCHAT = Dialogue("chitchat", (101,), 102, 0, 1, (101,), (0, 1, 101))
DIALOGPT = Dialogue("dialogpt", (), 50, 50, None, (50,), ())


@pytest.mark.parametrize("dialogue", [CHITCHAT, DIALOGPT])
def test_every_prompt_leaves_room_for_its_reply_and_drops_no_more_than_it_must(dialogue: Dialogue) -> None:
    """Stops a prompt that outgrows the context, half turns, and a conversation forgotten too early."""
    generator = random.Random(0)
    for _ in range(3000):
        context, limit = generator.randrange(8, 60), generator.choice([1, 5, 20, 60, 10**9])
        turns = [[generator.randrange(5, 10)] * generator.randrange(1, 12) for _ in range(generator.randrange(1, 12))]
        overhead = len(dialogue.start_ids) + 1
        if len(turns[-1]) + overhead >= context:
            with pytest.raises(ContextExceeded):
                fit(dialogue, turns, context, limit)
            continue
        prompt = fit(dialogue, turns, context, limit)
        assert prompt.ids == dialogue.encode(turns[prompt.dropped :])
        assert 1 <= prompt.max_new_tokens <= limit
        assert len(prompt.ids) + prompt.max_new_tokens <= context
        room = context - min(limit, context // 2)
        if prompt.dropped:
            assert len(dialogue.encode(turns[prompt.dropped - 1 :])) > room
        if len(prompt.ids) <= room:
            assert prompt.max_new_tokens >= min(limit, context // 2)


def test_a_long_conversation_goes_on_and_keeps_its_newest_turns() -> None:
    """Stops a chat that dies, or grows for ever, once the context is full."""
    conversation = ChatHistory(CHITCHAT, context=40)
    dropped = 0
    for number in range(300, 400):
        prompt = conversation.ask([number] * 5, 10)
        dropped += prompt.dropped
        assert prompt.ids[0] == 101
        assert prompt.ids[-6:] == [number] * 5 + [102]
        assert prompt.max_new_tokens == 10
        conversation.answer([200 + number] * 4)
    assert dropped + len(conversation.turns) == 200
    conversation.reset()
    assert conversation.ask([1], 10).ids == [101, 1, 102]


def test_the_ids_that_the_bot_said_are_told_from_the_users() -> None:
    """Stops a repetition penalty on the user's words, or on turns that are no longer in the prompt."""
    conversation = ChatHistory(CHITCHAT, context=30)
    said = []
    for number in range(200, 220):
        prompt = conversation.ask([number] * 2, 4)
        expected = [said[turn] for turn in range(len(said)) if said[turn][0] + 100 in prompt.ids]
        assert prompt.bot_ids == tuple(i + 100 for turn in expected for i in turn)
        assert len(expected) == min(len(said), 3)
        said.append([number] * 3)
        conversation.answer([number + 100] * 3)
    conversation.reset()
    assert conversation.ask([1], 4).bot_ids == ()


def test_only_the_newest_turns_are_shown_where_a_number_is_set() -> None:
    """`--history 3` that showed three turns and the new one, or that forgot what a larger number would show."""
    conversation = ChatHistory(CHITCHAT, context=1000, shown=3)
    for number in range(5):
        prompt = conversation.ask([200 + number], 5)
        shown = [200 + number - 1, 300 + number - 1, 200 + number] if number else [200]
        assert [i for i in prompt.ids if i >= 200] == shown
        assert prompt.bot_ids == ((299 + number,) if number else ())
        assert prompt.dropped == 0
        conversation.answer([300 + number])
    conversation.shown = 0
    assert len([i for i in conversation.ask([9], 5).ids if i >= 200]) == 10


@pytest.mark.parametrize("shown", [0, 3, 9])
def test_undo_gives_the_conversation_as_it_was_before_with_what_was_dropped_since(shown: int) -> None:
    """Another reply to the last turn must be to the same prompt, also where the context was full."""
    conversation = ChatHistory(CHITCHAT, context=30, shown=shown)
    assert not conversation.undo()
    states, prompts = [], []
    for number in range(12):
        states.append([list(turn) for turn in conversation.turns])
        prompts.append(conversation.ask([number + 200] * 2, 4))
        conversation.answer([number + 300] * 3)
    assert shown == 3 or any(prompt.dropped for prompt in prompts), "nothing was dropped: proves nothing"
    while states:
        assert conversation.undo()
        assert conversation.turns == states.pop()
        prompt = prompts.pop()
        assert conversation.ask([len(prompts) + 200] * 2, 4) == prompt
        assert conversation.undo()
    assert not conversation.undo()


def test_a_turn_that_is_too_long_is_refused_with_both_numbers_and_changes_nothing() -> None:
    """Stops silent truncation, and a conversation that is stuck after one long paste."""
    conversation = ChatHistory(CHITCHAT, context=20)
    conversation.ask([1, 2], 5)
    conversation.answer([3])
    with pytest.raises(ContextExceeded, match=r"102 tokens .* takes 19") as caught:
        conversation.ask([7] * 100, 5)
    assert (caught.value.prompt_tokens, caught.value.limit) == (102, 19)
    assert conversation.turns == [[1, 2], [3]]
    assert conversation.ask([7] * 17, 5).max_new_tokens == 1


def test_the_dialogue_of_a_bundle_is_read_and_its_faults_are_named() -> None:
    """Stops a damaged bundle.json from becoming wrong ids or a traceback."""
    good = {
        "family": "chitchat",
        "start_ids": [101],
        "end_of_turn_id": 102,
        "pad_id": 0,
        "unk_id": None,
        "blank_ids": [101],
        "banned_ids": [0, 101],
    }
    assert Dialogue.from_json(good).encode([[5], []]) == [101, 5, 102, 102]
    assert Dialogue.from_json(good).encode([[101, 5, 0, 102], [102]]) == [101, 5, 102, 102]
    bad = [("start_ids", 5), ("end_of_turn_id", -1), ("pad_id", True), ("banned_ids", ["a"]), ("family", None)]
    for field, value in bad:
        with pytest.raises(ValueError, match=f"dialogue.{field}"):
            Dialogue.from_json({**good, field: value})
    with pytest.raises(ValueError, match="not an object"):
        Dialogue.from_json(None)
