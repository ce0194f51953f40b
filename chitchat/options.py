"""Options: frozen dataclasses whose fields have a help text, a unit, limits and the group that they are shown in.

    keep: float | None = option(None, "Share of the parameters that stays.", unit="share", gt=0, lt=1)

The command line, the schema of recipes, the Python API and the documentation read these fields, and lineages record
them. Values are checked when the object is made, so the errors are the same everywhere. Neither this module nor any
module of options imports torch or numpy.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache, cached_property
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from chitchat.errors import BadInput

GROUP = "Options"
# Options that several stages share.
SEED: dict[str, Any] = {"help": "Seed of everything random.", "unit": "seed", "ge": 0}
TOKENIZER: dict[str, Any] = {
    "help": "Vocabulary of a checkpoint that holds none: a vocab.txt, a folder or a hub id.",
    "takes": ("checkpoint", "quantized", "data"),
}
DIALOGUE: dict[str, Any] = {"help": "Dialogue format of a model that names none."}
Dialogues = Literal["chitchat", "dialogpt"]
THREADS: dict[str, Any] = {
    "help": "Threads of the runtime (default: the cores this process may use).",
    "unit": "threads",
    "ge": 1,
}
MAX_TOKENS: dict[str, Any] = {
    "help": "Score at most this many held-out tokens (default: all).",
    "unit": "tokens",
    "ge": 1,
}
PORTABLE_PYTHON: dict[str, Any] = {
    "help": "The interpreter that has optimum (default: PORTABLE_PYTHON, or that of make portable)."
}


@dataclass(frozen=True)
class _About:
    """The arguments of `option`."""

    help: str
    group: str
    unit: str
    limits: Mapping[str, float]
    takes: tuple[str, ...]
    alias: str
    stdin: bool


def option(
    default: Any,
    help: str,
    *,
    group: str = GROUP,
    unit: str = "",
    takes: tuple[str, ...] = (),
    alias: str = "",
    stdin: bool = False,
    **limits: float,
) -> Any:
    """A field of an options class. `unit` is that of its number, and `limits` are `gt`, `ge`, `lt` or `le`.

    `takes` are the kinds of folders that a recipe may name here: "data", "checkpoint", "quantized", "bundle". `alias`
    is another name, which the command line and keywords take as well. With `stdin` the value may be `-`, for stdin.
    """
    return field(default=default, metadata={"option": _About(help, group, unit, limits, takes, alias, stdin)})


class OptionField:
    """One option: its names, the values that it takes, and the error for another one."""

    def __init__(self, found: "Field[Any]", hint: Any) -> None:
        about: _About = found.metadata["option"]
        members = get_args(hint) if NoneType in get_args(hint) else (hint,)
        self.name, self.default = found.name, found.default
        self.help, self.group, self.unit, self.takes = about.help, about.group, about.unit, about.takes
        self.alias, self.stdin = about.alias, about.stdin
        self.bounds = dict(about.limits)
        self.kind: Any = members[0]  # the type of a value; None means that the option is left out
        self.optional = len(members) > 1

    @property
    def key(self) -> str:
        """Its name in a recipe, and on the command line behind two dashes: `max-mb`."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.key

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it takes, if they are listed."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @cached_property
    def hint(self) -> Any:
        """The type of a value, with limits and help, for msgspec."""
        extra = {"x-unit": self.unit} if self.unit else None
        bounds: dict[str, Any] = self.bounds
        return Annotated[self.kind, msgspec.Meta(description=self.help, extra_json_schema=extra, **bounds)]

    @property
    def limits(self) -> str:
        """The numbers that it takes, in words, "between 0 and 1" for example; "" where all are."""
        whole = {("gt", "lt"): "between {gt:g} and {lt:g}", ("ge", "le"): "from {ge:g} to {le:g}"}
        if (both := tuple(self.bounds)) in whole:
            return whole[both].format(**self.bounds)
        words = {"gt": "above {:g}", "ge": "{:g} or more", "lt": "below {:g}", "le": "at most {:g}"}
        return " and ".join(words[name].format(bound) for name, bound in self.bounds.items())

    @property
    def remedy(self) -> str:
        """What to give in place of an invalid value."""
        if self.kind is int and list(self.bounds) == ["ge"]:
            return f"give a whole number from {self.bounds['ge']:g} up"
        if self.kind is float and "ge" in self.bounds:
            return f"give {self.limits}"
        return f"{remedy_of(self.kind)} {self.limits}".rstrip()

    def accepts(self, value: Any) -> bool:
        """Whether the value is valid; None is if the option may be left out."""
        if value is None:
            return self.optional
        try:
            msgspec.convert(value, self.hint)
        except msgspec.ValidationError:
            return False
        if isinstance(value, float):  # msgspec accepts 80.0 as a whole number, and inf and nan
            return math.isfinite(value) and self.kind is not int
        return True


def remedy_of(hint: Any) -> str:
    """What a value of that type is, in words: "give a whole number"."""
    kind = next((one for one in get_args(hint) if one is not NoneType), hint) if NoneType in get_args(hint) else hint
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return "give " + " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
    return {int: "give a whole number", float: "give a number", bool: "give true or false"}.get(kind, "give a text")


def option_fields(options: Any) -> tuple[OptionField, ...]:
    """The options of a dataclass, in order."""
    return _option_fields(options)


@cache
def _option_fields(options: Any) -> tuple[OptionField, ...]:
    hints = get_type_hints(options)
    return tuple(OptionField(one, hints[one.name]) for one in fields(options) if "option" in one.metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The base class: checks values when the object is made; paths become str, numpy's numbers Python's."""

    def __post_init__(self) -> None:
        for one in option_fields(type(self)):
            value = getattr(self, one.name)
            if isinstance(value, os.PathLike) or hasattr(value, "item"):
                value = os.fspath(value) if isinstance(value, os.PathLike) else value.item()
                object.__setattr__(self, one.name, value)
            require(one.accepts(value), one.name, value, one.remedy)


Given = TypeVar("Given", bound=Options)


def make_options(kind: type[Given], options: Given | None, given: Mapping[str, Any], function: str) -> Given:
    """Options of `kind` from an object, from keywords (an alias among them), or from both, where keywords win.

    Raises `TypeError` for a keyword that is none of them, and `BadInput` for a value that cannot be used.
    """
    names = [one.name for one in option_fields(kind)]
    aliases = {one.alias: one.name for one in option_fields(kind) if one.alias}
    given = {aliases.get(name, name): value for name, value in given.items()}
    for name in given:
        if name not in names:
            raise TypeError(f"{function}() has no option {name!r}; it has {', '.join(names)}")
    if options is not None and not isinstance(options, kind):
        raise TypeError(f"{function}() takes {kind.__name__} as options, not {type(options).__name__}")
    return kind(**given) if options is None else replace(options, **given)


def require(good: bool, name: str, value: Any, remedy: str) -> None:
    """Raise `BadInput` for the option `name` unless `good`."""
    if not good:
        text = f"{value:g}" if isinstance(value, float) else str(value)
        raise BadInput(f"--{name.replace('_', '-')} {text[:200]}: {remedy}")
