"""Conversations of turns, which every reader yields, and counts of what was read, cleaned and left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from chitchat.text.cleaning import Cleaned, clean


class Turn(NamedTuple):
    """A turn; `reply` is true for the bot's. One that does not `counts` is context only, and not part of the loss.

    `ids` are the turn's token ids, without an end of turn, where the corpus holds ids; `text` is then their text.
    """

    text: str
    reply: bool
    counts: bool = True
    ids: tuple[int, ...] | None = None


Conversation = list[Turn]


class Message(NamedTuple):
    """A message of a file: consecutive ones of one sender are one turn."""

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
    """Turns of a user and a bot that alternate, the user first."""
    kept = [text for text in (clean(raw, stats) for raw in texts) if text]
    stats.empty_turns += len(texts) - len(kept)
    return [Turn(text, index % 2 == 1) for index, text in enumerate(kept)]


def merged(messages: Sequence[Message], stats: ReadStats) -> Conversation:
    """Turns of messages: consecutive ones of one sender are joined into one turn, which counts if all of them do."""
    cleaned = [(message, clean(message.text, stats)) for message in messages]
    kept = [(message, text) for message, text in cleaned if text]
    stats.empty_turns += len(cleaned) - len(kept)
    turns = (list(group) for _, group in groupby(kept, lambda entry: entry[0].sender))
    return [
        Turn(" ".join(text for _, text in turn), turn[0][0].reply, all(message.counts for message, _ in turn))
        for turn in turns
    ]
