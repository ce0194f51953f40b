"""Detection of encodings: a single result is right, an uncertain one names all candidates."""

import random
from pathlib import Path

import pytest

from chitchat.text.encoding import detect_legacy, detect_mark, detect_wide

CHINESE = "你好吗\n我很好 Hello\n今天天气不错，我们去喝茶吧。\n是的 OK\n喜欢茶吗\n喜欢，但是我更喜欢咖啡\n"
TEXTS = {
    "gb18030": CHINESE,
    "cp950": "你好，今天天氣怎麼樣？\n我很好，謝謝你的關心。\n你喜歡看電影嗎？\n喜歡，最近看了一部愛情片。\n",
    "cp932": "こんにちは、元気ですか\n今日はいい天気ですね\n映画を見に行きませんか\nいいですね\n",
    "euc-jp": "こんにちは、元気ですか\n今日はいい天気ですね\n映画を見に行きませんか\nいいですね\n",
    "cp949": "안녕하세요, 잘 지내세요?\n오늘 날씨가 좋네요\n영화 보러 갈까요?\n좋아요\n",
    "windows-1251": "Привет, как дела?\nхорошо, спасибо\nчто ты делаешь сегодня вечером\n",
    "koi8-r": "Привет, как дела?\nхорошо, спасибо\nчто ты делаешь сегодня вечером\n",
    "windows-1252": "Schöne Grüße aus München\nDanke, ebenso\nWie heißt du?\nJürgen\n",
}


@pytest.mark.parametrize("iconv", TEXTS)
def test_a_legacy_encoding_is_recognised_by_a_few_lines(iconv: str) -> None:
    """Everything that was not UTF-8 was called GB18030, and the command wrote a wrong text."""
    sample = b"\n".join(line for line in TEXTS[iconv].encode(iconv).split(b"\n") if not line.isascii())
    assert [found.iconv for found in detect_legacy(sample)] == [iconv]


def test_two_encodings_that_both_fit_are_both_named() -> None:
    """Two characters cannot distinguish Chinese from Korean: a single result would often be wrong."""
    found = [each.iconv for each in detect_legacy("你好".encode("gb18030"))]
    assert found[0] == "gb18030"
    assert "cp949" in found
    french = [each.iconv for each in detect_legacy("Où est le café ?\nprès d'ici".encode("latin-1"))]
    assert french == ["windows-1252", "windows-1250"]


def test_random_bytes_fit_no_encoding() -> None:
    """Random bytes are valid Windows-1252; a command for them would only hide the damage."""
    assert detect_legacy(random.Random(0).randbytes(4000)) == []
    assert detect_legacy(b"\xff\xfe") == []


@pytest.mark.parametrize("text", [CHINESE, *TEXTS.values(), "how are you\nfine\n"])
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf_16_and_utf_32_without_a_mark_are_distinguished(text: str, codec: str) -> None:
    """UTF-16 of English is valid UTF-8 with a NUL in every second place, and was trained on as such."""
    found = detect_wide(text.encode(codec))
    assert found is not None
    assert found.codec == codec


@pytest.mark.parametrize(
    "text", ["hello\0\nhi\0 there\n\ngood night\nsee you\n\n", "你好\0吗\n我很\0好\n" * 9, "no zeros"]
)
def test_some_nul_characters_do_not_make_utf_16(text: str) -> None:
    """Two NULs at odd places read as a mark of UTF-16 lead to a command that destroys the file."""
    assert detect_wide(text.encode()) is None
    assert detect_wide(text.encode("gb18030")) is None


def test_a_byte_order_mark_is_read() -> None:
    """UTF-32's little-endian mark begins as UTF-16's does: in the wrong order the wrong one wins."""
    for codec in ("utf-8-sig", "utf-16", "utf-32"):
        head = "hi".encode(codec)
        decoded, mark = detect_mark(head)
        assert head[mark:].decode(decoded) == "hi"
    assert detect_mark("\ufeff你".encode("gb18030")) == ("gb18030", 4)
    assert detect_mark(b"hi") == ("utf-8", 0)


def test_samples_of_a_real_corpus_are_never_misnamed(shared: Path) -> None:
    """Short texts lie in the ranges of several encodings: GB18030 must be named first, and alone by ten lines."""
    lines = (shared / "data" / "kdconv" / "film.txt").read_text(encoding="utf-8").splitlines()
    chance = random.Random(0)
    for count in (2, 10):
        for _ in range(60):
            begin = chance.randrange(len(lines) - count)
            part = [line.encode("gb18030") for line in lines[begin : begin + count]]
            found = [each.iconv for each in detect_legacy(b"\n".join(line for line in part if not line.isascii()))]
            assert found[:1] == ["gb18030"]
            assert count == 2 or found == ["gb18030"]
