"""Compressed files: the same turns as plain ones, and one line for damage or another format."""

import gzip
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from chitchat.data.conversation import ReadStats
from chitchat.data.corpora import open_corpus
from chitchat.errors import BadInput
from chitchat.text.archive import form_of

LINES = b'["hi", "there"]\n["a", "b", "c"]\n' * 20_000


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".zst": _zstd}


def _refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        list(open_corpus(str(path)).conversations(ReadStats()))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("packing", PACK)
def test_a_compressed_file_gives_the_turns_of_the_plain_one(tmp_path: Path, packing: str) -> None:
    """Public corpora are compressed; an archive of several members lost all but the first."""
    pack = PACK[packing]
    for content in (pack(LINES), pack(LINES[:320]) + pack(LINES[320:])):
        (tmp_path / f"c.jsonl{packing}").write_bytes(content)
        read = list(open_corpus(str(tmp_path / f"c.jsonl{packing}")).conversations(ReadStats()))
        assert len(read) == 40_000
        assert [turn.text for turn in read[-1]] == ["a", "b", "c"]


@pytest.mark.parametrize("packing", PACK)
def test_a_damaged_archive_is_one_line(tmp_path: Path, packing: str) -> None:
    """Each library raises another exception for a damaged archive, and some just end."""
    path, whole = tmp_path / f"c.jsonl{packing}", PACK[packing](LINES)
    assert "cut short or damaged" in _refusal(path, whole[: len(whole) // 2])
    assert "cut short or damaged" in _refusal(path, whole[:-3])
    assert "is empty (0 bytes)" in _refusal(path, b"")
    assert "it is a zip archive" in _refusal(path, b"PK\x03\x04" + whole)
    assert "not compressed" in _refusal(path, LINES)
    other = next(each for each in PACK if each != packing)
    assert {".gz": "a gzip archive", ".zst": "a zstd archive"}[other] in _refusal(path, PACK[other](LINES))


def test_files_of_the_zstd_program_are_read(tmp_path: Path) -> None:
    """Users' files are written by the program, not by the library."""
    (tmp_path / "c.txt").write_text("hi\nthere\n\na\nb\n")
    try:
        subprocess.run(["zstd", "-q", str(tmp_path / "c.txt")], check=True)
    except FileNotFoundError:
        pytest.skip("the program zstd is not installed")
    assert len(list(open_corpus(str(tmp_path / "c.txt.zst")).conversations(ReadStats()))) == 2


def test_the_form_is_the_ending_before_the_compression() -> None:
    """`talk.JSONL.GZ` was a file of unknown ending."""
    assert form_of(Path("talk.JSONL.GZ")) == (".jsonl", ".gz")
    assert form_of(Path("v1.2.csv.zst")) == (".csv", ".zst")
    assert form_of(Path("talk.gz")) == ("", ".gz")
    assert form_of(Path("talk.txt")) == (".txt", "")
