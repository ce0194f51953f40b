"""What `help()`, editors and the documentation see of a function that takes its options as keywords."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from chitchat.options import Options, option_fields

Function = TypeVar("Function", bound=Callable[..., Any])


def takes(kind: type[Options]) -> Callable[[Function], Function]:
    """Put the options of `kind` into the signature of a function with `**given`, and into its docstring."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        listed = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=one.kind | None if one.optional else one.kind,
            )
            for one in option_fields(kind)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *listed])  # type: ignore[attr-defined]
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_listed(kind)}\n"
        return function

    return decorate


def _listed(kind: type[Options]) -> str:
    """The options, a line each, as a docstring has them."""
    lines = [f"Options, as keywords or as one `{kind.__name__}` given as `options` (keywords win):", ""]
    for one in option_fields(kind):
        notes = [note for note in (one.unit, one.limits, " | ".join(one.choices)) if note]
        lines.append(f"- `{one.name}`: {one.help}" + (f" [{', '.join(notes)}]" if notes else ""))
    return "\n".join(lines)
