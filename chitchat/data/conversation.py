"""What every reader yields: conversations of turns; and statistics of what was read, cleaned and left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chitchat.text.cleaning import Cleaned, clean


class Turn(NamedTuple):
    """What one side says before the other speaks.

    `reply` is true where the bot says it. A turn that does not `count` is read as context and is no part of the loss.
    `ids` are the turn's own token ids, without an end of turn, where the corpus holds ids; `text` is then their text.
    """

    text: str
    reply: bool
    counts: bool = True
    ids: tuple[int, ...] | None = None


Conversation = list[Turn]


class Message(NamedTuple):
    """One message as a file has it: successive ones of one sender are one turn."""

    sender: str
    reply: bool
    text: str
    counts: bool = True


@dataclass
class ReadStats(Cleaned):
    """What a pass over corpora read, cleaned and left out."""

    conversations: int = 0
    short_conversations: int = 0
    system_messages: int = 0
    empty_turns: int = 0
    other_parts: int = 0
    repeated_lists: int = 0
    cut_turns: int = 0
    special_ids: int = 0


def alternating(texts: Sequence[str], stats: ReadStats) -> Conversation:
    """Turns of two sides that take turns, the second one the bot."""
    kept = [text for text in (clean(raw, stats) for raw in texts) if text]
    stats.empty_turns += len(texts) - len(kept)
    return [Turn(text, index % 2 == 1) for index, text in enumerate(kept)]


def merged(messages: Sequence[Message], stats: ReadStats) -> Conversation:
    """Turns of messages: successive ones of one sender become one turn, which counts where all of them do."""
    turns: list[Turn] = []
    first, texts, counts = None, [""], True  # of the turn that is being read
    for message in messages:
        text = clean(message.text, stats)
        if not text:
            stats.empty_turns += 1
        elif first is not None and first.sender == message.sender:
            texts.append(text)
            counts = counts and message.counts
        else:
            if first is not None:
                turns.append(Turn(" ".join(texts), first.reply, counts))
            first, texts, counts = message, [text], message.counts
    if first is not None:
        turns.append(Turn(" ".join(texts), first.reply, counts))
    return turns
