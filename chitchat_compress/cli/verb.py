"""How an options class becomes options of the command line: cyclopts reads the fields that everybody reads."""

from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from cyclopts import Group, Parameter

from chitchat.options import GROUP, OptionField, Options, option_fields

Verb = TypeVar("Verb", bound=Callable[..., Any])
OPTIONS = Group.create_ordered(GROUP)  # the first panel, with what a command needs


def verb(function: Verb) -> Verb:
    """Let cyclopts see each field of an argument that is an options class as an option of its own.

    The argument is None where no option was typed.
    """
    for name, hint in get_type_hints(function, include_extras=True).items():
        for member in get_args(hint):
            if isinstance(member, type) and issubclass(member, Options):
                kind: Any = member
                function.__annotations__[name] = Annotated[_for_cyclopts(kind), Parameter(name="*")]
    return function


@cache
def _for_cyclopts(kind: Any) -> Any:
    """A subclass of the options class whose fields say to cyclopts what they say to everybody."""
    known = {one.name: one for one in option_fields(kind)}
    described = [
        (one.name, _hint(known[one.name]), field(default=one.default, metadata=one.metadata))
        for one in fields(kind)
        if one.name in known
    ]
    hidden = [
        (one.name, Annotated[one.type, Parameter(parse=False)], field(default=one.default))
        for one in fields(kind)
        if one.name not in known
    ]
    home = {"__module__": kind.__module__}  # of "types" cyclopts takes it for a builtin
    return make_dataclass(
        kind.__name__, [*described, *hidden], bases=(kind,), namespace=home, frozen=True, kw_only=True
    )


def _hint(one: OptionField) -> Any:
    notes = ", ".join(note for note in (one.unit, one.limits) if note)
    parameter = Parameter(
        alias=f"--{one.alias}" if one.alias else None,
        help=one.help + (f" [{notes}]" if notes else ""),
        group=_group(one.group),
        allow_leading_hyphen=one.stdin,
        show_default=one.default is not None and one.kind is not bool,
    )
    return Annotated[one.kind | None if one.optional else one.kind, parameter]


@cache
def _group(name: str) -> Group:
    """The panel of `--help` with that heading, in the order of first use."""
    return OPTIONS if name == GROUP else Group.create_ordered(name)
