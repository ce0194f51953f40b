"""Streams of conversations from text files: `.txt`, `.jsonl`, `.json` and DialoGPT's `.tsv`.

`.txt` is GPT2-chitchat's form: a turn a line, a blank line between conversations. `.jsonl` is one conversation a line,
`.json` one list of conversations; the forms of a conversation are in `chitchat.data.messages`. Files are streamed. Any
error in a file is a `BadInput` that names the file and the line.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from chitchat.data.conversation import Conversation, Message, ReadStats, alternating, merged
from chitchat.data.json_stream import reason_of, stream_items
from chitchat.data.messages import conversation_of, counts_of
from chitchat.errors import BadInput
from chitchat.text.archive import unpack_command
from chitchat.text.cleaning import clean, is_blank
from chitchat.text.lines import text_lines

_MIXED_ENDS = 2  # carriage returns within one line, from which on they are line ends of another kind
_WEIGHT = re.compile(r"\s*([01]\.\d+|[01])(?:\s+(.*)|\s*)", re.DOTALL)
_NUMBER = re.compile(r"\s*(-?\d+\.\d+)(?:\s+(.*)|\s*)", re.DOTALL)
_FORM = "DialoGPT's form is `context<TAB>reply`; for other tables say with --columns which columns are the turns"


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


def read_dialogpt(path: Path, stats: ReadStats) -> Iterator[Conversation]:
    """Conversations of a file in DialoGPT's form, one a line: a context, a tab, and the reply.

    The turns of the context are separated by ` EOS `. A turn may begin with its weight, `0.0` or `1.0`: whether it
    counts in the loss (microsoft/DialoGPT, `prepro.py`). The last turn is the reply, so it is the bot's, as is every
    second one before it. As there, white space within a turn is normalised. Unlike there, either every turn of a file
    has a weight or none, so that a turn that begins with a number is not misread; and the weight of the first turn is
    used as well. Raises `BadInput` for another form.
    """
    weighted: bool | None = None
    for number, line in text_lines(path):
        if is_blank(line):
            continue
        where = f"{path}, line {number}"
        columns = line.strip("\r\n").split("\t")
        if len(columns) != 2:
            raise BadInput(f"{where}: has {len(columns)} columns; {_FORM}")
        texts = [*re.split(r"\sEOS\s", columns[0]), columns[1]]
        if weighted is None:
            weighted = all(_WEIGHT.fullmatch(text) for text in texts)
        yield _dialogpt_conversation(texts, weighted, where, stats)


def _dialogpt_conversation(texts: list[str], weighted: bool, where: str, stats: ReadStats) -> Conversation:
    if not weighted and all(_WEIGHT.fullmatch(text) for text in texts):
        raise BadInput(f"{where}: has weights, and the lines before have none; give all turns a weight, or none")
    found = []
    for number, text in enumerate(texts, 1):
        counts = True
        if weighted:
            match = _WEIGHT.fullmatch(text) or _NUMBER.fullmatch(text)
            if match is None:
                raise BadInput(f"{where}: turn {number} has no weight, others have; begin each with 0.0 or 1.0")
            counts, text = counts_of(match[1], f"{where}, turn {number}"), match[2] or ""
        bot = (len(texts) - number) % 2 == 0
        found.append(Message("bot" if bot else "user", bot, " ".join(text.split()), counts))
    return merged(found, stats)
