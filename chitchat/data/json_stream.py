"""A JSON list or object decoded item by item, so that a file larger than memory can be read.

Python's decoder is given text until an item is complete.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput
from chitchat.text.lines import text_pieces

_SPACE = re.compile(r"[ \t\r\n]*")
# Characters; without a limit one missing bracket would make the decoder read the whole file.
_LONGEST_CONVERSATION = 1 << 26


def stream_items(path: Path) -> Iterator[tuple[int, Any]]:
    """`(line number, value)` of each item of a JSON list, or each value of a JSON object, one in memory at a time."""
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
        raise source.error("text follows the end of the list (one conversation a line? then name the file .jsonl)")


class _JsonSource:
    """Text of a JSON file with a position, read in pieces as the decoder asks for more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces = text_pieces(path)
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self.line = 1

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self.line += space[0].count("\n")
            self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Skip this character, the one that `peek` returned."""
        if self._text[self._at : self._at + 1] != character:
            raise self.error(f"{character!r} was expected")
        self._at += 1

    def decode(self) -> Any:
        """The JSON value that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Only an error at the end of what was read can be due to missing text.
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 16
                if cut and len(self._text) - self._at < _LONGEST_CONVERSATION and self._more():
                    continue
                self.line += self._text.count("\n", self._at, error.pos)
                raise self.error(error.msg) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets by the thousand
                raise self.error(reason_of(error)) from error
            self.line += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def error(self, reason: str) -> BadInput:
        return BadInput(f"{self._path}, line {self.line}: {reason}; write one JSON list of conversations")

    def _more(self) -> bool:
        # At least as much as is waiting, so that a long item is not decoded again for every piece.
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


def reason_of(error: Exception) -> str:
    """Why something is not JSON, in a few words."""
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return str(getattr(error, "msg", None) or error).partition(";")[0]
