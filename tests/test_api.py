"""Reading chat requests: sampling fields, who said what, and log-probabilities in OpenAI's shape."""

import json
from typing import Any

import pytest
from support.tiny_codecs import byte_level, word_piece

from serve.api import ChatRequest, logprobs_of, parse_chat
from serve.errors import BadRequest
from serve.options import SamplingOptions
from serve.scored import ScoredToken

HELLO = [{"role": "user", "content": "hello"}]


def parse(defaults: SamplingOptions | None = None, **fields: Any) -> ChatRequest:
    """Read a request with these fields."""
    body = json.dumps({"messages": HELLO, **fields}).encode()
    return parse_chat(body, defaults or SamplingOptions(), max_messages=16)


def test_every_sampling_field_reaches_the_options() -> None:
    """Stops a field that is taken and does nothing."""
    asked = parse(
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.5,
        no_repeat_ngram_size=3,
        max_tokens=9,
        min_tokens=4,
        seed=7,
        logprobs=True,
        top_logprobs=2,
    )
    assert asked.options == SamplingOptions(0.5, 3, 0.5, 1.5, 9, 4, 7, 0.1, 3, 2)


def test_log_probabilities_come_only_when_asked_for() -> None:
    """Stops the cost, and a larger answer, for clients that did not ask, whatever the bundle's defaults say."""
    chatty = SamplingOptions(logprobs=3)
    assert parse(chatty).options.logprobs is None
    assert parse(chatty, logprobs=False).options.logprobs is None
    assert parse(chatty, logprobs=True).options.logprobs == 0
    assert parse(logprobs=True).options.logprobs == 0
    assert parse(logprobs=True, top_logprobs=5).options.logprobs == 5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"top_logprobs": 1}, "top_logprobs: needs logprobs"),
        ({"top_logprobs": 1, "logprobs": False}, "top_logprobs: needs logprobs"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs 6: give a whole number from 0 to 5"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs -1: give"),
        ({"logprobs": True, "top_logprobs": "2"}, r"top_logprobs \(str\): give"),
        ({"logprobs": 1}, "logprobs: not true or false"),
        ({"min_p": 1.5}, "min_p 1.5: give a number from 0"),
        ({"min_p": "a"}, r"min_p \(str\): give"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size -1: give"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size 1.5: give"),
        ({"min_tokens": -1}, "min_tokens -1: give"),
    ],
)
def test_a_bad_sampling_field_is_named_as_the_client_knows_it(fields: dict[str, Any], said: str) -> None:
    """Stops an error about an option that the client never sent."""
    with pytest.raises(BadRequest, match=said):
        parse(**fields)


def test_roles_tell_which_turns_the_bot_said() -> None:
    """Stops the user's words from being penalised in the bot's mouth, also where roles do not alternate."""
    roles = ["user", "user", "assistant", "assistant", "user"]
    asked = parse(messages=[{"role": role, "content": str(place)} for place, role in enumerate(roles)])
    assert asked.from_bot == (False, False, True, True, False)
    assert asked.texts == ("0", "1", "2", "3", "4")


def scored(token: int, logprob: float, *likeliest: tuple[int, float]) -> ScoredToken:
    """A token as the sampler gives it."""
    value = ScoredToken(token)
    value.logprob, value.likeliest = logprob, likeliest
    return value


def test_log_probabilities_have_the_shape_of_openai_and_are_json() -> None:
    """Stops an infinity in JSON, and a client that finds its fields missing."""
    codec = byte_level()
    first, second = codec.encode("a")[0], codec.encode("b")[0]
    listed = logprobs_of([scored(first, float("-inf"), (second, -0.5), (first, -1.0))], codec.token_bytes)
    assert listed == {
        "content": [
            {
                "token": "a",
                "logprob": -9999.0,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "b", "logprob": -0.5, "bytes": [98]},
                    {"token": "a", "logprob": -1.0, "bytes": [97]},
                ],
            }
        ],
        "refusal": None,
    }
    json.dumps(listed, allow_nan=False)


def test_the_bytes_of_byte_level_tokens_join_to_the_text_and_half_a_character_shows_as_bytes() -> None:
    """Stops U+FFFD in the list of tokens, from which no client can make the text again."""
    codec = byte_level()
    text = "naïve 你好 𠀀 👩‍👧 \x00\n"
    tokens = [scored(token, -1.0) for token in codec.encode(text)]
    content = logprobs_of(tokens, codec.token_bytes)["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == text
    assert "\ufffd" not in "".join(entry["token"] for entry in content)
    assert any(entry["token"].startswith("\\x") for entry in content), "no token was half a character: proves nothing"


def test_wordpiece_tokens_are_listed_without_the_mark_of_a_continued_word() -> None:
    """Stops ## in what a client joins, and an error for an id that only the model has."""
    codec = word_piece()
    spelled = [codec.token_bytes(token).decode() for token in codec.encode("thankstoday 你好")]
    assert "".join(spelled) == "thankstoday你好"
    assert len(spelled) > 4
    assert codec.token_bytes(10**6) == b""
