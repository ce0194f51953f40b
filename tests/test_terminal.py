"""The terminal chat: streams, remembers, forgets aloud, and leaves cleanly."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.tiny_codecs import byte_level

from serve.dialogue import Dialogue
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


def talk(generator: Echo, codec: TextCodec, *given: str | type[BaseException], seed: int | None = None) -> str:
    """Hold a conversation and give what was printed."""
    out = io.StringIO()
    run_terminal(generator, codec, SamplingOptions(max_new_tokens=20, seed=seed), read=lines(*given), out=out)
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


def test_ctrl_c_stops_a_reply_and_at_the_prompt_leaves(codec: TextCodec) -> None:
    """Stops a traceback on Ctrl-C, and a conversation that forgets what was already said."""
    echo = Echo(interrupt_after=3)
    printed = talk(echo, codec, "qwerty", "zz", KeyboardInterrupt, "never")
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
