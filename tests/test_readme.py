"""README tells the truth about the tree and the command line."""

import re
from pathlib import Path

from chitchat_compress.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("chitchat", "compress", "serve", "export", "bench", "chitchat_compress")


def tree_in_readme() -> set[str]:
    """Files that the annotated tree names, by their path."""
    (tree,) = re.findall(r"## The tree\n.*?```text\n(.*?)```", README, re.DOTALL)
    named: set[str] = set()
    folders: list[str] = []
    for line in tree.splitlines():
        entry = re.match(r"( *)([\w.-]+/?)(?: |$)", line)
        assert entry, f"README's tree has a line without a name: {line!r}"
        depth = len(entry[1]) // 2
        folders = folders[:depth]
        if entry[2].endswith("/"):
            folders.append(entry[2])
        else:
            named.add("".join(folders) + entry[2])
    return named


def tree_on_disk() -> set[str]:
    """Source files and recipes that a newcomer finds, package markers left out."""
    files = {path for room in ROOMS for pattern in ("*.py", "*.yaml") for path in (ROOT / room).rglob(pattern)}
    return {str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py"}


def test_the_annotated_tree_is_the_tree_on_disk() -> None:
    """A tree that lags behind sends newcomers to files that are gone."""
    assert tree_in_readme() == tree_on_disk()


def test_every_make_target_that_readme_names_exists() -> None:
    """README once told people to `make bench`."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_every_verb_is_in_readme_and_every_verb_in_readme_exists() -> None:
    """The table of verbs is the one place where people look."""
    named = set(re.findall(r"^compress ([a-z]+)", README, re.MULTILINE))
    assert named == set(COMMANDS)
