"""Corpora by name or by file: what `compress data CORPUS...` is given.

A corpus can be iterated any number of times, in a stream; nothing is kept. Named corpora come out of installed
packages: `byu` (chitchat-dataset) and `chatterbot:<language>` (chatterbot-corpus). File forms are in
`chitchat.data.readers`. Nothing is downloaded.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chitchat.data.readers import (
    Conversation,
    Tally,
    alternating,
    merged,
    read_json,
    read_jsonl,
    read_txt,
    stream_items,
)
from chitchat.errors import BadInput
from chitchat.lineage import sha256

_READERS: dict[str, Callable[[Path, Tally], Iterator[Conversation]]] = {
    ".txt": read_txt,
    ".json": read_json,
    ".jsonl": read_jsonl,
}
_NAMES = "byu, chatterbot:<language>"


@dataclass(frozen=True)
class Corpus:
    """A source of conversations: its name, the files that it reads, and how they are read."""

    name: str
    files: tuple[Path, ...]
    read: Callable[[Path, Tally], Iterator[Conversation]]

    def conversations(self, tally: Tally) -> Iterator[Conversation]:
        """All conversations of two turns or more; `tally` counts these and what is left out."""
        for path in self.files:
            for conversation in self.read(path, tally):
                if len(conversation) < 2:
                    tally.short_conversations += 1
                else:
                    tally.conversations += 1
                    yield conversation

    def sha256(self) -> str:
        """Hex sha256 of the file; of several files, over their names and hashes."""
        if len(self.files) == 1:
            return sha256(self.files[0])
        lines = "".join(f"{path.name}\0{sha256(path)}\n" for path in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


def open_corpora(specs: Sequence[str]) -> list[Corpus]:
    """The corpora that are named; raises `BadInput` for the first one that cannot be."""
    if not specs:
        raise BadInput(f"CORPUS: none is given; give files ({', '.join(_READERS)}) or names ({_NAMES})")
    return [open_corpus(spec) for spec in specs]


def open_corpus(spec: str) -> Corpus:
    """One corpus: a file where there is one of that name, else an installed corpus."""
    path = Path(spec)
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise BadInput(
                f"{path}: unknown file ending {path.suffix!r}; a corpus is {', '.join(_READERS)} or one of {_NAMES}"
            )
        return Corpus(path.name, (path,), _READERS[path.suffix.lower()])
    if path.exists():
        raise BadInput(f"{path}: is not a regular file; name the corpus files themselves")
    if spec == "byu":
        return Corpus("byu", (_package("chitchat_dataset", "chitchat-dataset", spec) / "dataset.json",), _read_byu)
    name, _, language = spec.partition(":")
    if name == "chatterbot":
        return _chatterbot(spec, language)
    if path.suffix or path.parent != Path("."):
        raise BadInput(f"{path}: no such file; give an existing {', '.join(_READERS)} file or one of {_NAMES}")
    raise BadInput(
        f"corpus {spec!r}: no such corpus and no such file; there are {_NAMES}, and files {', '.join(_READERS)}"
    )


def _chatterbot(spec: str, language: str) -> Corpus:
    data = _package("chatterbot_corpus", "chatterbot-corpus", spec) / "data"
    languages = sorted(folder.name for folder in data.iterdir() if any(folder.glob("*.yml")))
    if language not in languages:
        raise BadInput(f"corpus {spec!r}: no such language; there are {', '.join(languages)}")
    return Corpus(spec, tuple(sorted((data / language).glob("*.yml"))), _read_chatterbot)


def _package(module: str, package: str, spec: str) -> Path:
    """The folder of an installed package, found without importing it."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise BadInput(
            f"corpus {spec!r}: the package {package} is not installed; run `pip install 'chitchat-compress[demo]'`"
        )
    return Path(found.origin).parent


def _read_byu(path: Path, tally: Tally) -> Iterator[Conversation]:
    """The BYU corpus: an object of conversations, each with groups of utterances by one sender.

    The one who speaks first is the user, everybody else the bot.
    """
    for _, value in stream_items(path):
        utterances = [utterance for group in value["messages"] for utterance in group]
        first = utterances[0]["sender"] if utterances else None
        yield merged([(said["sender"], said["sender"] != first, said["text"]) for said in utterances], tally)


def _read_chatterbot(path: Path, tally: Tally) -> Iterator[Conversation]:
    import yaml

    # BaseLoader keeps every scalar a string: "Yes" and "42" are things people say, not values.
    loader = partial(yaml.load, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    content = loader(path.read_text(encoding="utf-8"))
    for conversation in content.get("conversations") or []:
        yield alternating([_spoken(line) for line in conversation], tally)


def _spoken(line: Any) -> str:
    """A line of a YAML conversation; one with a colon in it was read as a mapping."""
    if isinstance(line, dict):
        return ", ".join(f"{key}: {_spoken(value)}" for key, value in line.items())
    return " ".join(map(_spoken, line)) if isinstance(line, list) else str(line)
