"""Work folders: the files from which a killed training, healing or pruning is resumed.

A process can be killed at any time, so files are replaced atomically, and folders are complete or ignored.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput
from chitchat.system.folder import is_disk_full, write_json
from chitchat.training.distributed import Distributed
from chitchat.training.rate import Decision
from chitchat.training.stopwatch import CLOCK, Stopwatch

MARKER = "complete"
PLAN, DECISIONS = "plan.json", "decisions.json"
_CHECKPOINT = "checkpoint-"


class WorkFolder:
    """The finished part of a run, from which the same command with --resume continues.

    The folder is beside the output (`.NAME.training/`) during the run; the main process writes it. A decision (a plan,
    a budget) is a JSON file with the `key` that it is valid for: options, hashes of the inputs.
    """

    def __init__(self, path: Path, distributed: Distributed | None = None) -> None:
        self.path = Path(os.path.abspath(path))
        self.distributed = distributed or Distributed()

    @contextmanager
    def resumable(
        self,
        file: str,
        key: Mapping[str, Any],
        resume: bool,
        stopwatch: Stopwatch,
        resume_point: Callable[[BaseException], str | None],
    ) -> Iterator[None]:
        """A context for the run, which every process enters; the folder is empty at first, unless it is to `resume`.

        The seconds of the `stopwatch` are kept in the folder. After an error the folder is kept if `resume_point` of
        the error gives the point from which a resume would continue ("step 30"), else it is removed. Raises `BadInput`
        for a resume whose `file` has another key, and for a full disk; Ctrl-C gets a message about resuming.
        """

        def begin() -> None:
            if resume:
                read_keyed(self.path / file, key)
                self.sweep()
            else:
                self.remove()
            stopwatch.keep_in(self.path / CLOCK, resume)

        self.distributed.run_on_main(begin)
        try:
            yield
        except BaseException as error:
            point = None
            if self.distributed.is_main:
                self.sweep()
                point = resume_point(error)
                if point is None:
                    self.remove()
            if isinstance(error, KeyboardInterrupt) and self.distributed.is_main:
                message = f"stopped; the same command with --resume goes on from {point}"
                raise KeyboardInterrupt(*(error.args or [message]) if point else ()) from error
            if is_disk_full(error) and not isinstance(error, BadInput):
                remedy = "free some space or choose another disk"
                raise BadInput(f"--out: the disk is full ({self.path}); {remedy}") from error
            raise

    def decide(self, file: str, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The decision in `file`, else that of `make` in the main process, which is written there.

        Every process calls this and `make`, and gets the same values. Raises `BadInput` if the file has another key.
        """
        values = self.distributed.run_on_main(lambda: read_keyed(self.path / file, key))
        if values is None:
            values = dict(self.distributed.broadcast(make()))
            self.distributed.run_on_main(lambda: write_json(self.path / file, {"key": key, **values}))
        return {name: value for name, value in values.items() if name != "key"}

    def sweep(self) -> None:
        """Remove the incomplete files of a killed process."""

    def remove(self) -> None:
        """Remove the folder."""
        for left in self.path.parent.glob(f"{self.path.name}.removed-*"):
            shutil.rmtree(left, ignore_errors=True)
        if self.path.exists():
            _remove(self.path)


@dataclass(frozen=True)
class TrainingPlan:
    """The plan made before the first step, so that a resumed run ends like an uninterrupted one.

    Every `log_every` steps the loss is logged, every `save_every` (a multiple) a checkpoint is written, and every
    `eval_every` (a multiple of that) the model is evaluated on `eval_tokens` validation tokens. `before` are the
    figures of the untrained model. A run by minutes lasts from `begins` to `ends`, seconds on its stopwatch (`ends`
    None: it is not by minutes); `total_steps`, and the seconds of an evaluation, a save and the closing work, are then
    estimates.
    """

    total_steps: int
    log_every: int
    save_every: int
    eval_every: int
    eval_tokens: int
    step_seconds: float
    before: Mapping[str, float]
    evaluation_seconds: float = 0.0
    save_seconds: float = 0.0
    closing_seconds: float = 0.0
    begins: float = 0.0
    ends: float | None = None


class TrainingFolder(WorkFolder):
    """The work folder of one training: plan, decisions and checkpoints.

    A checkpoint is complete if it has the file `complete`; it is renamed before it is removed, so that a partly removed
    one is not used.
    """

    def read_decisions(self) -> list[Decision]:
        """The written decisions, oldest first."""
        file = self.path / DECISIONS
        if not file.is_file():
            return []
        return [Decision(**decision) for decision in json.loads(file.read_text(encoding="utf-8"))["decisions"]]

    def write_decisions(self, decisions: Sequence[Decision]) -> None:
        """Write the decisions atomically."""
        write_json(self.path / DECISIONS, {"decisions": [asdict(decision) for decision in decisions]})

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [path for path in self.path.glob(f"{_CHECKPOINT}*") if (path / MARKER).is_file()]
        return sorted(found, key=_step)

    def newest(self, error: BaseException | None = None) -> str | None:
        """ "step N" of the newest complete checkpoint, or None; a `resume_point` of `resumable`."""
        found = self.checkpoints()
        return f"step {_step(found[-1])}" if found else None

    def mark_complete(self, step: int) -> None:
        """Mark the checkpoint of `step` as complete."""
        (self.path / f"{_CHECKPOINT}{step}" / MARKER).touch()

    def keep_only(self, keep: set[str]) -> None:
        """Remove every checkpoint whose folder name is not in `keep`."""
        for path in self.checkpoints():
            if path.name not in keep:
                _remove(path)

    def sweep(self) -> None:
        """Remove incomplete and partly removed checkpoints."""
        whole = {path.name for path in self.checkpoints()}
        for path in self.path.glob("*"):
            if path.is_dir() and path.name not in whole:
                shutil.rmtree(path, ignore_errors=True)


def read_keyed(file: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON object of an earlier run with the same `key`; None if there is no file.

    Raises `BadInput` if the key differs or the file cannot be read.
    """
    if not file.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        old = values["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--resume: {file} cannot be read ({error}); leave --resume out to start anew") from error
    changed = _differences(old, json.loads(json.dumps(key)))
    if changed:
        raise BadInput(
            f"--resume: the unfinished run in {file.parent} was started with other values ({'; '.join(changed)}); "
            "give the same ones, or leave --resume out to start anew"
        )
    return values


def _remove(path: Path) -> None:
    """Rename the folder, which is atomic, then remove it."""
    gone = path.with_name(f"{path.name}.removed-{os.getpid()}")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _step(path: Path) -> int:
    number = path.name.removeprefix(_CHECKPOINT)
    return int(number) if number.isdigit() else -1


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`name old, now new` for every value that differs, sorted by name."""
    found = []
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now)
        elif before != now:
            found.append(f"{name} {_short(before)}, now {_short(now)}")
    return found


def _short(value: Any) -> str:
    return str(value)[:12]
