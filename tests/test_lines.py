"""Text files as lines: encodings, line ends, damage; every printed command works."""

import gzip
import subprocess
from pathlib import Path

import pytest

from chitchat.data.conversation import ReadStats
from chitchat.data.corpora import open_corpus
from chitchat.errors import BadInput
from chitchat.formats.wordpiece import read_wordpiece
from chitchat.text.lines import text_lines

TALK = "你好吗\n我很好 Hello\n\n今天天气不错，我们去喝茶吧。\n是的 OK\n\n喜欢茶吗\n喜欢，但是我更喜欢咖啡\n"
TRADITIONAL = "你喜歡看電影嗎？\n喜歡，最近看了一部愛情片。\n\n今天天氣怎麼樣？\n很好，謝謝你的關心。\n"
TURNS = [part.strip().split("\n") for part in TALK.split("\n\n")]


def _file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _turns(path: Path) -> list[list[str]]:
    return [[turn.text for turn in each] for each in open_corpus(str(path)).conversations(ReadStats())]


def _refusal(path: Path) -> str:
    with pytest.raises(BadInput) as error:
        _turns(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be", "gb18030"])
def test_a_file_with_a_byte_order_mark_is_read_in_its_encoding(tmp_path: Path, codec: str) -> None:
    """Notepad's "Unicode" was refused, with a command for GB18030."""
    marked = TALK if codec in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff" + TALK
    assert _turns(_file(tmp_path / "c.txt", marked.encode(codec))) == TURNS


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "gb18030", "big5"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_command_for_another_encoding_gives_a_file_that_reads_right(
    tmp_path: Path, codec: str, packed: bool
) -> None:
    """The only command was for one encoding, and did not work for a compressed file."""
    text = (
        TALK
        if codec != "big5"
        else "你喜歡看電影嗎？\n喜歡，最近看了一部愛情片。\n\n今天天氣怎麼樣？\n很好，謝謝你的關心。\n"
    )
    content = text.encode(codec)
    path = _file(tmp_path / ("a talk.txt" + ".gz" * packed), gzip.compress(content) if packed else content)
    command = _refusal(path).split("`")[1]
    subprocess.run(command, shell=True, check=True)
    assert _turns(tmp_path / "a talk-utf8.txt") == [part.strip().split("\n") for part in text.split("\n\n")]


@pytest.mark.parametrize(
    ("line", "blank"),
    [
        ("\n", "\n"), ("\r\n", "\r\n"), ("\r", "\r"), ("\u2028", "\u2028"), ("\u2029", "\u2029"), ("\x85", "\x85"),
        ("\x0b", "\x0b"), ("\x0c", "\x0c"), ("\u2028", "\u2029"), ("\x0b", "\x0c"), ("\n", "\u200b\n"),
        ("\n", "\ufeff\n"), ("\n", "\u2060\u200d\n"), ("\n", "\u3000\n"), ("\r\n", "\x0c\r\n"), ("\n", "\0\n"),
    ],
)  # fmt: skip
def test_every_kind_of_line_end_and_blank_line_separates_turns_and_conversations(
    tmp_path: Path, line: str, blank: str
) -> None:
    """A file of old Macs was one turn; a zero-width separator became an invisible turn."""
    separator = blank if (line, blank) in (("\u2028", "\u2029"), ("\x0b", "\x0c")) else line + blank
    content = separator.join([line.join(["hi", "there", "you"]), line.join(["a", "b"])]) + line
    assert _turns(_file(tmp_path / "c.txt", content)) == [["hi", "there", "you"], ["a", "b"]]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_line_ends_across_pieces_are_one(tmp_path: Path, end: str) -> None:
    """A piece of a file may end between `\\r` and `\\n`."""
    lines = [f"line {number} " + "x" * (number % 90) for number in range(60_000)]
    path = _file(tmp_path / "c.txt", end.join(lines) + end)
    assert path.stat().st_size > 3 << 20
    read = list(text_lines(path))
    assert [line.rstrip("\r") for _, line in read] == lines
    assert [number for number, _ in read] == list(range(1, len(lines) + 1))


def test_mixed_line_ends_are_refused_with_a_command_that_works(tmp_path: Path) -> None:
    """A Mac's file appended to another became one turn of a hundred lines."""
    path = _file(tmp_path / "a b.txt", "a\r\nb\r\n\r\nc\rd\r\re\rf\r")
    command = _refusal(path).split("`")[1]
    assert f"{path}, line 4: " in _refusal(path)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert _turns(tmp_path / "NEW.txt") == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_damage_in_utf_8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    """For one damaged line in a Chinese file the command converted the whole file from GB18030."""
    path = _file(tmp_path / "c.txt", TALK.encode() + b"\n\xff\xfe bad\nok\n")
    message = _refusal(path)
    assert "line 10: is not UTF-8 (byte 0xff), though the text around it is" in message
    subprocess.run(message.split("`")[1], shell=True, check=False)  # iconv -c says 1 where it left something out
    assert _turns(tmp_path / "c-utf8.txt") == [*TURNS, ["bad", "ok"]]


@pytest.mark.parametrize("ascii_lines", [5, 9_000, 120_001])
def test_an_encoding_is_recognised_far_into_a_file(tmp_path: Path, ascii_lines: int) -> None:
    """The failing piece begins within a line or a character: the sample was not text in any encoding."""
    talk = "how are you\nfine\n\n" * (ascii_lines // 3)
    path = _file(tmp_path / "c.txt", talk.encode() + (TALK * 5_000).encode("gb18030"))
    message = _refusal(path)
    assert f", line {ascii_lines // 3 * 3 + 1}: is not UTF-8 but GB18030 (GBK, GB2312); convert it" in message


def test_the_error_for_a_truncated_file_says_so(tmp_path: Path) -> None:
    """An incomplete download ends within a character; it has no other encoding."""
    assert "cut short" in _refusal(_file(tmp_path / "c.txt", "你好\n你好".encode()[:-1]))
    assert "line 2: is damaged UTF-16" in _refusal(_file(tmp_path / "c.txt", "hi\nyou\n".encode("utf-16")[:-1]))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04" + b"x" * 50, "a zip archive"),
        (gzip.compress(b"hi\nyou\n", mtime=0), "name it c.txt.gz"),
        (b"%PDF-1.7 x", "a PDF file"),
        (bytes(range(256)) * 40, "not text"),
        (b"\x01\x02\x03abc\x04\x05\x06\n" * 50, "is not text"),
    ],
)
def test_the_error_for_a_file_that_is_not_text_names_its_kind(tmp_path: Path, content: bytes, what: str) -> None:
    """The error for a spreadsheet named .txt was an iconv command."""
    assert what in _refusal(_file(tmp_path / "c.txt", content))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without line ends was read into memory whole."""
    monkeypatch.setattr("chitchat.text.lines.LONGEST_LINE", 1 << 20)
    assert "line 2: is longer than" in _refusal(_file(tmp_path / "c.txt", "a\n" + "x" * (3 << 20)))


@pytest.mark.parametrize("name", ["talk.txt", "cr-only.txt"])
def test_the_fields_files_read_alike(shared: Path, name: str) -> None:
    """The same talk with line ends of old Macs was one line, refused as one-sided."""
    if not (shared / "field").is_dir():
        pytest.skip(f"no field/ under {shared}")
    assert _turns(shared / "field" / name) == _turns(shared / "field" / "talk.txt")
    assert _turns(shared / "field" / "utf16-bom.txt")[0] == ["how are you 0", "in a small town 0"]


def test_a_vocabulary_in_another_encoding_is_named_and_with_a_mark_is_read(tmp_path: Path) -> None:
    """A vocab.txt that an editor saved as UTF-16 was `not UTF-8; convert the file`."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你好吗我很今天气不错是的喜欢茶但更咖啡们去喝吧"]
    text = "\n".join(tokens) + "\n"
    plain = read_wordpiece(_file(tmp_path / "vocab.txt", text)).get_vocab()
    for codec in ("utf-16", "utf-8-sig", "utf-32"):
        assert read_wordpiece(_file(tmp_path / "vocab.txt", text.encode(codec))).get_vocab() == plain
    assert read_wordpiece(_file(tmp_path / "vocab.txt", text.replace("\n", "\r"))).get_vocab() == plain
    with pytest.raises(BadInput, match=r"--tokenizer .*vocab\.txt, line 6: is not UTF-8 but GB18030") as error:
        read_wordpiece(_file(tmp_path / "vocab.txt", text.encode("gb18030")), option="--tokenizer ")
    assert "iconv -f gb18030" in str(error.value)
