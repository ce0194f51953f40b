"""A conversation in the terminal with any generator: the engine of a bundle, or the full-precision one.

It reads turns, streams replies, reports dropped turns, and does what `serve.commands` makes of a line. Input and output
are arguments, for tests. It neither loads models nor parses options.
"""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TextIO

from serve.commands import HINT, Action, Exchange, Talk, interpret
from serve.errors import BadRequest
from serve.history import ChatHistory
from serve.line_input import edited_input, is_terminal, read_turn
from serve.options import SamplingOptions
from serve.protocols import Codec, Generator
from serve.transcript import append, check_file, line_of


def run_terminal(
    generator: Generator,
    codec: Codec,
    options: SamplingOptions,
    *,
    history: int = 0,
    save: Path | None = None,
    quiet: bool = False,
    model: str = "",
    read: Callable[[str], str] | None = None,
    out: TextIO | None = None,
) -> int:
    """Talk until the user leaves (/quit, end of input, or Ctrl-C twice at the prompt); return the number of replies.

    `history` turns are shown to the model, 0 for all that fit. Each exchange is appended to `save`, where it has the
    name `model`. On a terminal a line after each reply says how fast it was, unless `quiet`. `read(prompt)` returns a
    line without its newline and raises EOFError at the end; default `input`, with line editing where the platform has
    it. `out` defaults to stdout. With a seed the whole conversation is reproducible: the n-th reply is drawn with
    seed + n. Raises BadRequest for a file that cannot be appended to.
    """
    if save is not None:
        check_file(save)
    if out is None:
        out = sys.stdout
        with suppress(AttributeError, ValueError):  # a stdout that takes ASCII only must not end the chat
            out.reconfigure(errors="replace")  # type: ignore[union-attr]
    patient = read is not None or is_terminal()
    chat = _Chat(generator, codec, Talk(options, history), save, model, quiet, out)
    _say(out, HINT)
    with edited_input() if read is None else nullcontext(read) as lines:
        interrupted = False
        while True:
            try:
                action = interpret(read_turn(lines), chat.talk)
                interrupted = False
                if action.do == "quit":
                    break
                chat.do(action)
            except EOFError:
                _say(out, "")  # the shell's prompt begins a new line
                break
            except KeyboardInterrupt:
                chat.settle()
                _say(out, "")
                if interrupted or not patient:
                    break
                interrupted = True
                _say(out, "(Ctrl-C again, Ctrl-D or /quit leaves)")
    return chat.replies


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


class _Chat:
    """The conversation of one terminal: its turns as ids and as text, and where they are saved."""

    def __init__(
        self,
        generator: Generator,
        codec: Codec,
        talk: Talk,
        save: Path | None,
        model: str,
        quiet: bool,
        out: TextIO,
    ) -> None:
        self.generator, self.codec, self.talk = generator, codec, talk
        self.save, self.model, self.out = save, model, out
        self.timed = not quiet and out.isatty()
        self.turns = ChatHistory(generator.dialogue, generator.context, talk.history)
        self.replies = 0
        self.began = _now()

    def do(self, action: Action) -> None:
        """Do what a line asks for."""
        for line in action.say:
            _say(self.out, line)
        match action.do:
            case "ask":
                self._ask(action.text)
            case "retry":
                self._retry(action)
            case "undo":
                self.turns.undo()
                self.talk = action.talk
            case "reset":
                self.turns.reset()
                self.talk, self.began = action.talk, _now()
            case "save":
                self._save_all(Path(action.text).expanduser())
            case _:
                self.talk = action.talk

    def settle(self) -> None:
        """After a Ctrl-C between two steps: keep the exchanges that both the ids and the texts have."""
        while self.turns.asked > len(self.talk.exchanges):
            self.turns.undo()
        self.talk = replace(self.talk, exchanges=self.talk.exchanges[: self.turns.asked])

    def _retry(self, action: Action) -> None:
        """Answer the last turn again; where no reply comes, the one before stays."""
        before, asked, answered = self.talk, *self.turns.turns[-2:]
        self.turns.undo()
        self.talk = action.talk
        self._ask(action.text)
        if len(self.talk.exchanges) < len(before.exchanges):
            self.turns.ask(asked, 1)
            self.turns.answer(answered)
            self.talk = before

    def _ask(self, text: str) -> None:
        """Answer one turn. For an invalid turn the reason is printed, and it is left out of the conversation."""
        self.turns.shown = self.talk.history
        options = self.talk.options
        if options.seed is not None:
            options = replace(options, seed=(options.seed + self.replies) % 2**63)
        try:
            turn = self.codec.encode(text)
            if not turn:
                raise BadRequest("the model's vocabulary has nothing for this text; write something else")
            exchange = self._reply(text, turn, options)
        except Exception as error:
            if not hasattr(error, "exit_code"):  # ours have one, of this package and of chitchat
                raise
            _say(self.out, f"({error})")
            return
        if exchange is None:
            return
        self.replies += 1
        self.talk = replace(self.talk, exchanges=(*self.talk.exchanges, exchange))
        if self.timed:
            _say(self.out, _dim(_speed(exchange)))
        if self.save is not None:
            self._append(self.save, [len(self.talk.exchanges)])

    def _reply(self, text: str, turn: list[int], options: SamplingOptions) -> Exchange | None:
        """Stream a reply. None, with the turn taken back, where it was stopped before it began."""
        out, started, begin = self.out, _now(), perf_counter()
        prompt = self.turns.ask(turn, options.max_new_tokens)
        if prompt.dropped:
            _say(out, f"(the {prompt.dropped} oldest turns no longer fit the model's context and are forgotten)")
        decoder, stopped = self.codec.stream(), False
        ids: list[int] = []
        pieces: list[str] = []
        first = last = begin
        try:
            out.write("bot: ")
            out.flush()
            for token in self.generator.stream(prompt.ids, options.for_reply(prompt.max_new_tokens, prompt.bot_ids)):
                last = perf_counter()
                first = first if ids else last
                ids.append(token)
                pieces.append(decoder.feed(token))
                out.write(pieces[-1])
                out.flush()
        except KeyboardInterrupt:
            stopped = True
        except BaseException:
            self.turns.undo()
            _say(out, "")
            raise
        pieces.append(decoder.flush())
        if stopped and not ids:
            self.turns.undo()
            _say(out, "(stopped before its first token; the turn is taken back)")
            return None
        _say(out, pieces[-1] + " (stopped)" * stopped)
        self.turns.answer(ids)
        reply, ttft_ms = "".join(pieces), (first - begin) * 1000
        return Exchange(text, reply, options, self.talk.history, started, ttft_ms, last - begin, len(ids), stopped)

    def _save_all(self, path: Path) -> None:
        if self._append(path, range(1, len(self.talk.exchanges) + 1)):
            _say(self.out, f"({len(self.talk.exchanges)} exchanges appended to {path})")

    def _append(self, path: Path, numbers: Iterable[int]) -> bool:
        """Append exchanges to a file; where it cannot take them, that is said and the chat goes on."""
        lines = [line_of(self.talk.exchanges[number - 1], self.began, number, self.model) for number in numbers]
        try:
            append(path, b"".join(lines))
        except BadRequest as error:
            _say(self.out, f"(not saved: {error})")
            return False
        return True


def _now() -> str:
    """This moment in ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _speed(exchange: Exchange) -> str:
    rate = exchange.tokens_per_s
    speed = "" if rate is None else f", {rate:.1f} tokens/s"
    return f"{exchange.tokens} tokens{speed}, first after {exchange.ttft_ms:.0f} ms"


def _dim(text: str) -> str:
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def _say(out: TextIO, text: str) -> None:
    out.write(text + "\n")
    out.flush()
