"""The work folder of a training: its plan, what was decided since, and checkpoints that are complete or ignored.

It stands beside the output (`.NAME.training/`) while a training runs. A process can be killed at any moment: the plan
is written atomically, a checkpoint counts once its marker `complete` is there, and what goes away is renamed first, so
that half of a removed checkpoint is never taken for a whole one.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput
from chitchat.system.folder import write_json
from chitchat.training.rate import Decision

MARKER = "complete"
PLAN, DECISIONS = "plan.json", "decisions.json"
_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class TrainingPlan:
    """What is fixed once, before the first step, so that a resumed run ends where an uninterrupted one does.

    `key` is what must not change (options, inputs, number of processes). Every `log_every` steps the loss is noted,
    every `save_every` (a multiple of it) a checkpoint is written, every `eval_every` (a multiple of that) the model is
    evaluated on `eval_tokens` validation tokens. `before` are the figures of the untrained model. A run by minutes has
    the seconds from `begins` to `ends` on its stopwatch (`ends` None: it is not by minutes); `total_steps` are then
    those that seemed to fit, and an evaluation, a save, and what comes after the last step were expected to take so
    long.
    """

    key: Mapping[str, Any]
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


class WorkFolder:
    """The files of one training under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))

    def read_plan(self, key: Mapping[str, Any]) -> TrainingPlan | None:
        """The plan of an earlier run with the same `key`, or None. Raises `BadInput` when the key is another one."""
        values = read_keyed(self.path / PLAN, key)
        return None if values is None else TrainingPlan(**values)

    def write_plan(self, plan: TrainingPlan) -> None:
        """Write the plan so that it is there whole or not at all."""
        write_json(self.path / PLAN, asdict(plan))

    def read_decisions(self) -> list[Decision]:
        """The decisions that were written, oldest first."""
        file = self.path / DECISIONS
        if not file.is_file():
            return []
        return [Decision(**each) for each in json.loads(file.read_text(encoding="utf-8"))["decisions"]]

    def write_decisions(self, decisions: Sequence[Decision]) -> None:
        """Write the decisions so that the file is the old or the new one."""
        write_json(self.path / DECISIONS, {"decisions": [asdict(each) for each in decisions]})

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [path for path in self.path.glob(f"{_CHECKPOINT}*") if (path / MARKER).is_file()]
        return sorted(found, key=_step)

    def mark_complete(self, step: int) -> None:
        """Declare the checkpoint of `step` whole."""
        (self.path / f"{_CHECKPOINT}{step}" / MARKER).touch()

    def keep_only(self, keep: set[str]) -> None:
        """Remove every checkpoint whose folder name is not in `keep`."""
        for path in self.checkpoints():
            if path.name not in keep:
                _remove(path)

    def sweep(self) -> None:
        """Remove incomplete checkpoints and what is left of removed ones."""
        whole = {path.name for path in self.checkpoints()}
        for path in self.path.glob("*"):
            if path.is_dir() and path.name not in whole:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder."""
        for left in self.path.parent.glob(f"{self.path.name}.removed-*"):
            shutil.rmtree(left, ignore_errors=True)
        if self.path.exists():
            _remove(self.path)


def read_keyed(file: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON object of an earlier run whose `key` is the same, or None where there is no file.

    Raises `BadInput` when the key is another one, or the file cannot be read.
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
    """Rename, which is atomic, then delete, which is not."""
    gone = path.with_name(f"{path.name}.removed-{os.getpid()}")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _step(path: Path) -> int:
    number = path.name.removeprefix(_CHECKPOINT)
    return int(number) if number.isdigit() else -1


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`name old, now new` for every value that differs, in flat order."""
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
