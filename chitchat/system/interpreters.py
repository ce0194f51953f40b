"""Interpreters of other virtual environments, for tools whose packages conflict with those of this one.

`make portable` and `make peers` make such environments. Each is given by an option or a variable, or found where make
puts it: in the current folder, in the project's, or beside the virtual environment of this process.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chitchat.errors import BadInput
from chitchat.system.child import PROJECT, child_environment

_PROBE = """
import importlib.util, sys
try:
    found = all(importlib.util.find_spec(name) for name in sys.argv[1:])
except ModuleNotFoundError:
    found = False
sys.exit(0 if found else 3)
"""
_PROBE_S = 120.0  # enough for a cold disk


@dataclass(frozen=True)
class Environment:
    """A virtual environment: its default folder, the option and the variable for another one, and how it is made."""

    folder: str
    option: str
    variable: str
    make: str
    extra: str
    pythons: str = ""  # the Python versions that it needs, if they are fewer than this project's

    @property
    def remedy(self) -> str:
        """What to do if it is missing."""
        pip = f"{self.folder}/bin/python -m pip"
        return (
            f"{self.make} (without the project's folder: python3 -m venv {self.folder} && {pip} install "
            f"'chitchat-compress[{self.extra}]'{self.pythons}), or name its interpreter by {self.option}"
        )


# On Python 3.14 optimum 2.1 ends in a TypeError: a `functools.partial` in a class is a method there.
PORTABLE = Environment(
    ".venv-portable",
    "--portable-python",
    "PORTABLE_PYTHON",
    "make portable",
    "portable",
    ", with Python 3.11 to 3.13",
)
PEERS = Environment(".venv-peers", "--peers-python", "PEERS_PYTHON", "make peers", "peers")


def find_interpreter(environment: Environment, given: str | None, modules: tuple[str, ...]) -> str | None:
    """The interpreter that has all of `modules`: the one given by option or variable, else one in a default place.

    None if there is none. Raises `BadInput` for a given one that cannot be run.
    """
    named = named_interpreter(environment, given)
    for how, python in [named] if named else _default_places(environment):
        try:
            if has_modules(python, modules):
                return python
        except OSError as error:  # in a default place: incomplete, or copied from another machine
            if how:
                reason = error.strerror or error
                raise BadInput(f"{how} {python}: cannot be run ({reason}); make it with {environment.make}") from error
    return None


def named_interpreter(environment: Environment, given: str | None) -> tuple[str, str] | None:
    """The option or variable that gives an interpreter, and the interpreter; None if none is given."""
    for how, python in ((environment.option, given), (environment.variable, os.environ.get(environment.variable))):
        if python:
            return how, python
    return None


def has_modules(python: str, modules: tuple[str, ...]) -> bool:
    """Whether an interpreter has all of `modules`, without importing them. Raises OSError if it cannot be run."""
    try:
        command = [python, "-c", _PROBE, *modules]
        done = subprocess.run(command, capture_output=True, env=child_environment(), timeout=_PROBE_S)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"no answer in {_PROBE_S:g} s") from error
    return done.returncode == 0


def _default_places(environment: Environment) -> Iterator[tuple[str, str]]:
    # Links are not resolved: the target of an environment's python has none of its packages.
    folders = (Path.cwd(), PROJECT, Path(sys.prefix).parent)
    for folder in dict.fromkeys(folders):
        python = folder / environment.folder / "bin" / "python"
        if python.is_file():
            yield "", str(python)
