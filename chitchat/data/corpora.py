"""Corpora by name or by file: the arguments of `compress data CORPUS...`.

A corpus is a stream that can be iterated any number of times. Files are read by their ending, which `.gz` or `.zst` may
follow. Named corpora are in installed packages: `byu` (chitchat-dataset) and `chatterbot:<language>`
(chatterbot-corpus); nothing is downloaded for them. `hf:NAME` is in `chitchat.data.hub`.
"""

import errno
import hashlib
import importlib.util
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.data.columns import Columns
from chitchat.data.conversation import Conversation, Message, ReadStats, alternating, merged
from chitchat.data.hub import PREFIX, HubData
from chitchat.data.json_stream import stream_items
from chitchat.data.pickled import read_pickle
from chitchat.data.readers import read_dialogpt, read_json, read_jsonl, read_txt
from chitchat.data.tables import read_table
from chitchat.errors import BadInput
from chitchat.text.archive import PACKINGS, form_of
from serve.digest import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Reader = Callable[[Path, ReadStats], Iterator[Conversation]]
_READERS: dict[str, Reader] = {
    ".txt": read_txt,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_table,
    ".tsv": read_dialogpt,
    ".pkl": read_pickle,
}
_OTHER_ENDINGS = {".ndjson": ".jsonl", ".pickle": ".pkl"}
_ENDINGS = ", ".join(_READERS)
_NAMES = f"byu, chatterbot:<language>, {PREFIX}NAME[:split]"


@dataclass(frozen=True)
class Corpus:
    """A source of conversations: its name, its files, and their reader.

    `in_ids`: it holds token ids, and needs their tokenizer. `tabular`: it takes `--columns`. `hub` is a data set of
    `datasets`, which is read in place of files.
    """

    name: str
    files: tuple[Path, ...]
    read: Reader
    in_ids: bool = False
    tabular: bool = False
    hub: HubData | None = None

    def conversations(self, stats: ReadStats) -> Iterator[Conversation]:
        """All conversations of at least two turns; `stats` counts these and what is left out."""
        for path in self.files or (Path(),):
            for conversation in self.read(path, stats):
                if len(conversation) < 2:
                    stats.short_conversations += 1
                else:
                    stats.conversations += 1
                    yield conversation

    def read_by(self, columns: Columns | None, tokenizer: "PreTrainedTokenizerFast | None") -> "Corpus":
        """The corpus with the columns or the tokenizer that its reader needs."""
        if self.in_ids:
            return replace(self, read=partial(read_pickle, tokenizer=tokenizer))
        if self.tabular and columns is not None:
            return replace(self, read=_table_reader(self.hub, columns))
        return self

    def check(self) -> None:
        """Read the first conversation, to find an unreadable file before any work. Raises `BadInput`."""
        next(iter(self.conversations(ReadStats())), None)

    def sha256(self) -> str:
        """Hex sha256 of the file; of several files, over their names and hashes."""
        if self.hub is not None:
            return self.hub.sha256()
        if len(self.files) == 1:
            return sha256(self.files[0])
        lines = "".join(f"{path.name}\0{sha256(path)}\n" for path in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


def open_corpora(specs: Sequence[str]) -> list[Corpus]:
    """The named corpora. Raises `BadInput` for the first one that cannot be opened."""
    if not specs:
        raise BadInput(f"CORPUS: is missing; give files ({_ENDINGS}) or names ({_NAMES})")
    return [open_corpus(spec) for spec in specs]


def open_corpus(spec: str) -> Corpus:
    """One corpus: a file if there is one of that name, else an installed corpus or a data set of `datasets`."""
    path = Path(spec)
    try:  # not Path.is_file, which hides a lack of permission since Python 3.14
        if stat.S_ISREG(path.stat().st_mode):
            return _file(path)
        raise BadInput(f"{path}: is not a regular file{_files_in(path)}; name the corpus files themselves")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            reason = f"cannot be opened ({error.strerror}); check the path and its permissions"
            raise BadInput(f"{spec[:200]}: {reason}") from error
    except ValueError:  # a NUL in the name
        pass
    if spec.startswith(PREFIX):
        hub = HubData.parse(spec)
        return Corpus(hub.title, (), _table_reader(hub, None), tabular=True, hub=hub)
    if spec == "byu":
        return Corpus("byu", (_package("chitchat_dataset", "chitchat-dataset", spec) / "dataset.json",), _read_byu)
    name, _, language = spec.partition(":")
    if name == "chatterbot":
        return _chatterbot(spec, language)
    if path.is_symlink():
        raise BadInput(f"{path}: is a link to a missing file; give an existing file")
    if path.suffix or path.parent != Path("."):
        raise BadInput(f"{path}: no such file; give an existing {_ENDINGS} file or one of {_NAMES}")
    raise BadInput(f"corpus {spec!r}: no such corpus or file; give {_NAMES}, or a file ({_ENDINGS})")


def _file(path: Path) -> Corpus:
    ending = form_of(path)[0]
    form = _OTHER_ENDINGS.get(ending, ending)
    if form not in _READERS:
        raise BadInput(
            f"{path}: unknown file ending {ending!r}; give {_ENDINGS}, compressed or not ({', '.join(PACKINGS)}), "
            f"or one of {_NAMES}"
        )
    return Corpus(path.name, (path,), _READERS[form], in_ids=form == ".pkl", tabular=form in (".csv", ".tsv"))


def _table_reader(hub: HubData | None, columns: Columns | None) -> Reader:
    """The reader of a table, or of a data set, by `columns`."""
    if hub is None:
        return partial(read_table, columns=columns)
    return lambda _, stats: hub.conversations(stats, columns)


def _files_in(path: Path) -> str:
    """The corpus files in a folder, for an error."""
    try:
        listed = sorted(path.iterdir()) if path.is_dir() else []
        files = [file for file in listed if form_of(file)[0] in _READERS and file.is_file()]
    except OSError:
        files = []
    return f" (it contains {', '.join(map(str, files[:3]))}{' …' if len(files) > 3 else ''})" if files else ""


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


def _read_byu(path: Path, stats: ReadStats) -> Iterator[Conversation]:
    """The BYU corpus: an object of conversations, each with groups of utterances by one sender, the user first."""
    for _, value in stream_items(path):
        utterances = [utterance for group in value["messages"] for utterance in group]
        first = utterances[0]["sender"] if utterances else None
        yield merged([Message(line["sender"], line["sender"] != first, line["text"]) for line in utterances], stats)


def _read_chatterbot(path: Path, stats: ReadStats) -> Iterator[Conversation]:
    import yaml

    # BaseLoader keeps every scalar a string: "Yes" and "42" are texts here.
    loader = partial(yaml.load, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    content = loader(path.read_text(encoding="utf-8"))
    for conversation in content.get("conversations") or []:
        yield alternating([_yaml_text(line) for line in conversation], stats)


def _yaml_text(line: Any) -> str:
    """A line of a YAML conversation as text; YAML reads one with a colon as a mapping."""
    if isinstance(line, dict):
        return ", ".join(f"{key}: {_yaml_text(value)}" for key, value in line.items())
    return " ".join(map(_yaml_text, line)) if isinstance(line, list) else str(line)
