"""README and docs/ tell the truth about the tree, the command line, the make targets and each other."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import chitchat_compress
from bench.peers.registry import PEERS
from chitchat_compress.cli.app import COMMANDS, command_page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("chitchat", "compress", "serve", "export", "bench", "chitchat_compress")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def tree_in_docs() -> set[str]:
    """Files that the annotated tree names, by their path."""
    (tree,) = re.findall(r"## The tree\n.*?```text\n(.*?)```", ARCHITECTURE, re.DOTALL)
    named: set[str] = set()
    folders: list[str] = []
    for line in tree.splitlines():
        entry = re.match(r"( *)([\w.-]+/?) +\S", line)
        assert entry, f"the tree has a line without a name or without words: {line!r}"
        depth = len(entry[1]) // 2
        folders = folders[:depth]
        if entry[2].endswith("/"):
            folders.append(entry[2])
        else:
            named.add("".join(folders) + entry[2])
    return named


def tree_on_disk() -> set[str]:
    """Source files and recipes that a newcomer finds, package markers left out."""
    files = {path for package in PACKAGES for pattern in ("*.py", "*.yaml") for path in (ROOT / package).rglob(pattern)}
    names = {str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py"}
    return names | {"chitchat_compress/__init__.py"}  # the one with something in it: the Python API


def test_the_annotated_tree_is_the_tree_on_disk() -> None:
    """A tree that lags behind sends newcomers to files that are gone."""
    named, there = tree_in_docs(), tree_on_disk()
    missing = "".join(f"\n  + {name}" for name in sorted(there - named))
    gone = "".join(f"\n  - {name}" for name in sorted(named - there))
    differences = missing + gone
    assert not differences, f"docs/architecture.md, the tree: write (+) and remove (-){differences}"


def test_readme_stays_short() -> None:
    """It had 572 lines once, and nobody reached the part that they needed."""
    assert len(README.splitlines()) <= 150


def test_every_make_target_that_is_named_exists() -> None:
    """README once told people to `make bench`."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^ *|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, f"{page.relative_to(ROOT)}: {sorted(named - targets)}"
    assert {"demo", "test"} <= set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))


def test_every_verb_is_in_readme_and_every_verb_in_readme_exists() -> None:
    """The list of verbs is the one place where people look."""
    assert set(re.findall(r"^compress ([a-z]+)", README, re.MULTILINE)) == {*COMMANDS}


def test_every_option_that_is_named_exists() -> None:
    """An option was renamed, and the page that explains it kept the old name."""
    options = set(re.findall(r"--[a-z][a-z-]+", command_page()))
    for page in PAGES:
        if page.name not in ("CHANGELOG.md", "CONTRIBUTING.md"):  # the past, and options of other programs
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
            assert named <= options, f"{page.relative_to(ROOT)}: {sorted(named - options)}"


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page that point into the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"[a-z]+:|#", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    """Pages move; those who read them on the disk or in a repository's view follow the links too."""
    for target in links(page):
        assert (page.parent / target.partition("#")[0]).exists(), f"{target} leads nowhere"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """A page that names `serve/quiet.py` sends people there."""
    tops = "|".join([*PACKAGES, "tests", "docs", "examples"])
    named = re.findall(rf"`((?:{tops})/[\w./-]+\.(?:py|yaml|md|ipynb))`", page.read_text(encoding="utf-8"))
    gone = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert gone == []


def test_the_picture_shows_what_the_table_says() -> None:
    """Figures are replaced in the table, and the picture above it goes on telling the old ones."""
    spec = importlib.util.spec_from_file_location("draw_demo", ROOT / "docs" / "images" / "draw_demo.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    picture = (ROOT / "docs" / "images" / "demo.svg").read_text(encoding="utf-8")
    assert module.draw(README) == picture, "run `python docs/images/draw_demo.py`"


def test_the_newest_release_is_the_version_without_git() -> None:
    """An archive of the sources, which has no tags, calls itself something older."""
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools_scm"]["fallback_version"] == releases[0]


def test_the_page_of_the_python_api_has_every_public_name() -> None:
    """A function that no page names is found by nobody."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE))
    assert named == {*chitchat_compress.__all__}


def test_the_page_of_peers_has_every_peer_with_its_formats() -> None:
    """A peer is found by whoever reads the page, or not at all."""
    rows = re.findall(
        r"^\| `([\w.-]+)` \| .* \| (.*) \| .* \|$", (ROOT / "docs" / "peers.md").read_text(), re.MULTILINE
    )
    assert {name: tuple(formats.split(", ")) for name, formats in rows} == {
        name: peer.weight_formats for name, peer in PEERS.items()
    }
