"""Interpreters of other environments: tools that cannot live beside ours are installed apart and run from there.

`make portable` and `make peers` build such environments. Each is named by an option or a variable, or it is found
where make puts it: in the current folder, beside the project, or beside the virtual environment that runs us.
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
_PROBE_S = 120.0  # a cold disk; an interpreter that never answers must not hang us


@dataclass(frozen=True)
class Environment:
    """An environment of its own: its default folder, how another one is named, and how it is made."""

    folder: str
    option: str
    variable: str
    make: str
    extra: str
    pythons: str = ""  # the versions that it can be made with, where they are fewer than ours

    @property
    def remedy(self) -> str:
        """What to type where there is none."""
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
    """An interpreter that has all of `modules`: the one that is named (`given`, or by the variable), else a found one.

    None where there is none. Raises `BadInput` for a named one that cannot be run.
    """
    named = named_interpreter(environment, given)
    if named is not None:
        how, python = named
        try:
            return python if has_modules(python, modules) else None
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(f"{how} {python}: cannot be run ({reason}); make it with {environment.make}") from error
    for python in _default_places(environment):
        try:
            if has_modules(python, modules):
                return python
        except OSError:  # a folder from another machine, or half a one
            continue
    return None


def named_interpreter(environment: Environment, given: str | None) -> tuple[str, str] | None:
    """How an interpreter is named (option or variable), and which one; None where none is."""
    for how, python in ((environment.option, given), (environment.variable, os.environ.get(environment.variable))):
        if python:
            return how, python
    return None


def has_modules(python: str, modules: tuple[str, ...]) -> bool:
    """Whether an interpreter finds all of `modules`, which are not imported. Raises OSError for one that cannot run."""
    try:
        command = [python, "-c", _PROBE, *modules]
        done = subprocess.run(command, capture_output=True, env=child_environment(), timeout=_PROBE_S)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"no answer in {_PROBE_S:g} s") from error
    return done.returncode == 0


def _default_places(environment: Environment) -> Iterator[str]:
    # Not resolved: an environment's python is a link, and what it points to has none of the packages.
    folders = (Path.cwd(), PROJECT, Path(sys.prefix).parent)
    for folder in dict.fromkeys(folders):
        python = folder / environment.folder / "bin" / "python"
        if python.is_file():
            yield str(python)
