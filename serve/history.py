"""The turns of one conversation, kept within the model's context.

Whole old turns are dropped, never a part of one; their number is returned. Ids only; no text, no roles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve.errors import ContextExceeded


class DialogueFormat(Protocol):
    """The part of a dialogue format (`serve.dialogue.Dialogue`) that is needed here."""

    def encode(self, turns: list[list[int]]) -> list[int]:
        """The ids of a conversation."""


@dataclass(frozen=True)
class FittedPrompt:
    """The input of the generator: `len(ids) + max_new_tokens <= context`; `dropped` old turns did not fit.

    `bot_ids` are the ids of the bot's turns in `ids`, for the repetition penalty.
    """

    ids: list[int]
    max_new_tokens: int
    dropped: int
    bot_ids: tuple[int, ...] = ()


def fit(
    dialogue: DialogueFormat,
    turns: Sequence[Sequence[int]],
    context: int,
    max_new_tokens: int,
    from_bot: Sequence[bool] | None = None,
) -> FittedPrompt:
    """Drop as few of the oldest turns as needed for the reply; `from_bot` says which turns are the bot's.

    The room for the reply is `max_new_tokens`, but at most half of the context, so that a large limit does not drop the
    conversation; the reply may then use the rest of the context, up to `max_new_tokens`. The newest turn is always
    kept. Raises ContextExceeded if it alone leaves no room for one new token.
    """
    room = context - min(max_new_tokens, max(1, context // 2))
    kept = [list(turn) for turn in turns]
    ids = dialogue.encode(kept)
    while len(ids) > room and len(kept) > 1:
        del kept[0]
        ids = dialogue.encode(kept)
    check_length(len(ids), context, "the newest turn", "shorten it")
    dropped = len(turns) - len(kept)
    said = () if from_bot is None else ids_of_bot(kept, from_bot[dropped:])
    return FittedPrompt(ids, min(max_new_tokens, context - len(ids)), dropped, said)


def ids_of_bot(turns: Sequence[Sequence[int]], from_bot: Sequence[bool]) -> tuple[int, ...]:
    """The ids of the bot's turns, in order."""
    return tuple(i for turn, by_bot in zip(turns, from_bot, strict=True) if by_bot for i in turn)


def check_length(prompt_tokens: int, context: int, what: str, remedy: str) -> None:
    """Raise ContextExceeded, with both numbers, unless the prompt leaves room for at least one new token."""
    if prompt_tokens >= context:
        raise ContextExceeded(
            f"{what} has {prompt_tokens} tokens and the model's context takes {context - 1}; {remedy}",
            prompt_tokens=prompt_tokens,
            limit=context - 1,
        )


class ChatHistory:
    """A conversation of any length: `ask`, generate, `answer`, and again; `undo` takes the last `ask` back.

    `shown` turns are in a prompt at most, the newest among them; 0 for all that fit the context.
    """

    def __init__(self, dialogue: DialogueFormat, context: int, shown: int = 0) -> None:
        self._dialogue = dialogue
        self._context = context
        self.shown = shown
        self.turns: list[list[int]] = []
        self._from_bot: list[bool] = []
        self._asked: list[tuple[list[list[int]], list[bool]]] = []  # what each `ask` dropped
        self._lengths: list[int] = []  # turns that stayed at each `ask`

    def ask(self, turn: Sequence[int], max_new_tokens: int) -> FittedPrompt:
        """Add a turn and return the prompt for its reply. Old turns that do not fit are dropped.

        `dropped` counts those that the context has no room for, not those beyond `shown`.

        Raises ContextExceeded for a turn that is too long; the conversation is then unchanged.
        """
        turns = [*self.turns, list(turn)]
        from_bot = [*self._from_bot, False]
        hidden = max(len(turns) - self.shown, 0) if self.shown else 0
        prompt = fit(self._dialogue, turns[hidden:], self._context, max_new_tokens, from_bot[hidden:])
        kept = hidden + prompt.dropped if prompt.dropped else 0
        self._asked.append((turns[:kept], from_bot[:kept]))
        self._lengths.append(len(self.turns) - kept)
        self.turns, self._from_bot = turns[kept:], from_bot[kept:]
        return prompt

    def answer(self, turn: Sequence[int]) -> None:
        """Add the reply, whole or stopped, as ids without an end of turn."""
        self.turns.append(list(turn))
        self._from_bot.append(True)

    @property
    def asked(self) -> int:
        """How often `ask` can be taken back."""
        return len(self._asked)

    def undo(self) -> bool:
        """Take back the last `ask` with its answer; what it dropped is there again. False where there was none."""
        if not self._asked:
            return False
        (turns, from_bot), length = self._asked.pop(), self._lengths.pop()
        self.turns, self._from_bot = turns + self.turns[:length], from_bot + self._from_bot[:length]
        return True

    def reset(self) -> None:
        """Drop all turns."""
        self.turns, self._from_bot = [], []
        self._asked.clear()
        self._lengths.clear()
