"""Hashes of files, and identities of folders by their files."""

import hashlib
from pathlib import Path

import pytest

from serve.digest import file_record, identity, sha256


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_a_file_is_hashed_whole(size: int, tmp_path: Path) -> None:
    """Stops a hash of a file's beginning."""
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256(tmp_path / "file") == expected
    assert file_record(tmp_path / "file") == {"size": size, "sha256": expected}


def test_an_identity_is_of_names_and_contents() -> None:
    """Stops two folders that are told apart by nothing: their files renamed, exchanged, or one more of them."""
    files = {"b": {"size": 1, "sha256": "2" * 64}, "a": {"size": 2, "sha256": "1" * 64}}
    expected = hashlib.sha256(f"a\0{'1' * 64}\nb\0{'2' * 64}\n".encode()).hexdigest()
    assert identity(files) == expected == identity(dict(sorted(files.items())))
    assert identity({"b": {"sha256": "2" * 64}, "a": {"sha256": "1" * 64}}) == expected, "sizes are no part of it"
    renamed = {"c": files["b"], "a": files["a"]}
    exchanged = {"a": files["b"], "b": files["a"]}
    others = [renamed, exchanged, {"a": files["a"]}, {**files, "c": files["a"]}, {}]
    assert len({expected, *map(identity, others)}) == 6
