"""The dialogue format in token ids: what starts a conversation, what ends a turn, what is never generated.

It is stored in bundle.json and in a data set's data.json. It handles ids only, and removes special tokens from turns,
so that no text can forge the end of a turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Dialogue:
    """How conversations are written in ids: `[CLS]turn[SEP]turn[SEP]` (chitchat) or `turn<eos>turn<eos>` (dialogpt).

    `start_ids` opens a conversation, `end_of_turn_id` closes every turn, `unconditional_prompt_ids` is the prompt of
    unconditional generation, `banned_ids` (sorted) are never to be generated: all special ids but the end of turn and,
    in a model's dialogue, the rows of its table that are no token.
    """

    family: str
    start_ids: tuple[int, ...]
    end_of_turn_id: int
    pad_id: int
    unk_id: int | None
    unconditional_prompt_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Any) -> "Dialogue":
        """The dialogue that `as_json` wrote. Raises ValueError that names the field."""
        if not isinstance(value, Mapping):
            raise ValueError("dialogue is not an object")
        family = value.get("family")
        if not isinstance(family, str):
            raise ValueError(f"dialogue.family is {family!r}, not a string")
        unk_id = value.get("unk_id")
        return cls(
            family=family,
            start_ids=_ids(value, "start_ids"),
            end_of_turn_id=_id("end_of_turn_id", value.get("end_of_turn_id")),
            pad_id=_id("pad_id", value.get("pad_id")),
            unk_id=None if unk_id is None else _id("unk_id", unk_id),
            unconditional_prompt_ids=_ids(value, "blank_ids"),
            banned_ids=_ids(value, "banned_ids"),
        )

    def as_json(self) -> dict[str, Any]:
        """The fields as bundle.json and data.json have them; `unconditional_prompt_ids` is "blank_ids" there."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"blank_ids" if name == "unconditional_prompt_ids" else name: fields[name] for name in fields}

    def encode(self, turns: Sequence[Sequence[int]]) -> list[int]:
        """The ids of a conversation whose turns are given as ids: start, then each turn followed by its end of turn.

        Special ids within a turn, except the unknown token, are left out: a tokenizer may parse them from text if its
        special tokens are not declared as such.
        """
        ids = list(self.start_ids)
        for turn in turns:
            ids.extend(turn if self._reserved.isdisjoint(turn) else (i for i in turn if i not in self._reserved))
            ids.append(self.end_of_turn_id)
        return ids

    def frame(self, turn: int) -> tuple[int, int]:
        """The number of ids before and after the text of turn number `turn`: a role's header, and the end of turn.

        Neither family has headers. All code that counts the ids of a turn or extracts its text uses this.
        """
        return 0, 1

    def turn_lengths(self, turns: Sequence[Sequence[int]]) -> list[int]:
        """The number of ids of each turn in `encode`, from the ids of its text."""
        return [len(text) + sum(self.frame(turn)) for turn, text in enumerate(turns)]

    def text_lengths(self, turn_lengths: Sequence[int]) -> list[int]:
        """The number of text ids of each turn, the inverse of `turn_lengths`."""
        return [length - sum(self.frame(turn)) for turn, length in enumerate(turn_lengths)]

    def turn_texts(self, ids: Any, turn_lengths: Sequence[int]) -> list[Any]:
        """The text ids of each turn, from the ids of a conversation (a sequence or an array); the inverse of
        `encode`."""
        texts, begin = [], len(self.start_ids)
        for turn, length in enumerate(turn_lengths):
            before, behind = self.frame(turn)
            texts.append(ids[begin + before : begin + length - behind])
            begin += length
        return texts

    @cached_property
    def _reserved(self) -> frozenset[int]:
        return frozenset({*self.start_ids, self.end_of_turn_id, *self.banned_ids} - {self.unk_id})


def _id(field: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"dialogue.{field} is {value!r}, not a token id")
    return value


def _ids(record: Mapping[str, Any], field: str) -> tuple[int, ...]:
    values = record.get(field)
    if not isinstance(values, list | tuple):
        raise ValueError(f"dialogue.{field} is {values!r}, not a list of ids")
    return tuple(_id(field, value) for value in values)
