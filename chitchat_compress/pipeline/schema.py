"""What a recipe may say: its verbs, with the options of their dataclasses, and that as a JSON Schema for editors."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from bench.run.options import BenchOptions
from chitchat.data.options import DataOptions
from chitchat.options import OptionField, Options, option_fields
from chitchat.training.options import TrainOptions
from compress.prune.options import PruneOptions
from compress.quantize.options import QuantizeOptions
from export.options import ExportOptions

STAGE_NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"
_VARIABLE = {"type": "string", "pattern": r"\$\{"}


@dataclass(frozen=True)
class RecipeVerb:
    """A command as a recipe has it: `argument` is the key of what it works on, `options` the class of the other keys.

    `takes` are the kinds of folders that the argument can be, `makes` the kind of its output; `data` says whether it
    has a key for a data set ("" no, "may", "must").
    """

    argument: str
    options: type[Options]
    makes: str
    takes: tuple[str, ...] = ()
    data: str = ""

    @cached_property
    def fields(self) -> Mapping[str, OptionField]:
        """Its options by their keys."""
        return {one.key: one for one in option_fields(self.options)}

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys beside `run`, what it works on first."""
        return (self.argument, *(("data",) if self.data else ()), *self.fields)

    def kinds(self, key: str) -> tuple[str, ...]:
        """The kinds of stages that a value may name; () where it is no folder."""
        if key == self.argument:
            return self.takes
        return ("data",) if key == "data" else self.fields[key].takes


VERBS = {
    "data": RecipeVerb("corpora", DataOptions, "data"),
    "train": RecipeVerb("from", TrainOptions, "checkpoint", ("data",)),
    "prune": RecipeVerb("from", PruneOptions, "checkpoint", ("checkpoint",), "must"),
    "quantize": RecipeVerb("from", QuantizeOptions, "quantized", ("checkpoint",), "must"),
    "export": RecipeVerb("from", ExportOptions, "bundle", ("checkpoint", "quantized"), "may"),
    "bench": RecipeVerb("models", BenchOptions, "report", ("checkpoint", "quantized", "bundle"), "may"),
}


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a recipe. That a name is one of an earlier stage, it cannot say."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of chitchat-compress",
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{STAGE_NAME}$"},
        "additionalProperties": {"anyOf": [_stage(name, verb) for name, verb in VERBS.items()]},
    }


def _stage(name: str, verb: RecipeVerb) -> dict[str, Any]:
    one = {"type": "string"}
    many = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    folder = {"type": "string", "description": "An earlier stage, or a data set made by `compress data`."}
    properties: dict[str, Any] = {"run": {"const": name}, verb.argument: one if verb.argument == "from" else many}
    if verb.data:
        properties["data"] = folder
    properties |= {key: _property(field) for key, field in verb.fields.items()}
    required = ["run", verb.argument, *(["data"] if verb.data == "must" else [])]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _property(field: OptionField) -> dict[str, Any]:
    """One option: its value, or a text with an environment variable in its place."""
    found = msgspec.json.schema(field.hint)
    description = found.pop("description")
    default = {} if field.default is None else {"default": field.default}
    return {"anyOf": [found, _VARIABLE], "description": description, **default}
