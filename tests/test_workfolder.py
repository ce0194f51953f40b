"""Work folders: what a killed run left is whole or ignored, and goes on or goes away."""

import errno
import json
import re

import pytest

from chitchat.errors import BadInput, WorkFailed
from chitchat.system.folder import write_json
from chitchat.training.rate import Decision
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.workfolder import TrainingFolder, WorkFolder

KEY = {"options": {"batch_size": 16}, "data": "abc"}


def checkpoint(work: TrainingFolder, step: int, complete: bool = True) -> None:
    folder = work.path / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    if complete:
        work.mark_complete(step)


def test_a_decision_comes_back_and_names_what_changed(tmp_path):
    """Stops: a resumed run that decides anew or goes on with other options, and an error that does not say which."""
    work = WorkFolder(tmp_path / ".out.training")
    drawn = iter([3, 4])
    assert work.decide("plan.json", KEY, lambda: {"steps": next(drawn)}) == {"steps": 3}
    assert work.decide("plan.json", KEY, lambda: {"steps": next(drawn)}) == {"steps": 3}
    assert json.loads((work.path / "plan.json").read_text()) == {"key": KEY, "steps": 3}
    with pytest.raises(BadInput, match=r"--resume.*batch_size 16, now 32.*leave --resume out"):
        work.decide("plan.json", {"options": {"batch_size": 32}, "data": "abc"}, dict)
    (work.path / "plan.json").write_text("{")
    with pytest.raises(BadInput, match="leave --resume out"):
        work.decide("plan.json", KEY, dict)


@pytest.fixture
def enter(tmp_path):
    """`enter(resume, error, point)`: a run that leaves a file and ends with `error`."""
    work = WorkFolder(tmp_path / "work")

    def enter(resume=False, error=None, point=None, key=KEY, clock=None):
        stopwatch = Stopwatch(clock or (lambda: 0.0))
        with work.resumable("plan.json", key, resume, stopwatch, lambda _: point):
            found = sorted(path.name for path in work.path.glob("*"))
            work.decide("plan.json", key, dict)
            (work.path / "result").touch()
            if error is not None:
                raise error
        return found

    return enter


FULL = OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize("error", [WorkFailed("no"), BadInput("no"), KeyboardInterrupt(), FULL], ids=repr)
def test_a_folder_stays_only_where_a_resume_would_go_on_from_it(enter, tmp_path, error):
    """Stops: an empty work folder left behind, work that is thrown away, a resume from another run's folder."""
    kind = BadInput if error is FULL else type(error)
    with pytest.raises(kind) as nothing:
        enter(error=error)
    assert not list(tmp_path.iterdir())
    with pytest.raises(kind) as something:
        enter(error=error, point="step 30")
    assert (tmp_path / "work" / "result").is_file()
    raised = [str(found.value) for found in (nothing, something)]
    if isinstance(error, KeyboardInterrupt):
        assert raised == ["", "stopped; the same command with --resume goes on from step 30"]
    elif isinstance(error, OSError):
        assert all(re.match(r"--out: the disk is full \(.*work\); free some space", text) for text in raised)
    else:
        assert raised == ["no", "no"]
    assert enter(resume=True) == ["plan.json", "result"]
    assert enter(resume=False) == []


def interrupt(work: WorkFolder) -> None:
    write_json(work.path / "inner.json", {"key": {}})
    raise KeyboardInterrupt


def test_the_outer_folder_has_the_last_word_on_what_a_ctrl_c_leaves(tmp_path):
    """Stops: a message that promises a resume from a folder that an outer run then removes."""
    outer, inner = WorkFolder(tmp_path / "work"), WorkFolder(tmp_path / "work" / "inner")
    for point, message in ((None, ""), ("here", "stopped; the same command with --resume goes on from step 3")):
        outside = outer.resumable("outer.json", {}, False, Stopwatch(), lambda _, point=point: point)
        inside = inner.resumable("inner.json", {}, False, Stopwatch(), lambda _: "step 3")
        with pytest.raises(KeyboardInterrupt) as stopped, outside, inside:
            interrupt(inner)
        assert str(stopped.value) == message
        assert outer.path.exists() == bool(point)


def test_another_runs_folder_is_refused_and_left_alone(enter, tmp_path):
    """Stops: an unfinished run of hours that a resume with a mistyped option removes."""
    enter()
    with pytest.raises(BadInput, match="batch_size 16, now 32"):
        enter(resume=True, key={"options": {"batch_size": 32}, "data": "abc"})
    assert (tmp_path / "work" / "result").is_file()


def test_what_is_left_of_a_removal_goes_with_the_folder(tmp_path):
    """Stops: a half-removed folder of a killed process that stays for ever."""
    (tmp_path / "work.removed-77" / "checkpoint-5").mkdir(parents=True)
    WorkFolder(tmp_path / "work").remove()
    assert not list(tmp_path.iterdir())


def test_only_marked_checkpoints_count_and_the_rest_is_swept(tmp_path):
    """Stops: a resume from a checkpoint that was being written, or being deleted, when the process died."""
    work = TrainingFolder(tmp_path / ".out.training")
    assert work.newest() is None
    for step in (5, 30, 110):
        checkpoint(work, step)
    checkpoint(work, 200, complete=False)
    (work.path / "checkpoint-5.removed-77").mkdir()
    assert [path.name for path in work.checkpoints()] == ["checkpoint-5", "checkpoint-30", "checkpoint-110"]
    assert work.newest() == "step 110"
    work.sweep()
    assert sorted(path.name for path in work.path.iterdir()) == ["checkpoint-110", "checkpoint-30", "checkpoint-5"]
    work.keep_only({"checkpoint-110", "checkpoint-30", "checkpoint-None"})
    assert [path.name for path in work.checkpoints()] == ["checkpoint-30", "checkpoint-110"]
    work.remove()
    assert not list(tmp_path.iterdir())


def test_decisions_come_back_in_their_order(tmp_path):
    """Stops: a resumed run that decides anew when it ends."""
    work, decisions = TrainingFolder(tmp_path), [Decision(0, 100, "plan"), Decision(70, 90, "clock")]
    assert work.read_decisions() == []
    work.write_decisions(decisions)
    assert work.read_decisions() == decisions
