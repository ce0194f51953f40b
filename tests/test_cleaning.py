"""Cleaning: characters that are not text are removed and counted, all others are kept."""

import pytest

from chitchat.text import cleaning
from chitchat.text.cleaning import Cleaned, clean, is_blank


@pytest.mark.parametrize(
    ("text", "cleaned", "counts"),
    [
        ("hello\0", "hello", {"control_characters": 1}),
        ("hi\0 th\x07ere\x92", "hi there", {"control_characters": 3}),
        ("a\ufeffb", "ab", {"byte_order_marks": 1}),
        ("\ufeffa\ufffe", "a", {"byte_order_marks": 2}),
        ("a \ud83d b", "a \ufffd b", {"half_surrogates": 1}),
        ("a\ufffdb\ufffd", "a\ufffdb\ufffd", {"replacement_characters": 2}),
        ("\ud800\ufffd", "\ufffd\ufffd", {"half_surrogates": 1, "replacement_characters": 1}),
        ("\u200b \u2060hi\u200b", "hi", {}),
        ("\u200b\u200c", "", {}),
        ("one\u2028more\x85here\tand\x0bthere", "one\u2028more\x85here\tand\x0bthere", {}),
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧", {}),
        ("می\u200cخواهم", "می\u200cخواهم", {}),
        ("ไทย\u200bไทย", "ไทย\u200bไทย", {}),
    ],
)
def test_characters_that_are_not_text_are_removed_and_counted(text: str, cleaned: str, counts: dict[str, int]) -> None:
    """NULs and byte-order marks went into the model; joined emoji must stay whole."""
    found = Cleaned()
    assert clean(text, found) == cleaned
    assert found == Cleaned(**counts)
    assert clean(cleaned, Cleaned()) == cleaned


def test_every_character_is_cleaned_as_the_patterns_say() -> None:
    """A shortcut for printable text let one through that is removed elsewhere, or took one for invisible."""
    for code in [*range(0x20000), *range(0xE0000, 0xE1000), 0x10FFFF]:
        char, found = chr(code), Cleaned()
        suspect = cleaning._SUSPECT.match(char) is not None
        kept = "\ufffd" if 0xD800 <= code < 0xE000 or code == 0xFFFD else "" if suspect else char
        assert clean(f"a{char}b", found) == f"a{kept}b", hex(code)
        assert sum(vars(found).values()) == suspect, hex(code)
        assert (clean(char, Cleaned()) == "") == (not kept or is_blank(char)), hex(code)


def test_a_surrogate_pair_is_one_character() -> None:
    """A pair that was written as two escapes is an emoji, not damage."""
    found = Cleaned()
    assert clean("\ud83d\ude00", found) == "😀"
    assert found == Cleaned()


@pytest.mark.parametrize("text", ["", " ", "\u3000", "\u200b", "\ufeff", "\u2800", "\u3164", "\0", "\xad\u200e"])
def test_invisible_characters_are_blank(text: str) -> None:
    """A line of Braille blanks looks empty, and became a turn."""
    assert is_blank(text)
    assert not is_blank(text + "。")
