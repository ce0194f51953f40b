"""Conversations from files, in a stream: `.txt`, `.jsonl` and `.json`.

`.txt` is GPT2-chitchat's form: a turn a line, a blank line between conversations, `\\n` or `\\r\\n`, a BOM tolerated.
`.jsonl` is one conversation a line, `.json` one list of conversations, each a list of turns or
`{"messages": [{"role", "content"}]}`. No file is held in memory whole: a `.json` list is decoded conversation by
conversation. Everything wrong with a file is a `BadInput` that names the file and the line.
"""

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from chitchat.errors import BadInput

_USER_ROLES = frozenset({"user", "human"})
_BOT_ROLES = frozenset({"assistant", "bot", "gpt", "model"})
_OTHER_ROLES = frozenset({"system", "developer", "tool", "function"})
_PIECE_BYTES = 1 << 20
# A conversation longer than this is a file that is not what it says; without a limit one missing bracket would make
# the decoder read all of it.
_LONGEST_CONVERSATION = 1 << 26


class Turn(NamedTuple):
    """What one side says before the other speaks. `reply` is true where the bot says it."""

    text: str
    reply: bool


Conversation = list[Turn]


@dataclass
class Tally:
    """What a pass over corpora read and what it left out."""

    conversations: int = 0
    short_conversations: int = 0
    system_messages: int = 0
    empty_turns: int = 0


def read_txt(path: Path, tally: Tally) -> Iterator[Conversation]:
    """Conversations of a text file; every second turn is the bot's."""
    texts: list[str] = []
    for _, line in _lines(path):
        text = line.strip()
        if text:
            texts.append(text)
        elif texts:
            yield alternating(texts, tally)
            texts = []
    if texts:
        yield alternating(texts, tally)


def read_jsonl(path: Path, tally: Tally) -> Iterator[Conversation]:
    """Conversations of a file with one JSON value a line."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BadInput(
                f"{path}, line {number}: is not JSON ({_reason(error)}); write one conversation a line"
            ) from error
        yield conversation_of(value, f"{path}, line {number}", tally)


def read_json(path: Path, tally: Tally) -> Iterator[Conversation]:
    """Conversations of a file that holds one JSON list."""
    for number, value in stream_items(path):
        yield conversation_of(value, f"{path}, line {number}", tally)


def conversation_of(value: Any, where: str, tally: Tally) -> Conversation:
    """The conversation that a decoded JSON value stands for; `where` begins the error."""
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise BadInput(
            f'{where}: is not a conversation; write a list of turns or {{"messages": [{{"role", "content"}}]}}'
        )
    if all(isinstance(message, str) for message in messages):
        return alternating(messages, tally)
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadInput(
                f'{where}: message {str(message)[:60]!r} has no text; write {{"role": "user", "content": "…"}}'
            )
        role = message.get("role")
        if role in _OTHER_ROLES:
            tally.system_messages += 1
        elif role in _BOT_ROLES or role in _USER_ROLES:
            reply = role in _BOT_ROLES
            turns.append(("bot" if reply else "user", reply, message["content"]))
        else:
            raise BadInput(f"{where}: role {str(role)[:40]!r} is unknown; use user, assistant or system")
    return merged(turns, tally)


def alternating(texts: list[str], tally: Tally) -> Conversation:
    """Turns of two sides that take turns, the second one the bot."""
    kept = [text for text in map(_clean, texts) if text]
    tally.empty_turns += len(texts) - len(kept)
    return [Turn(text, index % 2 == 1) for index, text in enumerate(kept)]


def merged(messages: list[tuple[str, bool, str]], tally: Tally) -> Conversation:
    """Turns of `(sender, by the bot, text)` messages: successive messages of one sender become one turn."""
    turns: list[tuple[str, bool, list[str]]] = []
    for sender, reply, raw in messages:
        text = _clean(raw)
        if not text:
            tally.empty_turns += 1
        elif turns and turns[-1][0] == sender:
            turns[-1][2].append(text)
        else:
            turns.append((sender, reply, [text]))
    return [Turn(" ".join(texts), reply) for _, reply, texts in turns]


def stream_items(path: Path) -> Iterator[tuple[int, Any]]:
    """`(line number, value)` for each item of a JSON list, or each value of a JSON object, one in memory at a time."""
    source = _JsonSource(path)
    opening = source.peek()
    if opening not in ("[", "{"):
        raise source.error("is not a JSON list of conversations")
    closing, named = ("]", False) if opening == "[" else ("}", True)
    source.take(opening)
    while (following := source.peek()) != closing:
        if named:
            if following != '"':
                raise source.error("a name in quotes was expected")
            source.decode()
            source.peek()
            source.take(":")
            source.peek()
        line = source.line
        yield line, source.decode()
        if source.peek() == ",":
            source.take(",")
            if source.peek() == closing:
                raise source.error("there is a comma after the last item")
        elif source.peek() != closing:
            raise source.error("a comma was expected")
    source.take(closing)
    if source.peek():
        raise source.error("something follows the end of the list (one conversation a line? then name the file .jsonl)")


class _JsonSource:
    """Text of a JSON file with a position, read in pieces as the decoder asks for more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces = _decoded_pieces(path)
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self.line = 1

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self.line += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Step over the character that `peek` must have shown."""
        if self._text[self._at : self._at + 1] != character:
            raise self.error(f"{character!r} was expected")
        self._at += 1

    def decode(self) -> Any:
        """The JSON value that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Only an error at the end of what was read can be healed by reading on.
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 16
                if cut and len(self._text) - self._at < _LONGEST_CONVERSATION and self._more():
                    continue
                self.line += self._text.count("\n", self._at, error.pos)
                raise self.error(_reason(error)) from error
            except RecursionError as error:
                raise self.error("is nested too deeply") from error
            self.line += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def error(self, reason: str) -> BadInput:
        return BadInput(f"{self._path}, line {self.line}: {reason}; write one JSON list of conversations")

    def _more(self) -> bool:
        # At least as much again as is already waiting, so that long items are not decoded over and over.
        waiting = self._text[self._at :]
        pieces = []
        size = 0
        for piece in self._pieces:
            pieces.append(piece)
            size += len(piece)
            if size >= len(waiting):
                break
        self._text, self._at = waiting + "".join(pieces), 0
        return bool(pieces)


def _decoded_pieces(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    line = 1
    with _opened(path) as file:
        first = True
        while True:
            data = file.read(_PIECE_BYTES)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, line + error.object[: error.start].count(b"\n")) from error
            line += data.count(b"\n")
            if first:
                text, first = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not data:
                return


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """`(number, text)` of each line, split at `\\n` only, so that rare Unicode line ends stay inside a turn."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number) from error
            yield number, text.removeprefix("\ufeff") if number == 1 else text


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    with file:
        yield file


def _not_utf8(path: Path, line: int) -> BadInput:
    return BadInput(
        f"{path}, line {line}: is not UTF-8; convert the file, for example with `iconv -f gb18030 -t utf-8`"
    )


def _clean(text: str) -> str:
    """The text without white space around it; half of a surrogate pair (JSON can spell one) becomes U+FFFD."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.strip()


def _reason(error: ValueError) -> str:
    return getattr(error, "msg", str(error))
