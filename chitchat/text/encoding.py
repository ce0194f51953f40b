"""Detection of text encodings: by a byte-order mark, or by decoding a sample with each candidate.

A multi-byte encoding fits if nearly all characters that it decodes are common ones of its language (the first level of
GB 2312, Big5 and JIS X 0208, the Hangul of KS X 1001; the ranges are those of the standards), a single-byte one if it
decodes letters of its script in plausible places. If two fit, both are named in the error.
"""

import codecs
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SAMPLE_BYTES = 1 << 16
_MARKS = (  # UTF-32 before UTF-16, whose mark begins the same way
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)


@dataclass(frozen=True)
class Encoding:
    """An encoding: its common name, that of `iconv`, and that of Python's codec."""

    name: str
    iconv: str
    codec: str


_WIDE = {
    4: (
        Encoding("UTF-32 (little-endian)", "utf-32le", "utf-32-le"),
        Encoding("UTF-32 (big-endian)", "utf-32be", "utf-32-be"),
    ),
    2: (
        Encoding("UTF-16 (little-endian)", "utf-16le", "utf-16-le"),
        Encoding("UTF-16 (big-endian)", "utf-16be", "utf-16-be"),
    ),
}
# Ranges of lead and trail bytes: (first lead, last lead, first trail, last trail).
_Ranges = Sequence[tuple[int, int, int, int]]
_MULTI_BYTE: tuple[tuple[Encoding, _Ranges], ...] = (
    (Encoding("GB18030 (GBK, GB2312)", "gb18030", "gb18030"), ((0xB0, 0xD7, 0xA1, 0xFE), (0xA1, 0xA3, 0xA1, 0xFE))),
    (
        Encoding("Big5", "cp950", "cp950"),
        ((0xA4, 0xC6, 0x40, 0x7E), (0xA4, 0xC6, 0xA1, 0xFE), (0xA1, 0xA3, 0x40, 0x7E), (0xA1, 0xA3, 0xA1, 0xFE)),
    ),
    (Encoding("Shift_JIS", "cp932", "cp932"), ((0x81, 0x83, 0x40, 0xFC), (0x88, 0x97, 0x40, 0xFC))),
    (Encoding("EUC-JP", "euc-jp", "euc_jp"), ((0xA1, 0xA5, 0xA1, 0xFE), (0xB0, 0xCF, 0xA1, 0xFE))),
    (Encoding("EUC-KR", "cp949", "cp949"), ((0xB0, 0xC8, 0xA1, 0xFE), (0xA1, 0xA3, 0xA1, 0xFE))),
)
_WESTERN = Encoding("Windows-1252 (Latin-1)", "windows-1252", "cp1252")
_CENTRAL = Encoding("Windows-1250", "windows-1250", "cp1250")
_CYRILLIC = (Encoding("Windows-1251", "windows-1251", "cp1251"), Encoding("KOI8-R", "koi8-r", "koi8_r"))
_WESTERN_SIGNS = frozenset("«»¿¡€£§°·‘’‚“”„–—…™©®´\u00a0ªº½¼²³")
_RARE_LETTERS = frozenset("ÿþÞÝ×÷")
# High bytes of UTF-16 text: Latin (0), the other alphabets (U+03xx to U+12xx), punctuation and kana (U+30xx).
_ALPHABET_ROWS = frozenset({0, *range(0x03, 0x09), *range(0x0E, 0x13), 0x30})
_SURE_CHARACTERS = 12  # this many Chinese characters are all in the range of the Hangul once in a thousand texts
_SURE_SHARE, _FITS_SHARE = 0.97, 0.85


def detect_mark(head: bytes) -> tuple[str, int]:
    """`(codec, length of the byte-order mark)` of a file that begins with `head`; UTF-8 and 0 without a mark."""
    return next(((codec, len(mark)) for mark, codec in _MARKS if head.startswith(mark)), ("utf-8", 0))


def detect_wide(sample: bytes) -> Encoding | None:
    """UTF-16 or UTF-32 without a mark, by its zero bytes; None for other text, even with some NUL characters."""
    if 0 not in sample:
        return None
    widths = (4, 2) if _halves_are_zero(sample) else (4,)
    for width in widths:
        fitting = [encoding for encoding in _WIDE[width] if _reads_as_text(sample, encoding.codec, width)]
        if len(fitting) == 1:
            return fitting[0]
    return None


def detect_legacy(sample: bytes) -> list[Encoding]:
    """The encodings that fit a sample that is not UTF-8, the likeliest first; a single one is certain."""
    shares = {encoding: _common_share(sample, encoding, ranges) for encoding, ranges in _MULTI_BYTE}
    count = max((characters for _, characters in shares.values()), default=0)
    fitting = [encoding for encoding, (share, _) in shares.items() if share >= _FITS_SHARE]
    fitting.sort(key=lambda encoding: -shares[encoding][0])
    single = [encoding for encoding in _CYRILLIC if _is_cyrillic(sample, encoding)] or _western_of(sample)
    if count < _SURE_CHARACTERS or not fitting:
        return fitting + single
    # Chinese uses the ranges of kana and Hangul as well; text in these alone is Japanese or Korean.
    narrow = [encoding for encoding in fitting if encoding.iconv in ("euc-jp", "cp949")]
    sure = [encoding for encoding in narrow if shares[encoding][0] >= _SURE_SHARE and _is_narrow(sample, encoding)]
    best = (sure or fitting)[0]
    rivals = [other for other in fitting if shares[best][0] - shares[other][0] < 0.1]
    return [best] if sure or len(rivals) == 1 else rivals


def _halves_are_zero(sample: bytes) -> bool:
    """Whether zero bytes are halves of characters, and not NUL characters in other text.

    Either the high bytes are nearly all the same few (an alphabet, kana), or the sample is neither UTF-8 nor mostly
    ASCII (Chinese).
    """
    for side in (sample[::2], sample[1::2]):
        frequent = Counter(side).most_common(3)
        rows = sum(count for byte, count in frequent if byte in _ALPHABET_ROWS)
        if 0 in dict(frequent) and sum(count for _, count in frequent) >= len(side) * 0.5 and rows >= len(side) * 0.4:
            return True
    if _decoded(sample, "utf-8") is not None or sum(0x20 <= byte < 0x7F for byte in sample) >= len(sample) * 0.75:
        return False
    text = sample.replace(b"\0", b"")
    return all(_common_share(text, encoding, ranges)[0] < _SURE_SHARE for encoding, ranges in _MULTI_BYTE)


def _reads_as_text(sample: bytes, codec: str, width: int) -> bool:
    text = _decoded(sample[: len(sample) // width * width], codec) or ""
    odd = sum(unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") and not char.isspace() for char in text)
    zeros = sum(char < "\u0100" for char in text)  # other characters rarely have a zero byte
    return bool(text) and odd <= len(text) / 50 and (width == 4 or zeros >= sample.count(0) * 0.25)


def _decoded(sample: bytes, codec: str) -> str | None:
    """The sample, whose end may be cut, as text; None if it cannot be decoded."""
    try:
        return codecs.getincrementaldecoder(codec)("strict").decode(sample)
    except UnicodeDecodeError:
        return None


def _common_share(sample: bytes, encoding: Encoding, ranges: _Ranges) -> tuple[float, int]:
    """`(share, count)`: the share of common characters among those beyond ASCII, and the number of these."""
    text = _decoded(sample, encoding.codec)
    found = [char.encode(encoding.codec) for char in text if not char.isascii()] if text else []
    if not found:
        return 0.0, 0
    common = sum(
        len(code) == 2 and any(a <= code[0] <= b and c <= code[1] <= d for a, b, c, d in ranges) for code in found
    )
    return common / len(found), len(found)


def _is_narrow(sample: bytes, encoding: Encoding) -> bool:
    """Whether the sample, as EUC-JP or EUC-KR, looks Japanese (a fifth is kana) or Korean (Hangul and spaces)."""
    text = _decoded(sample, encoding.codec) or ""
    letters = [char for char in text if not char.isascii()]
    if encoding.iconv == "euc-jp":
        return sum("\u3040" <= char <= "\u30ff" for char in letters) >= len(letters) / 5
    return sum("\uac00" <= char <= "\ud7a3" for char in letters) >= len(letters) * 0.9


def _is_cyrillic(sample: bytes, encoding: Encoding) -> bool:
    text = _decoded(sample, encoding.codec) or ""
    letters = [char for char in text if char.isalpha()]
    cyrillic = [char for char in letters if "\u0400" <= char <= "\u04ff"]
    small = sum(char.islower() for char in cyrillic)
    beyond = sum(not char.isascii() for char in text)
    return len(cyrillic) >= max(len(letters) * 0.6, beyond * 0.9, 4) and small >= len(cyrillic) * 0.6


def _western_of(sample: bytes) -> list[Encoding]:
    """Windows-1252 if its letters are among ASCII ones, and Windows-1250 too if that decodes differently."""
    text = _decoded(sample, _WESTERN.codec) or ""
    beyond = [char for char in text if not char.isascii()]
    letters = sum(char.isalpha() for char in text)
    fitting = sum((char.isalpha() and char not in _RARE_LETTERS) or char in _WESTERN_SIGNS for char in beyond)
    if not beyond or fitting < len(beyond) * 0.95 or len(beyond) > letters * 0.5:
        return []
    return [_WESTERN] if text == _decoded(sample, _CENTRAL.codec) else [_WESTERN, _CENTRAL]
