"""Streams of conversations from text files: `.txt`, `.jsonl` and `.json`.

`.txt` is GPT2-chitchat's form: a turn a line, a blank line between conversations. `.jsonl` is one conversation a line,
`.json` one list of conversations; the forms of a conversation are in `chitchat.data.messages`. Files are streamed. Any
error in a file is a `BadInput` that names the file and the line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from chitchat.data.conversation import Conversation, ReadStats, alternating
from chitchat.data.json_stream import reason_of, stream_items
from chitchat.data.messages import conversation_of
from chitchat.errors import BadInput
from chitchat.text.archive import unpack_command
from chitchat.text.cleaning import clean, is_blank
from chitchat.text.lines import text_lines

_MIXED_ENDS = 2  # carriage returns within one line, from which on they are line ends of another kind


def read_txt(path: Path, stats: ReadStats) -> Iterator[Conversation]:
    """Conversations of a text file; every second turn is the bot's."""
    texts: list[str] = []
    for number, line in text_lines(path):
        if not is_blank(line):
            if line.rstrip("\r").count("\r") >= _MIXED_ENDS:
                source = unpack_command(path) or f"cat {quote(str(path))} | "
                raise BadInput(
                    f"{path}, line {number}: has carriage returns as line ends, unlike other lines; make them the "
                    f"same: `{source}sed 's/\\r$//' | tr '\\r' '\\n' > NEW.txt`"
                )
            texts.append(line)
            continue
        clean(line, stats)  # to count what it removes: a line of NUL characters is blank
        if texts:
            yield alternating(texts, stats)
            texts = []
    if texts:
        yield alternating(texts, stats)


def read_jsonl(path: Path, stats: ReadStats) -> Iterator[Conversation]:
    """Conversations of a file with one JSON value a line."""
    for number, line in text_lines(path):
        if is_blank(line):
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{path}, line {number}: is not JSON ({reason_of(error)}); write one conversation a line"
            ) from error
        yield conversation_of(value, f"{path}, line {number}", stats)


def read_json(path: Path, stats: ReadStats) -> Iterator[Conversation]:
    """Conversations of a file that holds one JSON list."""
    for number, value in stream_items(path):
        yield conversation_of(value, f"{path}, line {number}", stats)
