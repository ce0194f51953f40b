"""The terminal chat: streams, remembers, forgets aloud, and leaves cleanly."""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_codecs import byte_level

from serve.dialogue import Dialogue
from serve.errors import BadRequest
from serve.options import SamplingOptions
from serve.terminal import run_terminal, sample_text
from serve.text import TextCodec


class Echo:
    """A generator that answers with the turn it was given, and records its prompts; can be interrupted."""

    context = 48
    dialogue = Dialogue("dialogpt", (), 4, 4, None, (4,), ())

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.prompts: list[list[int]] = []
        self.seeds: list[int | None] = []
        self.earlier: list[tuple[int, ...]] = []
        self.interrupt_after = interrupt_after

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        self.prompts.append(prompt_ids)
        self.seeds.append(options.seed)
        self.earlier.append(getattr(options, "earlier_ids", ()))
        turns = [len(turn) for turn in self.split(prompt_ids)]
        for place, token in enumerate(prompt_ids[-1 - turns[-1] : -1][: options.max_new_tokens]):
            if place == self.interrupt_after:
                raise KeyboardInterrupt
            yield token

    def split(self, ids: list[int]) -> list[list[int]]:
        """Turns of a prompt, without their ends."""
        turns: list[list[int]] = [[]]
        for token in ids:
            if token == self.dialogue.end_of_turn_id:
                turns.append([])
            else:
                turns[-1].append(token)
        return turns[:-1]


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    """A byte-level tokenizer."""
    return byte_level()


def lines(*given: str | type[BaseException]) -> Callable[[str], str]:
    """Typed lines; an exception class is raised in its place; then the input ends."""
    waiting = iter(given)

    def read(prompt: str) -> str:
        line = next(waiting, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


class Screen(io.StringIO):
    """A terminal that keeps what was written."""

    def isatty(self) -> bool:
        return True


def talk(
    generator: Any,
    codec: TextCodec,
    *given: str | type[BaseException],
    seed: int | None = None,
    out: io.StringIO | None = None,
    **more: Any,
) -> str:
    """Hold a conversation and give what was printed."""
    out = out or io.StringIO()
    options = SamplingOptions(max_new_tokens=20, seed=seed)
    run_terminal(generator, codec, options, read=lines(*given), out=out, **more)
    return out.getvalue()


def test_replies_are_streamed_and_remembered(codec: TextCodec) -> None:
    """Stops a chat without memory, and half characters on the screen."""
    echo = Echo()
    printed = talk(echo, codec, "hi 😀", "", "   ", "你好")
    assert "bot: hi 😀\n" in printed
    assert "bot: 你好\n" in printed
    assert [codec.decode(turn) for turn in echo.split(echo.prompts[1])] == ["hi 😀", "hi 😀", "你好"]
    assert len(echo.prompts) == 2, "an empty line was answered"


def test_the_bots_own_turns_are_penalised_and_only_those_that_it_remembers(codec: TextCodec) -> None:
    """Stops a penalty over the user's words, over forgotten turns, and one that forgets the bot's."""
    echo = Echo(interrupt_after=3)
    talk(echo, codec, "one", "two", "/reset", "a b")
    assert [codec.decode(list(ids)) for ids in echo.earlier] == ["", codec.decode(codec.encode("one")[:3]), ""]
    echo = Echo()
    talk(echo, codec, "abcdefgh", "ijkl", "mnopqrst", "uvwxyz", "0123456789")
    for prompt, earlier in zip(echo.prompts, echo.earlier, strict=True):
        turns = echo.split(prompt)[:-1]
        bots = turns[::-1][::2][::-1]  # the last turn but the user's newest is the bot's, and every second before it
        assert list(earlier) == [token for turn in bots for token in turn]
    assert codec.encode("ijkl") == list(echo.earlier[2])[-4:]
    assert not set(codec.encode("abcd")) & set(echo.earlier[-1]), "no turn was forgotten: proves nothing"


def test_reset_forgets_and_quit_leaves(codec: TextCodec) -> None:
    """Stops commands from being sent to the model."""
    echo = Echo()
    printed = talk(echo, codec, "one", "/reset", "/nonsense", "two", "/quit", "three")
    assert [echo.split(prompt) for prompt in echo.prompts] == [[codec.encode("one")], [codec.encode("two")]]
    assert "no command /nonsense" in printed


def test_dropped_turns_are_announced_and_a_long_turn_is_refused(codec: TextCodec) -> None:
    """Stops silent forgetting, and a chat that dies of one long paste."""
    echo = Echo()
    printed = talk(echo, codec, "abcdefg 1", "x" * 100 + "yz" * 50, "abcdefg 2", "abcdefg 3")
    assert "oldest turns no longer fit" in printed
    assert "takes 47" in printed
    assert printed.count("bot: ") == 3
    assert all(len(prompt) + 1 <= echo.context for prompt in echo.prompts)


def test_ctrl_c_stops_a_reply_and_twice_at_the_prompt_leaves(codec: TextCodec) -> None:
    """Stops a traceback on Ctrl-C, and a conversation that is lost to one that came after the reply's last token."""
    echo = Echo(interrupt_after=3)
    printed = talk(echo, codec, "qwerty", KeyboardInterrupt, "zz", KeyboardInterrupt, KeyboardInterrupt, "never")
    said = codec.decode(codec.encode("qwerty")[:3])
    assert f"bot: {said} (stopped)\n" in printed
    assert [codec.decode(turn) for turn in echo.split(echo.prompts[1])] == ["qwerty", said, "zz"]
    assert len(echo.prompts) == 2


def test_unusable_text_is_explained_and_the_chat_goes_on(codec: TextCodec) -> None:
    """Stops a terminal that is not UTF-8 from ending the chat."""
    printed = talk(Echo(), codec, "bad \udcff", "good")
    assert "not valid Unicode" in printed
    assert "bot: good\n" in printed


def test_a_seed_makes_the_whole_conversation_reproducible(codec: TextCodec) -> None:
    """Stops every reply of a seeded chat from being drawn with the same random numbers."""
    echo = Echo()
    talk(echo, codec, "a", "b", "c", seed=2**63 - 2)
    assert echo.seeds == [2**63 - 2, 2**63 - 1, 0]


def turns(echo: Echo, codec: TextCodec) -> list[list[str]]:
    """The turns of every prompt, as text."""
    return [[codec.decode(turn) for turn in echo.split(prompt)] for prompt in echo.prompts]


def test_retry_answers_the_same_prompt_with_another_seed_and_undo_takes_an_exchange_back(codec: TextCodec) -> None:
    """A retry that sees the reply that it replaces, and an undo that leaves it in the model's sight."""
    echo = Echo()
    printed = talk(echo, codec, "a", "b", "/retry", "/undo", "c", "/undo", "/undo", "/undo", "d", seed=5)
    assert turns(echo, codec) == [["a"], ["a", "a", "b"], ["a", "a", "b"], ["a", "a", "c"], ["d"]]
    assert echo.seeds == [5, 6, 7, 8, 9]
    assert "(taken back: b)" in printed
    assert printed.count("(nothing was said yet)") == 1


def test_options_are_set_from_the_next_reply_on_and_history_is_what_the_model_is_shown(codec: TextCodec) -> None:
    """A /set that is confirmed and has no effect."""
    echo = Echo()
    talk(echo, codec, "abcdef", "/set max_new_tokens 2", "/set history 1", "ghij", "/set history 0", "k", history=3)
    cut = codec.decode(codec.encode("ghij")[:2])
    assert turns(echo, codec) == [["abcdef"], ["ghij"], ["abcdef", "abcdef", "ghij", cut, "k"]]
    echo = Echo()
    printed = talk(echo, codec, "a", "b", "c", "/show", history=3)
    assert turns(echo, codec)[-1] == ["b", "b", "c"]
    assert "history             3\nyou: a\nbot: a\nyou: b" in printed


def test_a_line_that_ends_with_a_backslash_goes_on(codec: TextCodec) -> None:
    """A turn of two lines that was two turns."""
    echo = Echo()
    talk(echo, codec, "a\\", "b\\", "c", "d\\")
    assert turns(echo, codec)[0] == ["a\nb\nc"]
    assert turns(echo, codec)[1][-1] == "d"


def test_every_exchange_is_saved_as_it_goes_and_save_writes_the_conversation(codec: TextCodec, tmp_path: Path) -> None:
    """A transcript that lacks the retry, or the options with which a reply was drawn."""
    path, other = tmp_path / "talk.jsonl", tmp_path / "other.jsonl"
    said = ["a", "/set temperature 0.5", "/retry", "b", f"/save {other}", "/undo", "/reset", "c"]
    printed = talk(Echo(), codec, *said, seed=3, save=path, model="bundle")
    values = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [(value["number"], value["user"], value["bot"]) for value in values] == [
        *((1, "a", "a"), (1, "a", "a"), (2, "b", "b"), (1, "c", "c"))
    ]
    assert [value["options"]["temperature"] for value in values] == [0.8, 0.5, 0.5, 0.5]
    assert [value["options"]["seed"] for value in values] == [3, 4, 5, 6]
    assert {value["model"] for value in values} == {"bundle"}
    assert other.read_bytes() == b"".join(path.read_bytes().splitlines(keepends=True)[1:3])
    assert f"(2 exchanges appended to {other})" in printed


def test_a_file_that_cannot_be_written_is_said_and_the_chat_goes_on(codec: TextCodec, tmp_path: Path) -> None:
    """A conversation that ends because a folder was mistyped."""
    printed = talk(Echo(), codec, "a", f"/save {tmp_path}/gone/talk.jsonl", f"/save {tmp_path}", "b")
    assert printed.count("(not saved: ") == 2
    assert "bot: b\n" in printed
    with pytest.raises(BadRequest, match="is a folder"):
        talk(Echo(), codec, "a", save=tmp_path)


def test_how_fast_a_reply_was_is_told_on_a_terminal_only_and_not_when_quiet(
    codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures in the output of a script."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = talk(Echo(), codec, "hello there", out=Screen())
    dim = re.search(r"\x1b\[2m(\d+) tokens, [\d.]+ tokens/s, first after \d+ ms\x1b\[0m\n", shown)
    assert dim
    assert int(dim[1]) == len(codec.encode("hello there"))
    assert "tokens/s" not in talk(Echo(), codec, "hello there", out=Screen(), quiet=True)
    assert "tokens/s" not in talk(Echo(), codec, "hello there")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in talk(Echo(), codec, "hello there", out=Screen())


class Failing(Echo):
    """A generator that cannot answer, after a first reply."""

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        if self.prompts:
            self.prompts.append(prompt_ids)
            raise BadRequest("they leave no token to choose")
        yield from super().stream(prompt_ids, options)


def test_a_reply_that_fails_is_one_line_and_the_conversation_is_as_before(codec: TextCodec, tmp_path: Path) -> None:
    """Options that leave no token to choose ended the chat, and everything that was said was lost."""
    failing, path = Failing(), tmp_path / "talk.jsonl"
    printed = talk(failing, codec, "a", "b", "/retry", "/show", "c", save=path)
    assert printed.count("(they leave no token to choose)") == 3
    assert turns(failing, codec) == [["a"], ["a", "a", "b"], ["a"], ["a", "a", "c"]]
    assert "you: a\nbot: a\n" in printed
    assert path.read_bytes().count(b"\n") == 1


def test_a_reply_that_is_stopped_before_its_first_token_takes_its_turn_back(codec: TextCodec) -> None:
    """An empty turn of the bot in the model's sight, after Ctrl-C while a long prompt was computed."""
    echo = Echo(interrupt_after=0)
    printed = talk(echo, codec, "a", "b", "/show")
    assert turns(echo, codec) == [["a"], ["b"]]
    assert printed.count("taken back") == 2
    assert "you: a" not in printed


class Interrupted(io.StringIO):
    """An output during whose writing of a text Ctrl-C is pressed, once."""

    pressed = False

    def write(self, text: str) -> int:
        if text == "\n" and "bot: b" in self.getvalue() and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return super().write(text)


def test_ctrl_c_just_after_a_reply_keeps_the_conversation_whole(codec: TextCodec) -> None:
    """A turn without its reply in the model's sight, because the key came between the last token and its newline."""
    echo, out = Echo(), Interrupted()
    talk(echo, codec, "a", "b", "c", "/show", out=out)
    assert out.pressed
    assert turns(echo, codec) == [["a"], ["a", "a", "b"], ["a", "a", "c"]]
    assert out.getvalue().endswith("you: a\nbot: a\nyou: c\nbot: c\n\n")


class Triples:
    """A generator whose every turn is three times the same letter."""

    context = 40
    dialogue = Echo.dialogue

    def __init__(self, letter: int) -> None:
        self.letter = letter
        self.prompts: list[list[int]] = []
        self.seeds: list[int | None] = []
        self.earlier: list[int] = []

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        self.prompts.append(list(prompt_ids))
        self.earlier.append(len(getattr(options, "earlier_ids", ())))
        self.seeds.append(options.seed)
        yield from [self.letter] * min(3, options.max_new_tokens)


def test_free_text_is_a_conversation_of_the_asked_length(codec: TextCodec) -> None:
    """Sampling without a prompt stopped at the first end of turn, after a word or two."""
    (letter,) = codec.encode("a")
    generator = Triples(letter)
    text = sample_text(generator, codec, SamplingOptions(max_new_tokens=10, seed=5), None)
    assert text == "aaa\naaa\naa"
    assert generator.prompts[0] == [4], "nothing was said before"
    assert generator.prompts[2] == [4, *[letter] * 3, 4, *[letter] * 3, 4]
    assert len(set(generator.seeds)) == 3, "with one seed every turn would be the same"
    assert generator.earlier == [0, 0, 3], "each speaker is penalised for his own turns"
    long = sample_text(generator, codec, SamplingOptions(max_new_tokens=500), None)
    assert len(codec.encode(long)) <= generator.context, "it ends where the context ends"


def test_text_after_a_prompt_is_one_reply(codec: TextCodec) -> None:
    """A reply must not go on and speak for the user."""
    generator = Triples(codec.encode("b")[0])
    assert sample_text(generator, codec, SamplingOptions(max_new_tokens=10), "hello") == "bbb"
    assert generator.prompts == [[*codec.encode("hello"), 4]]
