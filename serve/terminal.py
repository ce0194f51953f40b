"""A conversation in the terminal with any generator: the engine of a bundle, or the full-precision one.

It reads lines, streams replies and reports dropped turns. Input and output are arguments, for tests. It neither loads
models nor parses options.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TextIO

from serve.errors import BadRequest
from serve.history import ChatHistory, DialogueFormat
from serve.options import SamplingOptions
from serve.protocols import Codec, Generator

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C stops a reply."


def run_terminal(
    generator: Generator,
    codec: Codec,
    options: SamplingOptions,
    *,
    read: Callable[[str], str] | None = None,
    out: TextIO | None = None,
) -> int:
    """Talk until the user leaves (/quit, end of input, or Ctrl-C at the prompt); return the number of replies.

    `read(prompt)` returns a line without its newline and raises EOFError at the end; default `input`, with line editing
    where the platform has it. `out` defaults to stdout. With a seed the whole conversation is reproducible: the n-th
    reply is drawn with seed + n.
    """
    if read is None:
        with suppress(ImportError):
            import readline  # noqa: F401 - editing of the line, by its side effect on `input`
        read = input
    out = out or sys.stdout
    dialogue: DialogueFormat = generator.dialogue
    conversation = ChatHistory(dialogue, generator.context)
    _say(out, HELP)
    replies = 0
    while (line := _read_line(read, out)) is not None:
        match line.strip():
            case "":
                continue
            case "/quit":
                break
            case "/reset":
                conversation.reset()
                _say(out, "(forgotten)")
            case text if text.startswith("/"):
                _say(out, f"(no command {text.split()[0]}. {HELP})")
            case text:
                seeded = options if options.seed is None else replace(options, seed=(options.seed + replies) % 2**63)
                _reply(generator, codec, conversation, text, seeded, out)
                replies += 1
    return replies


def sample_text(generator: Generator, codec: Codec, options: SamplingOptions, prompt: str | None) -> str:
    """Sample a text of at most `options.max_new_tokens` tokens: the reply to `prompt`, or an unconditional
    conversation.

    A conversation is sampled turn by turn, a turn a line, until the tokens or the context are used up; ends of turns
    count as tokens. Every turn has its own seed, from `options.seed`, and the repetition penalty is over the earlier
    turns of the same speaker.
    """
    dialogue = generator.dialogue
    if prompt is not None:
        ids = dialogue.encode([codec.encode(prompt)])
        return codec.decode(list(generator.stream(ids, options)))
    ids, left = list(dialogue.unconditional_prompt_ids), options.max_new_tokens
    turns: list[list[int]] = []
    while left > 0 and len(ids) < generator.context:
        seed = None if options.seed is None else (options.seed + 1_000_003 * len(turns)) % 2**63
        own = [token for turn in turns[len(turns) % 2 :: 2] for token in turn]
        turn = list(generator.stream(ids, replace(options, seed=seed).for_reply(left, own)))
        turns.append(turn)
        ids += [*turn, dialogue.end_of_turn_id]
        left -= len(turn) + 1
    return "\n".join(codec.decode(turn) for turn in turns)


def _read_line(read: Callable[[str], str], out: TextIO) -> str | None:
    try:
        return read("you: ")
    except (EOFError, KeyboardInterrupt):
        _say(out, "")  # the shell's prompt begins a new line
        return None


def _reply(
    generator: Generator,
    codec: Codec,
    conversation: ChatHistory,
    text: str,
    options: SamplingOptions,
    out: TextIO,
) -> None:
    """Answer one turn. For an invalid turn the reason is printed, and it is left out of the conversation."""
    try:
        turn = codec.encode(text)
        if not turn:
            raise BadRequest("the model's vocabulary has nothing for this text; write something else")
        prompt = conversation.ask(turn, options.max_new_tokens)
    except BadRequest as error:
        _say(out, f"({error})")
        return
    if prompt.dropped:
        _say(out, f"(the {prompt.dropped} oldest turns no longer fit the model's context and are forgotten)")
    ids: list[int] = []
    decoder = codec.stream()
    out.write("bot: ")
    out.flush()
    try:
        for token in generator.stream(prompt.ids, options.for_reply(prompt.max_new_tokens, prompt.bot_ids)):
            ids.append(token)
            out.write(decoder.feed(token))
            out.flush()
        _say(out, decoder.flush())
    except KeyboardInterrupt:
        _say(out, decoder.flush() + " (stopped)")
    conversation.answer(ids)


def _say(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()
