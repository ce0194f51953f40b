"""`hf:NAME[:split]`: a data set of the Hugging Face hub, or one in a folder, read by `datasets` as a stream.

`hf:NAME:CONFIG:split` where there are several configurations. A folder may hold files that `datasets` knows (.jsonl,
.csv, .parquet …) or be what `save_to_disk` wrote. Without a split it is `train`, or the only one there is. No code of
a data set is run, and nothing is kept in a cache. A row is read as a value of a .json file is
(`chitchat.data.messages`), or by `--columns`.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chitchat.data.columns import Columns, Row
from chitchat.data.conversation import Conversation, ReadStats
from chitchat.data.messages import conversation_of
from chitchat.errors import BadInput
from serve.digest import sha256

PREFIX = "hf:"
_TIMEOUT_S = 20
_REMEDY = "say with --columns which columns are the conversation, as --columns question,answer or --columns dialog"
_SAVED = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class HubData:
    """What `hf:` names: `spec` as it was given, `name` of the hub or of a folder, `config` and `split` or None."""

    spec: str
    name: str
    config: str | None
    split: str | None

    @classmethod
    def parse(cls, spec: str) -> "HubData":
        """Read `hf:NAME[:CONFIG][:split]`; a folder's name may hold colons. Raises `BadInput` for no name."""
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
        """The name to show and to store, without any path."""
        name = os.path.basename(os.path.abspath(self.name)) if self.local else self.name
        return ":".join([PREFIX + name, *filter(None, (self.config, self.split))])

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return os.path.isdir(self.name)

    @cached_property
    def revision(self) -> str:
        """The commit of the hub that is read. Raises `BadInput` where the hub does not answer."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

        if self.name.startswith((".", "/", "~")) or self.name.count("/") > 1:
            raise BadInput(f"corpus {self.spec!r}: no such folder; give an existing one, or a name of the hub")
        try:
            return str(HfApi().dataset_info(self.name, timeout=_TIMEOUT_S).sha)
        except OfflineModeIsEnabled as error:
            raise self._unreached("HF_HUB_OFFLINE is set") from error
        except HFValidationError as error:
            raise BadInput(
                f"corpus {self.spec!r}: no such folder, and no name of the hub; write hf:OWNER/NAME"
            ) from error
        except RepositoryNotFoundError as error:
            raise BadInput(f"corpus {self.spec!r}: the hub has no data set {self.name}, or it is private") from error
        except Exception as error:
            raise self._unreached(_line(error)) from error

    def sha256(self) -> str:
        """A hash of what is read: of a folder's files, else of the name with its commit."""
        if not self.local:
            return hashlib.sha256(f"{self.spec}@{self.revision}".encode()).hexdigest()
        files = sorted(path for path in Path(self.name).rglob("*") if path.is_file())
        lines = [f"{path.relative_to(self.name)}\0{sha256(path)}\n" for path in files]
        return hashlib.sha256("".join([f"{self.config}\0{self.split}\n", *lines]).encode()).hexdigest()

    def conversations(self, stats: ReadStats, columns: Columns | None) -> Iterator[Conversation]:
        """All conversations of the split. Raises `BadInput` for what cannot be reached or read."""
        with self._rows() as rows:
            placed = ((f"{self.spec}, row {number}", row) for number, row in enumerate(self._guarded(rows), 1))
            if columns is None:
                for where, row in placed:
                    yield conversation_of(row, where, stats, _REMEDY)
            else:
                yield from columns.conversations(_checked(placed, columns), stats)

    @contextmanager
    def _rows(self) -> Iterator[Iterable[Mapping[str, Any]]]:
        """The rows of the split, as `datasets` reads them."""
        from datasets import DownloadConfig, load_dataset, load_from_disk

        folder = Path(self.name)
        with _quiet(), tempfile.TemporaryDirectory(prefix="compress-hf-") as cache:
            if not self.local:
                found = self._loaded(
                    lambda: load_dataset(self.name, self.config, revision=self.revision, streaming=True,
                                         cache_dir=cache, download_config=DownloadConfig(max_retries=1))
                )  # fmt: skip
            elif any((folder / name).is_file() for name in _SAVED):
                found = self._loaded(lambda: load_from_disk(self.name))
            else:
                found = self._loaded(lambda: load_dataset(self.name, self.config, streaming=True, cache_dir=cache))
            yield self._chosen(found)

    def _chosen(self, found: Any) -> Any:
        """The split that is asked for."""
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

    def _loaded(self, load: Any) -> Any:
        try:
            return load()
        except BadInput:
            raise
        except Exception as error:
            raise self._bad(error) from error

    def _guarded(self, rows: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
        """The rows; what `datasets` raises while it reads them in one line."""
        iterator = iter(rows)
        while True:
            try:
                row = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                raise self._bad(error) from error
            yield row

    def _bad(self, error: Exception) -> BadInput:
        return BadInput(f"corpus {self.spec!r}: `datasets` cannot read it ({_line(error)}); try load_dataset on it")

    def _unreached(self, reason: str) -> BadInput:
        return BadInput(
            f"corpus {self.spec!r}: the hub cannot be reached ({reason}); check the network, or give {PREFIX}FOLDER "
            "with a copy (datasets' save_to_disk)"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, `datasets` logs nothing: we report errors ourselves, once."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _checked(rows: Iterable[Row], columns: Columns) -> Iterator[Row]:
    """The rows, once the columns are known to be there."""
    for where, row in rows:
        missing = next((name for name in columns.names if name not in row), None)
        if missing is not None:
            raise BadInput(f"--columns {missing}: {where} has no such column; it has {', '.join(map(str, row))}")
        yield where, row


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
