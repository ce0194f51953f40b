"""The work folder of a training: whole or ignored."""

import pytest

from chitchat.errors import BadInput
from chitchat.training.rate import Decision
from chitchat.training.workfolder import TrainingPlan, WorkFolder

PLAN = TrainingPlan({"options": {"batch_size": 16}, "data": "abc"}, 100, 2, 10, 20, 500, 0.1, {"loss": 5.0})


def checkpoint(work: WorkFolder, step: int, complete: bool = True) -> None:
    folder = work.path / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    if complete:
        work.mark_complete(step)


def test_a_plan_comes_back_and_names_what_changed(tmp_path):
    """Stops: a resumed run that goes on with other options, and an error that does not say which."""
    work = WorkFolder(tmp_path / ".out.training")
    assert work.read_plan(PLAN.key) is None
    work.write_plan(PLAN)
    assert work.read_plan(PLAN.key) == PLAN
    with pytest.raises(BadInput, match=r"--resume.*batch_size 16, now 32.*leave --resume out"):
        work.read_plan({"options": {"batch_size": 32}, "data": "abc"})
    (work.path / "plan.json").write_text("{")
    with pytest.raises(BadInput, match="leave --resume out"):
        work.read_plan(PLAN.key)


def test_only_marked_checkpoints_count_and_the_rest_is_swept(tmp_path):
    """Stops: a resume from a checkpoint that was being written, or being deleted, when the process died."""
    work = WorkFolder(tmp_path / ".out.training")
    for step in (5, 30, 110):
        checkpoint(work, step)
    checkpoint(work, 200, complete=False)
    (work.path / "checkpoint-5.removed-77").mkdir()
    assert [path.name for path in work.checkpoints()] == ["checkpoint-5", "checkpoint-30", "checkpoint-110"]
    work.sweep()
    assert sorted(path.name for path in work.path.iterdir()) == ["checkpoint-110", "checkpoint-30", "checkpoint-5"]
    work.keep_only({"checkpoint-110", "checkpoint-30", "checkpoint-None"})
    assert [path.name for path in work.checkpoints()] == ["checkpoint-30", "checkpoint-110"]
    work.remove()
    assert not list(tmp_path.iterdir())


def test_decisions_come_back_in_their_order(tmp_path):
    """Stops: a resumed run that decides anew when it ends."""
    work, decisions = WorkFolder(tmp_path), [Decision(0, 100, "plan"), Decision(70, 90, "clock")]
    assert work.read_decisions() == []
    work.write_decisions(decisions)
    assert work.read_decisions() == decisions
