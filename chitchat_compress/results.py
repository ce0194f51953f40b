"""What a stage gives back: the folder that it wrote, and its figures. It can be handed on wherever a path can."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result(os.PathLike[str]):
    """The folder of a data set, checkpoint, bundle or report, and the figures that the command line prints."""

    path: Path
    figures: dict[str, Any] = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The records of the stages that led here, oldest first; [] for a report."""
        manifest = self.path / "bundle.json"
        if manifest.is_file():
            return list(json.loads(manifest.read_text(encoding="utf-8"))["lineage"])
        from chitchat.lineage import read_lineage

        return read_lineage(self.path)


@dataclass(frozen=True)
class Report(Result):
    """The folder of a bench. `figures` is the whole of report.json, which `bench.report.document` describes."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One object a model, in the order given; the first is what ratios refer to."""
        return list(self.figures["rows"])

    def to_pandas(self) -> Any:
        """The rows as a DataFrame, a column a figure. Raises `ModuleNotFoundError` where pandas is not installed."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            remedy = "`pip install pandas`, or take `.rows`"
            raise ModuleNotFoundError(f"to_pandas: pandas is not installed; {remedy}", name="pandas") from error
        return pandas.DataFrame(self.rows)


def out_folder(out: str | os.PathLike[str] | None, source: str | os.PathLike[str], stage: str) -> Path:
    """`out`, or the folder beside `source` that is named after it and the stage: `teacher` → `teacher-pruned`.

    Suffixes of a file go (`talks.jsonl` → `talks-data`), a `:` becomes `-`. What is no path here, a hub id or an
    installed corpus, gives a folder in the working folder: `someone/model` → `model-pruned`.
    """
    if out is not None:
        return Path(out)
    path = Path(source).expanduser()
    if not path.name or path.name == "..":
        path = path.resolve()
    name = path.name.split(".")[0] or path.name if path.is_file() else path.name
    folder = path.parent if path.exists() else Path()
    return folder / f"{name.replace(':', '-')}-{stage}"
