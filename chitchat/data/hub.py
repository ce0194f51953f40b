"""`hf:NAME[:split]`: a data set of the Hugging Face hub, or one in a folder, read by `datasets` as a stream.

`hf:NAME:CONFIG:split` where there are several configurations. A folder holds files that `datasets` knows (.jsonl, .csv,
.parquet …), or was written by `save_to_disk`. The default split is `train`, or the only one. No code of a data set is
run, and nothing stays in a cache. A row is read like an item of a .json file (`chitchat.data.messages`), or by
`--columns`.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chitchat.data.columns import Columns, Row
from chitchat.data.conversation import Conversation, ReadStats
from chitchat.data.messages import conversation_of
from chitchat.errors import BadInput, one_line
from serve.digest import sha256

PREFIX = "hf:"
_TIMEOUT_S = 20
_REMEDY = "say with --columns which columns are the conversation, as in --columns question,answer"
_SAVED = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class HubData:
    """A data set: `spec` as given, `name` of the hub or of a folder, `config` and `split` or None."""

    spec: str
    name: str
    config: str | None
    split: str | None

    @classmethod
    def parse(cls, spec: str) -> "HubData":
        """Parse `hf:NAME[:CONFIG][:split]`; a folder's name may hold colons. Raises `BadInput` without a name."""
        rest = spec.removeprefix(PREFIX)
        parts = rest.split(":")
        for count in range(len(parts), 0, -1):
            name, more = ":".join(parts[:count]), parts[count:]
            if len(more) <= 2 and name and (count == 1 or os.path.isdir(name)):
                break
        else:
            name, more = parts[0], parts[1:]
        if not name or not all(more) or len(more) > 2:
            raise BadInput(f"corpus {spec!r}: write hf:NAME, hf:NAME:split or hf:NAME:config:split")
        return cls(spec, name, more[0] if len(more) == 2 else None, more[-1] if more else None)

    @property
    def title(self) -> str:
        """The name to show and to store, without a path."""
        name = os.path.basename(os.path.abspath(self.name)) if self.local else self.name
        return ":".join([PREFIX + name, *filter(None, (self.config, self.split))])

    @property
    def local(self) -> bool:
        """Whether it is a local folder."""
        return os.path.isdir(self.name)

    @cached_property
    def revision(self) -> str:
        """The commit on the hub. Raises `BadInput` where the hub does not answer."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

        if self.name.startswith((".", "/", "~")) or self.name.count("/") > 1:
            raise BadInput(f"corpus {self.spec!r}: no such folder; give an existing one, or a name of the hub")
        try:
            return str(HfApi().dataset_info(self.name, timeout=_TIMEOUT_S).sha)
        except OfflineModeIsEnabled as error:
            raise self._unreached("HF_HUB_OFFLINE is set") from error
        except HFValidationError as error:
            raise BadInput(f"corpus {self.spec!r}: no such folder or name of the hub; write hf:OWNER/NAME") from error
        except RepositoryNotFoundError as error:
            raise BadInput(f"corpus {self.spec!r}: the hub has no data set {self.name}, or it is private") from error
        except Exception as error:
            raise self._unreached(one_line(error, 200)) from error

    def sha256(self) -> str:
        """A hash of a folder's files, or of the name with its commit."""
        if not self.local:
            return hashlib.sha256(f"{self.spec}@{self.revision}".encode()).hexdigest()
        files = sorted(path for path in Path(self.name).rglob("*") if path.is_file())
        lines = [f"{path.relative_to(self.name)}\0{sha256(path)}\n" for path in files]
        return hashlib.sha256("".join([f"{self.config}\0{self.split}\n", *lines]).encode()).hexdigest()

    def conversations(self, stats: ReadStats, columns: Columns | None) -> Iterator[Conversation]:
        """All conversations of the split. Raises `BadInput` for what cannot be reached or read."""
        with closing(self._rows()) as rows:
            numbered = ((f"{self.spec}, row {number}", row) for number, row in enumerate(rows, 1))
            if columns is None:
                for where, row in numbered:
                    yield conversation_of(row, where, stats, _REMEDY)
            else:
                yield from columns.conversations(_checked(numbered, columns), stats)

    def _rows(self) -> Generator[Mapping[str, Any]]:
        """The rows of the split, as `datasets` reads them."""
        with _quiet(), tempfile.TemporaryDirectory(prefix="compress-hf-") as cache:
            try:
                yield from self._split_of(self._load(cache))
            except BadInput:
                raise
            except Exception as error:
                reason = one_line(error, 200)
                raise BadInput(
                    f"corpus {self.spec!r}: `datasets` cannot read it ({reason}); try load_dataset on it"
                ) from error

    def _load(self, cache: str) -> Any:
        from datasets import DownloadConfig, load_dataset, load_from_disk

        if any((Path(self.name) / name).is_file() for name in _SAVED):
            return load_from_disk(self.name)
        remote = {"revision": self.revision, "download_config": DownloadConfig(max_retries=1)} if not self.local else {}
        return load_dataset(self.name, self.config, streaming=True, cache_dir=cache, **remote)

    def _split_of(self, found: Any) -> Any:
        """The rows of the wanted split."""
        if not isinstance(found, Mapping):
            if self.split not in (None, "train"):
                raise BadInput(f"corpus {self.spec!r}: is one data set without splits; leave :{self.split} out")
            return found
        wanted = self.split or ("train" if "train" in found or len(found) != 1 else next(iter(found)))
        if wanted not in found:
            raise BadInput(
                f"corpus {self.spec!r}: no split {wanted}; {self.name} has {', '.join(map(str, found)) or 'none'}, "
                f"give one, as {PREFIX}{self.name}:{next(iter(found), 'train')}"
            )
        return found[wanted]

    def _unreached(self, reason: str) -> BadInput:
        return BadInput(
            f"corpus {self.spec!r}: the hub cannot be reached ({reason}); check the network, or give {PREFIX}FOLDER "
            "with a copy (datasets' save_to_disk)"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which `datasets` logs nothing: its errors are reported once, as `BadInput`."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _checked(rows: Iterable[Row], columns: Columns) -> Iterator[Row]:
    """The rows, each checked to have the columns."""
    for where, row in rows:
        missing = next((name for name in columns.names if name not in row), None)
        if missing is not None:
            raise BadInput(f"--columns {missing}: {where} has no such column; it has {', '.join(map(str, row))}")
        yield where, row
