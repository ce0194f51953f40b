"""Wheels that travel: cut, collected over several journeys, joined, and every alteration told."""

import random
from pathlib import Path

import pytest

from bench.gpu.parts import MANIFEST, Manifest, Store, cut
from chitchat.errors import BadInput
from serve.digest import sha256

SIZES = {"large-1.0-py3-none-any.whl": 25_000, "middle-2.0-py3-none-any.whl": 4_000, "small-3.0-py3-none-any.whl": 10}
LIMIT = 10_000


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """Files of random bytes, one larger than two folders may hold."""
    draw, folder = random.Random(0), tmp_path / "fetched"
    folder.mkdir()
    for name, size in SIZES.items():
        (folder / name).write_bytes(draw.randbytes(size))
    return sorted(folder.iterdir())


@pytest.fixture
def sent(tmp_path: Path, wheels: list[Path]) -> Path:
    """The folder of wheels, cut."""
    cut(wheels, tmp_path / "wheels", "3.12", LIMIT)
    return tmp_path / "wheels"


def carry(sent: Path, number: str, to: Path) -> Path:
    """What one journey brings: the manifest and one folder."""
    to.mkdir()
    (to / number).mkdir()
    for path in (sent / MANIFEST, *(sent / number).iterdir()):
        (to / path.relative_to(sent)).write_bytes(path.read_bytes())
    return to


def test_no_folder_is_larger_than_a_journey_takes_and_only_the_last_has_room(sent: Path) -> None:
    """A folder of 64 MB and one byte did not travel at all; half-empty ones cost a journey each."""
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in sorted(sent.glob("[0-9]*"))]
    assert sizes == [LIMIT, LIMIT, sum(SIZES.values()) - 2 * LIMIT]


def test_what_comes_in_several_journeys_in_any_order_is_the_same_files(
    sent: Path, wheels: list[Path], tmp_path: Path
) -> None:
    """A wheel whose slices are joined in the wrong order installs, and crashes at its first product."""
    store = Store(tmp_path / "store")
    for journey, number in enumerate(("03", "01", "02")):
        assert store.receive(carry(sent, number, tmp_path / f"journey-{journey}")) > 0
    assert store.missing() == []
    joined = store.join()
    assert [path.name for path in joined] == [path.name for path in wheels]
    assert [sha256(path) for path in joined] == [sha256(path) for path in wheels]
    assert store.receive(sent) == 0  # a journey that is repeated
    assert store.join() == joined


def test_a_folder_that_has_not_come_is_named(sent: Path, tmp_path: Path) -> None:
    """A run began, installed nothing, and its minutes were spent."""
    store = Store(tmp_path / "store")
    with pytest.raises(BadInput, match=r"has no manifest.json; make it with make gpu-wheels"):
        store.missing()
    store.receive(carry(sent, "02", tmp_path / "journey"))
    assert store.missing() == ["01", "03"]
    with pytest.raises(BadInput, match=r"wheels: 01, 03 .*not arrived; send each and say --receive"):
        store.join()


def test_a_part_that_was_altered_on_the_way_is_named_and_the_others_are_kept(sent: Path, tmp_path: Path) -> None:
    """All of a journey was thrown away, or all of it taken."""
    (broken,) = (sent / "02").iterdir()
    whole = broken.read_bytes()
    broken.write_bytes(b"x" + whole[1:])
    store = Store(tmp_path / "store")
    with pytest.raises(BadInput, match=rf"altered on the way: 02/{broken.name}; send them again"):
        store.receive(sent)
    assert store.missing() == ["02"]
    broken.write_bytes(whole)
    assert store.receive(sent) == 1
    assert len(store.join()) == len(SIZES)


def test_a_part_that_was_altered_where_it_is_kept_is_found_and_comes_again(sent: Path, tmp_path: Path) -> None:
    """A disk that fills up leaves files that look whole."""
    store = Store(tmp_path / "store")
    store.receive(sent)
    part = next(iter(Manifest.read(sent).parts()))
    place = store.folder / "parts" / part.sha256
    place.write_bytes(b"\0" * part.bytes)
    with pytest.raises(BadInput, match=r"large-1.0-py3-none-any.whl: its parts were altered in .*send them again"):
        store.join()
    assert store.missing() == ["01"]
    assert store.receive(sent) == 1
    assert len(store.join()) == len(SIZES)


def test_a_new_cut_replaces_the_old_one_and_a_manifest_that_is_none_is_told(
    sent: Path, wheels: list[Path], tmp_path: Path
) -> None:
    """Slices of last month's wheel lay among those of this month's."""
    cut(wheels[1:], sent, "3.12", LIMIT)
    assert [path.name for path in sorted(sent.iterdir())] == ["01", MANIFEST]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fetched", "wheels"]
    (sent / MANIFEST).write_text("{")
    with pytest.raises(BadInput, match=r"manifest.json: cannot be read .*send it again"):
        Store(tmp_path / "store").receive(sent)
