"""Forms of conversations in JSON: speakers, the loss mask, and errors."""

from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chitchat.data import messages as module
from chitchat.data.conversation import Conversation, ReadStats
from chitchat.data.messages import conversation_of
from chitchat.errors import BadInput

HI_YO = [("hi", False), ("yo", True)]


def _read(value: Any, stats: ReadStats | None = None) -> Conversation:
    return conversation_of(value, "c.jsonl, line 7", stats or ReadStats())


def _plain(value: Any) -> list[tuple[str, bool]]:
    return [(turn.text, turn.reply) for turn in _read(value)]


@pytest.mark.parametrize(
    "value",
    [
        ["hi", "yo"],
        {"dialog": ["hi", "yo"], "act": [0, 1]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "id": "x"},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "hi"},
                           {"from": "chatgpt", "value": "yo"}]},
        {"items": [{"from": "user", "value": "hi", "markdown": None}, {"from": "bing", "value": "yo"}]},
        {"conversations": [{"role": "User", "content": "hi"}, {"role": "Assistant ", "content": "yo"}]},
        {"conversation": [{"human": "hi", "assistant": "yo"}]},
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
        {"messages": {"role": ["user", "assistant"], "content": ["hi", "yo"]}},
        {"dialogue": [{"speaker": "Ann", "text": "hi"}, {"speaker": "Bob", "text": "yo"}]},
        {"utterances": [{"speaker": 0, "text": "hi"}, {"speaker": 1, "text": "yo"}]},
        {"name": "film", "messages": [{"message": "hi", "attrs": []}, {"message": "yo"}]},
        {"prompt": "hi", "response": "yo"},
        {"prompt": "hi", "completion": "yo"},
        {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]},
        {"instruction": "hi", "input": "", "output": "yo", "system": "Be kind."},
        {"question": "hi", "answer": "yo", "id": 3},
        {"input": "hi", "output": "yo"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]},
                      {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
                      {"role": "tool", "content": "22 degrees"},
                      {"role": "assistant", "content": "yo"}]},
    ],
)  # fmt: skip
def test_every_common_form_gives_the_turns_of_both_sides(value: Any) -> None:
    """Each of these forms is that of a public data set, and was `not a conversation`."""
    assert _plain(value) == HI_YO


def test_alpacas_input_follows_the_instruction_and_its_history_precedes_it() -> None:
    """The input is part of the question."""
    value = {"instruction": "Sum up.", "input": "Long text.", "output": "Short.", "history": [["hi", "yo"]]}
    assert _plain(value) == [*HI_YO, ("Sum up.\nLong text.", False), ("Short.", True)]


def test_what_is_left_out_of_messages_is_counted() -> None:
    """Pictures and tool calls were left out without a count."""
    stats = ReadStats()
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "data:"}}, "now"]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": content}]
    turns = _read(
        {"messages": [*messages, {"role": "assistant", "content": None}, {"role": "bot", "content": "a"}]}, stats
    )
    assert [turn.text for turn in turns] == ["what is this?\nnow", "a"]
    assert stats == ReadStats(system_messages=1, other_parts=1, empty_turns=1)


@pytest.mark.parametrize("weight", [{"weight": 0}, {"train": False}, {"training": 0.0}, {"loss": "false"}])
def test_a_message_without_weight_is_read_and_does_not_count(weight: dict[str, Any]) -> None:
    """OpenAI's files mark turns that are not in the loss; they were trained on."""
    asked, answered = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    assert [turn.counts for turn in _read({"messages": [asked, answered | weight, asked, answered]})] == [
        True, False, True, True,
    ]  # fmt: skip
    assert [turn.counts for turn in _read([asked, answered | {"weight": None}, asked | {"weight": 1}])] == [True] * 3


def test_a_turn_of_several_messages_counts_where_all_of_them_do() -> None:
    """A message outside the loss would be trained on with the rest of its turn."""
    said = [("user", "a", 1), ("assistant", "b", 1), ("assistant", "c", 0)]
    turns = _read([{"role": role, "content": text, "weight": weight} for role, text, weight in said])
    assert [(turn.text, turn.counts) for turn in turns] == [("a", True), ("b c", False)]


def test_two_names_of_one_role_are_two_speakers() -> None:
    """The messages of a group were joined into one turn."""
    said = [("user", "Ann"), ("assistant", "Bot"), ("assistant", "Bob")]
    assert _plain([{"role": role, "name": name, "content": name} for role, name in said]) == [
        ("Ann", False), ("Bot", True), ("Bob", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (5, "not a conversation"),
        (None, "not a conversation"),
        ("hi", "not a conversation"),
        ({}, "not a conversation"),
        ({"text": "a", "b\nc": 1}, "its fields are text, b c"),
        ({"messages": "hi"}, "not a conversation"),
        ({"messages": {"role": ["user"], "content": []}}, "not a conversation"),
        ([1, 2], "'1' has no text"),
        ([["a", "b"], ["c"]], "has no text"),
        ([{"role": "user", "content": {"a": 1}}], "has no text"),
        ([{"role": "user", "content": [1]}], "has no text"),
        ([{"role": "user"}, "x"], "has no text"),
        ([{"role": "user", "content": "a"}, "x"], "'x' has no sender"),
        ([{"content": "a"}, {"role": "user", "content": "b"}], "role '' is unknown"),
        ([{"role": "pirate", "content": "arr"}], "role 'pirate' is unknown"),
        ([{"role": "user", "content": "a", "weight": 0.5}], "weight '0.5' is neither 0"),
        ([{"role": "user", "content": "a", "weight": float("nan")}], "weight 'nan' is neither 0"),
        ({"prompt": 1, "response": 2}, "has no text"),
        ({"prompt": "a", "response": "b", "history": [1]}, "history is not a list of [question, answer]"),
    ],
)
def test_the_error_for_another_value_names_its_place(value: Any, what: str) -> None:
    """A KeyError or a wrong turn, for each form that is nearly right."""
    with pytest.raises(BadInput) as error:
        _read(value)
    assert str(error.value).startswith("c.jsonl, line 7")
    assert what in str(error.value)
    assert "\n" not in str(error.value)


TEXTS = st.text(st.sampled_from("a b\n\u200b\ufffd\x00\ud800\u3000好"), max_size=6)
WHO = st.sampled_from(["user", "assistant", "Human", "gpt", "system", "tool", "Ann", "", None, 3])
PLAIN = [st.fixed_dictionaries({who: WHO, text: TEXTS}) for who, text in (("role", "content"), ("from", "value"))]
ODD = st.dictionaries(
    st.sampled_from(["role", "from", "content", "value", "text", "weight", "name", "tool_calls"]),
    WHO | TEXTS | st.sampled_from([0, 1, True]),
    max_size=3,
)


@given(st.lists(st.one_of(*PLAIN), max_size=5) | st.lists(st.one_of(*PLAIN, ODD), max_size=5))
def test_the_fast_path_equals_the_general_one(messages: list[Any]) -> None:
    """The fast path gave other speakers or counts, or accepted invalid values."""

    def read() -> tuple[Any, ReadStats]:
        stats = ReadStats()
        try:
            return conversation_of({"messages": messages}, "c.jsonl", stats), stats
        except BadInput as error:
            return str(error), stats

    fast = read()
    with mock.patch.object(module, "_plain_messages", return_value=None):
        assert read() == fast
