"""Output folders are complete or absent, whatever ends the stage."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chitchat.errors import BadInput
from chitchat.system.folder import check_output, is_disk_full, staged_folder


def test_a_folder_appears_only_when_its_block_has_ended(tmp_path: Path) -> None:
    """A reader that sees the folder sees all of it."""
    out = tmp_path / "deep" / "out"
    with staged_folder(out, "data") as staging:
        (staging / "data.json").write_text("{}")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["data.json"]
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143)])
def test_an_error_or_an_interrupt_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    """Half a folder would be read as a whole one by the next stage."""
    with pytest.raises(type(error)), staged_folder(tmp_path / "out", "data") as staging:  # noqa: PT012
        (staging / "data.json").write_text("{}")
        raise error
    assert os.listdir(tmp_path) == []


def test_an_error_keeps_the_older_output(tmp_path: Path) -> None:
    """A rerun that fails must not cost the result that was there."""
    out = tmp_path / "out"
    with staged_folder(out, "data") as staging:
        (staging / "data.json").write_text("old")
    with pytest.raises(ValueError, match="x"), staged_folder(out, "data"):
        raise ValueError("x")
    assert (out / "data.json").read_text() == "old"
    with staged_folder(out, "data") as staging:
        (staging / "data.json").write_text("new")
    assert (out / "data.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    """`--out ~/Documents` must be safe."""
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(BadInput, match=r"--out .*is not a checkpoint that compress wrote"):
        check_output(tmp_path, "checkpoint")
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(BadInput, match="--out"), staged_folder(tmp_path, "checkpoint"):
        pass
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_an_output_below_a_file_or_at_a_file_is_refused(tmp_path: Path) -> None:
    """The message names the file in the way instead of a mkdir traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is not a folder"):
        check_output(tmp_path / "file", "data")
    with pytest.raises(BadInput, match="is a file, not a folder"):
        check_output(tmp_path / "file" / "below", "data")


def test_the_next_stage_removes_the_staging_folder_of_a_killed_one(tmp_path: Path) -> None:
    """SIGKILL runs no cleanup: the staging folders of killed processes must not accumulate."""
    code = (
        "import sys, time; from pathlib import Path; from chitchat.system.folder import staged_folder\n"
        "with staged_folder(Path(sys.argv[1]), 'data') as staging:\n"
        "    (staging / 'data.json').write_text('half'); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".out.partial-")
    with staged_folder(tmp_path / "out", "data") as staging:
        (staging / "data.json").write_text("whole")
    assert os.listdir(tmp_path) == ["out"]


def test_the_staging_folder_of_a_running_process_is_kept(tmp_path: Path) -> None:
    """Two stages with one output race; the later one must not remove the folder of the earlier one."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as neighbour:
        theirs = tmp_path / f".out.partial-{neighbour.pid}"
        theirs.mkdir()
        with staged_folder(tmp_path / "out", "data") as staging:
            (staging / "data.json").write_text("{}")
        assert theirs.is_dir()
        neighbour.kill()


def test_a_disk_that_fills_up_gives_one_line_and_leaves_nothing(small_disk: Path) -> None:
    """A full disk used to be a traceback and half a folder."""
    with (
        pytest.raises(BadInput, match=r"--out .*the disk is full"),
        staged_folder(small_disk / "out", "data") as staging,
    ):
        (staging / "data.json").write_bytes(b"x" * 1_000_000)
    assert os.listdir(small_disk) == []


def test_a_full_disk_is_recognised_in_words_of_other_libraries(small_disk: Path, tiny_model) -> None:
    """safetensors reports ENOSPC in the message, not as an errno."""
    with pytest.raises(BadInput, match="the disk is full"), staged_folder(small_disk / "out", "checkpoint") as staging:  # noqa: PT012
        for copy in range(9):
            tiny_model.save_pretrained(staging / str(copy))
    assert os.listdir(small_disk) == []
    assert not is_disk_full(ValueError("other"))
