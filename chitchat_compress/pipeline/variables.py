"""Environment variables in the values of a recipe: `${NAME}`, and `${NAME:-default}` for one that need not be set.

As in a shell, an empty variable counts as not set. A value that is one variable and nothing else is read as if its
content stood in the recipe, so that `keep: ${KEEP:-0.5}` is a number. There is no nesting and no other expansion.
"""

import re
from collections.abc import Mapping

import yaml

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}")


class Unset(ValueError):
    """A variable without a default that is not set. `name` is its name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"${{{name}}} is not set in the environment")
        self.name = name


def expand(text: str, environment: Mapping[str, str]) -> str | int | float | bool:
    """`text` with its variables replaced. Raises `Unset`, and `ValueError` for a `${` that begins no variable."""

    def content(found: re.Match[str]) -> str:
        held = environment.get(found["name"]) or found["default"]
        if held is None:
            raise Unset(found["name"])
        return held

    if "${" in _VARIABLE.sub("", text):
        raise ValueError(f"{text!r} has a ${{ that begins no variable; write ${{NAME}} or ${{NAME:-default}}")
    expanded = _VARIABLE.sub(content, text)
    return _plain(expanded) if _VARIABLE.fullmatch(text) else expanded


def _plain(text: str) -> str | int | float | bool:
    """The number or truth value that YAML reads in a text, else the text itself."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float) else text
