"""The commands of the terminal chat, as a function of a line and the conversation."""

from dataclasses import replace

import pytest

from serve.commands import HELP, Exchange, Talk, interpret, shown
from serve.options import SamplingOptions

OPTIONS = SamplingOptions()
FIRST = Exchange("hi", "hello", OPTIONS, 0, "2026-01-01T00:00:00.000Z", 10.0, 0.11, 3)
SECOND = replace(FIRST, user="how\nare you", bot="fine")
TALK = Talk(OPTIONS, 0, (FIRST, SECOND))
EMPTY = Talk(OPTIONS)


def test_what_is_no_command_is_a_turn() -> None:
    """A turn that is taken for a command, or an empty line that is answered."""
    action = interpret("  how / are\nyou ", TALK)
    assert (action.do, action.text, action.talk, action.say) == ("ask", "how / are\nyou", TALK, ())
    assert interpret(" \n ", TALK).do == "nothing"


@pytest.mark.parametrize(
    ("line", "do", "exchanges"),
    [
        ("/retry", "retry", 1),
        ("/undo", "undo", 1),
        ("/reset", "reset", 0),
        ("/quit", "quit", 2),
        ("/help", "nothing", 2),
    ],
)
def test_a_command_says_what_is_to_be_done_and_what_is_left_of_the_conversation(
    line: str, do: str, exchanges: int
) -> None:
    """A retry that keeps the reply that it replaces, an undo that takes back half of an exchange."""
    action = interpret(line, TALK)
    assert (action.do, action.talk) == (do, replace(TALK, exchanges=TALK.exchanges[:exchanges]))
    assert action.text == ("how\nare you" if do == "retry" else "")


@pytest.mark.parametrize(
    "line",
    [
        *("/nonsense", "/retry now", "/show x", "/save", "/set", "/set temperature", "/set temperature 1 2", "/"),
        *("/Retry", "/set colour 5", "/set logprobs 1", "/set history -1", "/set history three", "/set seed x"),
        *("/set top_k 1.5", "/set temperature warm", "/set temperature -1", "/set temperature nan", "/set top_p 2"),
        *("/set top_k " + "9" * 5000, "/set temperature random", f"/set {'x' * 500} 1", "/" + "y" * 500),
    ],
)
def test_what_cannot_be_done_is_one_short_line_and_changes_nothing(line: str) -> None:
    """A mistyped name that ended the chat, or set nothing in silence."""
    action = interpret(line, TALK)
    assert (action.do, action.talk) == ("nothing", TALK)
    (said,) = action.say
    assert "\n" not in said
    assert len(said) < 220
    assert said.startswith("(")


@pytest.mark.parametrize("line", ["/retry", "/undo", "/save a.jsonl"])
def test_nothing_can_be_taken_back_or_saved_before_something_was_said(line: str) -> None:
    """An index error at the first /retry."""
    assert interpret(line, EMPTY).say == ("(nothing was said yet)",)
    assert interpret(line, EMPTY).do == "nothing"


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("/set temperature 0.7", {"temperature": 0.7}),
        ("/set --top-k 0", {"top_k": 0}),
        ("/set top_p=0", {"top_p": 1.0}),
        ("/set Repetition_Penalty 1", {"repetition_penalty": 1.0}),
        ("/set max-new-tokens 5", {"max_new_tokens": 5}),
        ("/set min_new_tokens 0", {"min_new_tokens": 0}),
        ("/set seed 7", {"seed": 7}),
        ("/set seed random", {"seed": None}),
        ("/set min_p .1", {"min_p": 0.1}),
        ("/set no_repeat_ngram 3", {"no_repeat_ngram": 3}),
    ],
)
def test_any_sampling_option_can_be_set(line: str, changed: dict[str, object]) -> None:
    """An option of the command line that the conversation could not change."""
    action = interpret(line, TALK)
    assert action.talk == replace(TALK, options=replace(OPTIONS, **changed))  # type: ignore[arg-type]
    assert len(action.say) == 1


def test_the_number_of_turns_that_are_shown_can_be_set() -> None:
    """History is no sampling option of a single reply, and was forgotten."""
    assert interpret("/set history 3", TALK).talk == replace(TALK, history=3)


def test_a_greedy_retry_says_that_it_is_the_same() -> None:
    """The same reply again and again, with no word of why."""
    greedy = replace(OPTIONS, temperature=0.0)
    again = Talk(greedy, 0, (replace(FIRST, options=greedy),))
    assert "likeliest" in interpret("/retry", again).say[0]
    assert interpret("/retry", replace(again, options=OPTIONS)).say == ()


def test_show_has_every_option_and_every_turn() -> None:
    """Options that were set and could not be seen; a turn of two lines that looks like two."""
    lines = shown(replace(TALK, history=3))
    text = "\n".join(lines)
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed", "min_p"):
        assert any(line.startswith(name) for line in lines)
    assert "history             3" in lines
    assert text.endswith("you: hi\nbot: hello\nyou: how\n     are you\nbot: fine")
    assert all("\n" not in line for line in lines)


def test_help_names_every_command() -> None:
    """A command that nobody finds."""
    for command in ("/retry", "/undo", "/set", "/show", "/save", "/reset", "/help", "/quit"):
        assert command in HELP
    assert list(interpret("/help", TALK).say) == HELP.splitlines()


def test_speed_is_that_after_the_first_token() -> None:
    """Tokens a second that count the prompt's time."""
    assert FIRST.tokens_per_s == pytest.approx(20)
    assert replace(FIRST, tokens=1).tokens_per_s is None
