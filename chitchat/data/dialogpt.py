"""DialoGPT's `.tsv`: a context, a tab, and the reply; the turns of the context are separated by ` EOS `.

A turn may begin with its weight, `0.0` or `1.0`: whether it counts in the loss (microsoft/DialoGPT, `prepro.py`). The
last turn is the reply, so it is the bot's, as is every second one before it. As there, white space within a turn is
normalised. Unlike there, either every turn of a file has a weight or none, so that a turn that begins with a number is
not misread; and the weight of the first turn is used as well.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from chitchat.data.conversation import Conversation, Message, ReadStats, merged
from chitchat.data.messages import counts_of
from chitchat.errors import BadInput
from chitchat.text.cleaning import is_blank
from chitchat.text.lines import text_lines

_WEIGHT = re.compile(r"\s*([01]\.\d+|[01])(?:\s+(.*)|\s*)", re.DOTALL)
_NUMBER = re.compile(r"\s*(-?\d+\.\d+)(?:\s+(.*)|\s*)", re.DOTALL)
_FORM = "DialoGPT's form is `context<TAB>reply`; for other tables say with --columns which columns are the turns"


def read_dialogpt(path: Path, stats: ReadStats) -> Iterator[Conversation]:
    """Conversations of a file in DialoGPT's form, one a line. Raises `BadInput` for another form."""
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
        yield _conversation(texts, weighted, where, stats)


def _conversation(texts: list[str], weighted: bool, where: str, stats: ReadStats) -> Conversation:
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
