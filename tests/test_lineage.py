"""Lineage: what a folder is made from, and whether it still is what was written."""

import json
from pathlib import Path

import pytest

from chitchat.errors import BadInput
from chitchat.lineage import LINEAGE, Stage, identity, read_lineage, verify_lineage, write_lineage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, one in a subfolder, and a lineage of one stage."""
    place = tmp_path / "made"
    (place / "sub").mkdir(parents=True)
    (place / "weights.bin").write_bytes(b"0123456789")
    (place / "sub" / "note.txt").write_text("note")
    write_lineage(place, Stage("train", {"layers": 2}, seed=7, metrics={"loss": 1.5}))
    return place


def test_stages_pile_up_oldest_first(folder: Path, tmp_path: Path) -> None:
    """A pruned model must still tell how its teacher was trained."""
    child = tmp_path / "child"
    child.mkdir()
    write_lineage(child, Stage("prune", {"keep": 0.5}, seed=1, parent_sha256=identity(folder)), parent=folder)
    stages = read_lineage(child)
    assert [stage["stage"] for stage in stages] == ["train", "prune"]
    assert stages[0]["options"] == {"layers": 2}
    assert stages[1]["parent_sha256"] == identity(folder)
    assert stages[0]["versions"]["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda place: (place / "weights.bin").unlink(), r"weights\.bin: missing"),
        (lambda place: (place / "weights.bin").write_bytes(b"01234"), r"weights\.bin: 5 bytes, .* says 10"),
        (lambda place: (place / "weights.bin").write_bytes(b"0123456780"), r"weights\.bin: sha256 differs"),
        (lambda place: (place / LINEAGE).write_text('{"format": 1'), "not a readable lineage"),
        (lambda place: (place / LINEAGE).write_text('{"format": 1}'), "not a readable lineage"),
        (lambda place: (place / LINEAGE).write_text("[]"), "not a readable lineage"),
        (lambda place: (place / LINEAGE).write_text('{"format": 2}'), "newer than this compress"),
    ],
)
def test_a_missing_truncated_or_altered_file_is_named(folder: Path, harm, message: str) -> None:
    """A flipped bit in the weights used to show as a strange reply, days later."""
    verify_lineage(folder)
    harm(folder)
    with pytest.raises(BadInput, match=message):
        verify_lineage(folder)


def test_a_foreign_folder_has_no_lineage_and_passes(tmp_path: Path) -> None:
    """A checkpoint from elsewhere is accepted."""
    (tmp_path / "config.json").write_text("{}")
    verify_lineage(tmp_path)
    assert read_lineage(tmp_path) == []


def test_identity_follows_content_not_history(folder: Path, tmp_path: Path) -> None:
    """A stage keyed by its inputs must rerun when a byte changed and only then."""
    before = identity(folder)
    record = json.loads((folder / LINEAGE).read_text())
    record["stages"][0]["seed"] = 8
    (folder / LINEAGE).write_text(json.dumps(record))
    assert identity(folder) == before
    (folder / LINEAGE).unlink()
    assert identity(folder) == before, "a foreign copy of the same files is the same input"
    (folder / "weights.bin").write_bytes(b"0123456780")
    assert identity(folder) != before
