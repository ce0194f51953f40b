"""Characters that are no text: removed or replaced, and counted, so that nothing is taken or lost in silence.

Control characters (C0 and C1, NUL first of all) and byte-order marks (U+FEFF, and U+FFFE, what one looks like the
wrong way round) are removed, as BERT's tokenizer does. Half a surrogate pair, which JSON can spell, becomes U+FFFD.
U+FFFD itself stays: it tells that an earlier conversion lost a character, and is counted for that. White space of any
script and zero-width characters go at the ends of a text; inside they are part of it (a joiner makes an emoji, a
zero-width space parts words in Thai). Tabs, line ends and the separators U+0085, U+2028, U+2029 are white space.
"""

import re
from dataclasses import dataclass

_CONTROL = "\\x00-\\x08\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f"
_CONTROLS = re.compile(f"[{_CONTROL}]")
_MARKS = re.compile("[\ufeff\ufffe]")
_HALVES = re.compile("[\ud800-\udfff]")
_SUSPECT = re.compile(f"[{_CONTROL}\ufeff\ufffd\ufffe\ud800-\udfff]")
# White space, and characters that nobody sees: default-ignorable code points, Hangul fillers, the blank of Braille.
_UNSEEN = re.compile(
    f"[{_CONTROL}\\s\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\U000e0000-\U000e0fff]*"
)
_EDGES = re.compile("^[\\s\u200b\u2060]+|[\\s\u200b\u2060]+$")


@dataclass
class Cleaned:
    """What was found in texts: characters removed, half pairs replaced, and marks of an earlier loss."""

    control_characters: int = 0
    byte_order_marks: int = 0
    half_surrogates: int = 0
    replacement_characters: int = 0


def clean(text: str, found: Cleaned) -> str:
    """The text without control characters, byte-order marks and white space at its ends; "" for one without a visible
    character. `found` counts what was removed."""
    if (not text.isprintable() or "\ufffd" in text) and _SUSPECT.search(text) is not None:
        if _HALVES.search(text) is not None:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # halves that meet
            text, halves = _HALVES.subn("\ufffd", text)
            found.half_surrogates += halves
            found.replacement_characters -= halves
        text, controls = _CONTROLS.subn("", text)
        text, marks = _MARKS.subn("", text)
        found.control_characters += controls
        found.byte_order_marks += marks
        found.replacement_characters += text.count("\ufffd")
    text = text.strip()
    if text.isascii():  # white space and control characters are gone, so what is left is visible
        return text
    if text[:1] in ("\u200b", "\u2060") or text[-1:] in ("\u200b", "\u2060"):
        text = _EDGES.sub("", text)
    return "" if is_blank(text) else text


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: a separator of zero width is as blank as an empty line."""
    return _UNSEEN.fullmatch(text) is not None
