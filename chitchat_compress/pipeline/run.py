"""`compress run`: the stages of a recipe, one after another, each a `compress` command of its own process.

A finished stage is not run again: it is known by a key over its verb, its options, the content of what it reads and
the version of this package, and by the content of what it made. OUT holds a folder a stage; `OUT/.stages` holds the
records (`NAME.json`, written when the stage is done; `NAME.started`, while it runs), a lock, and the reports' folders,
whose files stand in OUT as well. A run can be killed at any moment: output folders are complete or absent, trainings
resume, and a child dies with its parent. What a recipe may say is in `pipeline.recipe`; the work is
in the verbs.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from chitchat.data.corpora import Corpus, open_corpus
from chitchat.data.index import open_validation
from chitchat.errors import BadInput, WorkFailed
from chitchat.lineage import identity, verify_lineage
from chitchat.system.child import run_child
from chitchat.system.folder import replace_file, write_json
from chitchat.system.notices import log
from chitchat_compress.pipeline.recipe import RecipeStage, StageRef, Value, default_recipe, read_recipe
from chitchat_compress.pipeline.records import RECORDS, locked, read_record
from serve.digest import sha256

COMPRESS = (sys.executable, "-m", "chitchat_compress")
_RESUMABLE = ("train", "prune")


class StageFailed(WorkFailed):
    """A stage's command ended badly. `exit_code` is the command's own; it has said why on stderr."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


@dataclass(frozen=True)
class _Run:
    """What all stages of one run share."""

    out: Path
    command: Sequence[str]
    echo: Callable[[str], None]

    def folder(self, stage: RecipeStage) -> Path:
        """The output folder of a stage. Reports have theirs among the records: their files go to OUT itself."""
        return (self.out / RECORDS / stage.name) if stage.verb == "bench" else self.out / stage.name

    def record(self, name: str) -> Path:
        return self.out / RECORDS / f"{name}.json"

    def started(self, name: str) -> Path:
        return self.out / RECORDS / f"{name}.started"


def run(
    recipe: Path | None,
    out: Path,
    *,
    seed: int = 0,
    command: Sequence[str] | None = None,
    echo: Callable[[str], None] = log.info,
    show_report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run a recipe (default: the demo) into the folder `out`; give seconds and figures of every stage.

    `seed` is that of every stage that names none. `command` starts the command line (default: `COMPRESS`); `echo` gets
    the lines for the user, which the log takes by default; `show_report` is given the last report. Raises `BadInput`
    for a bad recipe, and for an `out` that is not a pipeline's or that another run works on; `StageFailed` with the
    exit code of a stage that failed.
    """
    stages = [_seeded(stage, seed) for stage in read_recipe(recipe or default_recipe())]
    job = _Run(Path(out), command or COMPRESS, echo)
    begun = time.monotonic()
    with locked(job.out):
        records: dict[str, dict[str, Any]] = {}
        for number, stage in enumerate(stages, 1):
            echo(f"[{number}/{len(stages)}] {stage.name}")
            records[stage.name] = _bring_up_to_date(job, stage, stages, records)
        return _conclude(job, stages, records, time.monotonic() - begun, show_report)


def _seeded(stage: RecipeStage, seed: int) -> RecipeStage:
    """The stage with a seed among its options, unless it is the default that every verb has."""
    return replace(stage, options={"seed": seed, **stage.options}) if seed else stage


def _bring_up_to_date(
    job: _Run, stage: RecipeStage, stages: Sequence[RecipeStage], records: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Run a stage unless what it would make is there already; give its record."""
    folders = {other.name: job.folder(other) for other in stages}
    argv = _argv(stage, folders, job.folder(stage))
    key = _key(stage, {name: record["identity"] for name, record in records.items()})
    job.echo("  " + shlex.join(["compress", *argv]))
    now = _content(job.folder(stage))
    record = read_record(job.record(stage.name))
    begun = read_record(job.started(stage.name))
    if record.get("key") == key and record.get("identity") == now is not None:
        job.echo("  already done")
    elif begun.get("key") == key and now is not None and now != begun.get("before"):
        # Killed after the output was complete and before it was noted.
        record = {"key": key, "verb": stage.verb, "identity": now, "figures": {}, "seconds": None}
        _note(job, stage, record)
        job.echo("  already done")
    else:
        record = _run_stage(job, stage, argv, key, resume=begun.get("key") == key)
        job.echo(f"  done in {record['seconds']:.1f} s")
    if stage.verb == "bench":
        _publish(job.folder(stage), job.out, stage.name)
    return record


def _run_stage(job: _Run, stage: RecipeStage, argv: Sequence[str], key: str, *, resume: bool) -> dict[str, Any]:
    folder = job.folder(stage)
    write_json(job.started(stage.name), {"key": key, "before": _content(folder)})
    again = ["--resume"] if resume and stage.verb in _RESUMABLE else []
    begun = time.monotonic()
    # A report's table is shown once, at the end of the run.
    echo = _silent if stage.verb == "bench" else job.echo
    code, figures = run_child([*job.command, *argv, *again, "--json"], echo)
    if code != 0:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise StageFailed(f"stage {stage.name} {how}; run the same command again to go on from here", max(code, 1))
    content = _content(folder)
    if content is None or figures is None:
        missing = f"no folder {folder}" if content is None else "no figures"
        raise WorkFailed(f"stage {stage.name}: its command succeeded and left {missing}; this is a bug, report it")
    record = {
        "key": key,
        "verb": stage.verb,
        "identity": content,
        # A report's figures stand in its own report.json, raw samples and all.
        "figures": {} if stage.verb == "bench" else figures,
        "seconds": time.monotonic() - begun,
    }
    _note(job, stage, record)
    return record


def _silent(_line: str) -> None:
    """Take a line and say nothing."""


def _note(job: _Run, stage: RecipeStage, record: dict[str, Any]) -> None:
    write_json(job.record(stage.name), record)
    job.started(stage.name).unlink(missing_ok=True)


def _conclude(
    job: _Run,
    stages: Sequence[RecipeStage],
    records: dict[str, dict[str, Any]],
    seconds: float,
    show_report: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """Hand on the last report and give the figures of the run; the line to talk to the result comes last."""
    result: dict[str, Any] = {"out": str(job.out), "seconds": round(seconds, 1), "stages": records}
    reports = [stage for stage in stages if stage.verb == "bench"]
    if reports:
        folder = job.folder(reports[-1])
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        result["rows"] = report["rows"]
        if show_report is not None:
            show_report(report)
    models = [stage for stage in stages if stage.makes in ("checkpoint", "quantized", "bundle")]
    if models:
        bundles = [stage for stage in models if stage.makes == "bundle"]
        result["talk"] = shlex.join([_command_name(), "chat", str(job.folder((bundles or models)[-1]))])
    return result


def _command_name() -> str:
    """`compress` as the user can type it: by its path where it is not on the search path."""
    typed = Path(sys.argv[0])
    if shutil.which("compress") or typed.name != "compress":
        return "compress"
    here = os.path.relpath(typed)
    return str(typed) if here.startswith("..") else here


def _argv(stage: RecipeStage, folders: dict[str, Path], out: Path) -> list[str]:
    """The arguments of a stage's command, as the user could type them."""

    def text(value: Value) -> str:
        return str(folders[value.name]) if isinstance(value, StageRef) else str(value)

    argv = [stage.verb, *map(text, stage.arguments), "--out", str(out)]
    for name, value in stage.options.items():
        if isinstance(value, bool):
            argv += [f"--{name}"] if value else []
        else:
            argv += [f"--{name}", text(value)]
    return argv


def _key(stage: RecipeStage, contents: dict[str, str]) -> str:
    """A sha256 that changes when running the stage again could give something else."""

    def stands_for(value: Value, option: str = "") -> Any:
        if isinstance(value, StageRef):
            return {"content": contents[value.name]}
        corpus = _corpus(stage.verb, option, value)
        if corpus is not None:
            return {"corpus": corpus.name, "content": corpus.sha256()}
        path = Path(value).expanduser() if isinstance(value, str) else None
        if path is not None and path.is_dir():
            return {"content": identity(path)}
        if path is not None and path.is_file():
            return {"content": sha256(path)}
        return value

    parts = {
        "verb": stage.verb,
        "arguments": [stands_for(value) for value in stage.arguments],
        "options": {name: stands_for(value, name) for name, value in sorted(stage.options.items())},
        "version": _version(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _corpus(verb: str, option: str, value: str | int | float) -> Corpus | None:
    """The corpus that a value of `compress data` names: an argument (option ""), or what is held out."""
    if verb != "data" or option not in ("", "validation"):
        return None
    opened = open_validation(value) if option else open_corpus(str(value))
    return opened if isinstance(opened, Corpus) else None


def _version() -> str:
    try:
        return metadata.version("chitchat-compress")
    except metadata.PackageNotFoundError:
        return "not installed"


def _content(folder: Path) -> str | None:
    """The identity of a folder whose files are as they were written; None for one that is absent or altered."""
    if not folder.is_dir():
        return None
    try:
        verify_lineage(folder)
        return identity(folder)
    except (BadInput, OSError):
        return None


def _publish(folder: Path, out: Path, name: str) -> None:
    """Put a report's files into OUT under the stage's name; each is whole at any moment."""
    for source in sorted(folder.iterdir()):
        content = source.read_bytes()
        if source.suffix == ".md":
            content = content.replace(b"(report.png)", f"({name}.png)".encode())
        target = out / f"{name}{source.suffix}"
        if not target.is_file() or target.read_bytes() != content:
            replace_file(target, content)
