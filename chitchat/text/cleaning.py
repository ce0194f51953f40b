"""Cleaning of text: characters that are not text are removed or replaced, and counted.

Control characters (C0 and C1) and byte-order marks (U+FEFF, and U+FFFE, which is one in the wrong byte order) are
removed, as by BERT's tokenizer. A lone surrogate, which JSON can contain, becomes U+FFFD. U+FFFD itself, which marks a
character that an earlier conversion lost, is kept and counted. White space and zero-width characters are removed at the
ends of a text and kept within (a joiner makes an emoji, a zero-width space separates words in Thai). Tabs, line ends
and the separators U+0085, U+2028, U+2029 are white space.
"""

import re
from dataclasses import dataclass

_CONTROL = "\\x00-\\x08\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f"
_CONTROLS = re.compile(f"[{_CONTROL}]")
_MARKS = re.compile("[\ufeff\ufffe]")
_HALVES = re.compile("[\ud800-\udfff]")
_SUSPECT = re.compile(f"[{_CONTROL}\ufeff\ufffd\ufffe\ud800-\udfff]")
# White space and invisible characters: default-ignorable code points, Hangul fillers, the Braille blank.
_INVISIBLE = re.compile(
    f"[{_CONTROL}\\s\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\U000e0000-\U000e0fff]*"
)
_EDGES = re.compile("^[\\s\u200b\u2060]+|[\\s\u200b\u2060]+$")


@dataclass
class Cleaned:
    """Counts of characters removed, lone surrogates replaced, and U+FFFD found."""

    control_characters: int = 0
    byte_order_marks: int = 0
    half_surrogates: int = 0
    replacement_characters: int = 0


def clean(text: str, found: Cleaned) -> str:
    """The cleaned text; "" if it has no visible character. `found` counts what was removed and replaced."""
    if (not text.isprintable() or "\ufffd" in text) and _SUSPECT.search(text) is not None:
        if _HALVES.search(text) is not None:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # joins pairs
            text, halves = _HALVES.subn("\ufffd", text)
            found.half_surrogates += halves
            found.replacement_characters -= halves
        text, controls = _CONTROLS.subn("", text)
        text, marks = _MARKS.subn("", text)
        found.control_characters += controls
        found.byte_order_marks += marks
        found.replacement_characters += text.count("\ufffd")
    text = text.strip()
    if text.isascii():  # without white space and control characters, all ASCII is visible
        return text
    if text[:1] in ("\u200b", "\u2060") or text[-1:] in ("\u200b", "\u2060"):
        text = _EDGES.sub("", text)
    return "" if is_blank(text) else text


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: zero-width characters are as blank as spaces."""
    return _INVISIBLE.fullmatch(text) is not None
