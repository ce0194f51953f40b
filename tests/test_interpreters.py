"""Other virtual environments: where their interpreters are found, and their modules."""

import sys
from pathlib import Path

import pytest

import chitchat.system.child
import chitchat.system.interpreters
from chitchat.errors import BadInput
from chitchat.system.child import child_environment
from chitchat.system.interpreters import Environment, find_interpreter, has_modules

APART = Environment(".venv-apart", "--apart-python", "APART_PYTHON", "make apart", "apart")
HERE = ("json", "email.mime")
ABSENT = ("json", "no_such_module_x.y")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment is in any of the places yet."""
    for place in ("current", "project", "installed"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setattr(chitchat.system.interpreters, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "installed" / "venv"))


def make(folder: Path) -> str:
    """An environment there: its python is a link, as venv makes them."""
    python = folder / APART.folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_an_interpreter_has_the_modules_or_not() -> None:
    """Stops a row that fails at the import without naming what is missing."""
    assert has_modules(sys.executable, HERE)
    assert not has_modules(sys.executable, ABSENT)
    assert not has_modules(sys.executable, ("json.no_such_module_x",))


def test_it_is_found_in_the_current_folder_then_beside_the_project_then_beside_the_environment(tmp_path: Path) -> None:
    """A command that was typed in another folder said that nothing was installed."""
    assert find_interpreter(APART, None, HERE) is None
    for place in ("installed", "project", "current"):
        python = make(tmp_path / place)
        assert find_interpreter(APART, None, HERE) == python
    assert find_interpreter(APART, None, ABSENT) is None


def test_an_incomplete_environment_is_skipped(tmp_path: Path) -> None:
    """A python that cannot start hid the good environment beside the project."""
    Path(make(tmp_path / "current")).write_text("#!/no/such/interpreter\n")
    python = make(tmp_path / "project")
    assert find_interpreter(APART, None, HERE) == python


def test_a_given_interpreter_is_the_only_one_that_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a measurement in another environment than the one that was named."""
    make(tmp_path / "current")
    monkeypatch.setenv("APART_PYTHON", str(tmp_path / "variable"))
    with pytest.raises(BadInput, match=r"^--apart-python .*/option: cannot be run .*make apart"):
        find_interpreter(APART, str(tmp_path / "option"), HERE)
    with pytest.raises(BadInput, match=r"^APART_PYTHON .*/variable: cannot be run .*make apart"):
        find_interpreter(APART, None, HERE)
    assert find_interpreter(APART, sys.executable, ABSENT) is None
    assert find_interpreter(APART, sys.executable, HERE) == sys.executable


def test_packages_of_this_environment_do_not_hide_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed project put its site-packages before the other's, and optimum imported the wrong transformers."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(chitchat.system.child, "PROJECT", tmp_path / "checkout")
    assert child_environment()["PYTHONPATH"] == str(tmp_path / "checkout")
    monkeypatch.setattr(chitchat.system.child, "PROJECT", tmp_path / "lib" / "site-packages")
    assert "PYTHONPATH" not in child_environment()
