"""The dialogue format of a bundle: what starts a conversation, what ends a turn, what is never generated.

Read from the `dialogue` object of bundle.json, which the exporter wrote. It speaks ids only, and lets no special token
into a turn, so that no text can forge the border of a turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from serve.errors import BadBundle


@dataclass(frozen=True)
class Dialogue:
    """Special ids of one dialogue family: `[CLS]turn[SEP]turn[SEP]` (chitchat) or `turn<eos>turn<eos>` (dialogpt)."""

    family: str
    start_ids: tuple[int, ...]
    end_of_turn_id: int
    pad_id: int
    unk_id: int | None
    unconditional_prompt_ids: tuple[int, ...]  # the prompt of an unconditional sample
    banned_ids: tuple[int, ...]  # never to be generated

    @classmethod
    def from_json(cls, value: Any) -> "Dialogue":
        """Read the `dialogue` object of bundle.json. Raises BadBundle that names the field."""
        if not isinstance(value, Mapping):
            raise BadBundle("bundle.json: dialogue is not an object; export the bundle again")
        family = value.get("family")
        if not isinstance(family, str):
            raise BadBundle(f"bundle.json: dialogue.family is {family!r}, not a string; export the bundle again")
        unk_id = value.get("unk_id")
        return cls(
            family=family,
            start_ids=_ids(value, "start_ids"),
            end_of_turn_id=_id("end_of_turn_id", value.get("end_of_turn_id")),
            pad_id=_id("pad_id", value.get("pad_id")),
            unk_id=None if unk_id is None else _id("unk_id", unk_id),
            unconditional_prompt_ids=_ids(value, "unconditional_prompt_ids"),
            banned_ids=_ids(value, "banned_ids"),
        )

    def encode(self, turns: Sequence[Sequence[int]]) -> list[int]:
        """Give the ids of a conversation: start, then each turn followed by its end of turn.

        A turn's own special ids, the unknown token excepted, are left out. Tokenizers are told to make none of text,
        but one whose special tokens are not declared as such does.
        """
        ids = list(self.start_ids)
        for turn in turns:
            ids.extend(turn if self._reserved.isdisjoint(turn) else (i for i in turn if i not in self._reserved))
            ids.append(self.end_of_turn_id)
        return ids

    @cached_property
    def _reserved(self) -> frozenset[int]:
        return frozenset({*self.start_ids, self.end_of_turn_id, *self.banned_ids} - {self.unk_id})


def _id(field: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise BadBundle(f"bundle.json: dialogue.{field} is {value!r}, not a token id; export the bundle again")
    return value


def _ids(record: Mapping[str, Any], field: str) -> tuple[int, ...]:
    values = record.get(field)
    if not isinstance(values, list | tuple):
        raise BadBundle(f"bundle.json: dialogue.{field} is {values!r}, not a list of ids; export the bundle again")
    return tuple(_id(field, value) for value in values)
