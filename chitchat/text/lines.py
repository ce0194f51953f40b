"""Text files as streams of text and of lines: compression, encoding and line ends are recognised.

A byte-order mark decides the encoding (UTF-8, UTF-16, UTF-32, GB18030). Without one it is UTF-8; a file in another
encoding is refused with its name and the command that converts it. Lines end with `\\n` or `\\r\\n`; in a file without
`\\n` they end with `\\r` (old Macs), else U+2028, U+0085 or a vertical tab, else U+2029 or a form feed, which are a
blank line if the file has the former. In other files those characters are part of the text.
"""

import codecs
import io
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from chitchat.errors import BadInput
from chitchat.text.archive import file_kind, form_of, open_bytes, unpack_command
from chitchat.text.encoding import SAMPLE_BYTES, detect_legacy, detect_mark, detect_wide

_PIECE_BYTES = 1 << 20
# Characters; without a limit a file without line ends would be read into memory whole.
LONGEST_LINE = 1 << 26
_LINE_ENDS, _PARAGRAPH_ENDS = "\u2028\x85\x0b", "\u2029\x0c"


def text_lines(path: Path, name: str | None = None) -> Iterator[tuple[int, str]]:
    """`(number, text)` of each line, from 1, without `\\n` but with a `\\r` before it.

    `name` begins an error (default: the path). Raises `BadInput` for a file that is not text.
    """
    number, rest = 0, ""
    for piece in text_pieces(path, name):
        lines = (rest + piece).split("\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            yield number, line
        if len(rest) > LONGEST_LINE:
            raise BadInput(
                f"{name or path}, line {number + 1}: is longer than {LONGEST_LINE >> 20} million characters; "
                "give a text file with line ends"
            )
    if rest:
        yield number + 1, rest


def text_pieces(path: Path, name: str | None = None) -> Iterator[str]:
    """The text of a file in pieces, without its byte-order mark, every line end a `\\n`.

    `name` begins an error (default: the path). Raises `BadInput`, with the line, for a file that is not text.
    """
    name = name or str(path)
    with open_bytes(path, name) as file:
        head = file.read(_PIECE_BYTES)
        codec, mark = detect_mark(head)
        if not mark:
            _check_text(head, path, name)
        decoder = codecs.getincrementaldecoder(codec)("strict")
        ends: Callable[[str, bool], str] | None = None
        data, line, plain = head[mark:], 1, True
        while True:
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise _undecodable(error, codec, path, f"{name}, line {line}", plain, ends is None) from error
            if ends is None and text:
                _check_printable(text, name)
                ends = _line_ends(text)
            if ends is not None and (piece := ends(text, not data)):
                line += piece.count("\n")
                plain = plain and piece.isascii()
                yield piece
            if not data:
                return
            data = file.read(_PIECE_BYTES)


def converted(path: Path, encoding: str, options: str = "") -> str:
    """The command that converts a file to UTF-8."""
    target = path.with_name(path.name.removesuffix(form_of(path)[1])) if form_of(path)[1] else path
    target = target.with_name(f"{target.stem}-utf8{target.suffix}")
    unpack = unpack_command(path)
    source = "" if unpack else f" {shlex.quote(str(path))}"
    return f"`{unpack}iconv {options}-f {encoding} -t utf-8{source} > {shlex.quote(str(target))}`"


def _check_text(head: bytes, path: Path, name: str) -> None:
    """Raise `BadInput` if the first bytes of a file without a mark show another encoding, or no text."""
    found = file_kind(head)
    if found:
        ending = {"a gzip archive": ".gz", "a zstd archive": ".zst"}.get(found)
        remedy = f"name it {path.name}{ending}" if ending else "export it as text, in UTF-8"
        raise BadInput(f"{name}: is {found}, not text; {remedy}")
    wide = detect_wide(head[:SAMPLE_BYTES])
    if wide:
        raise BadInput(f"{name}: is {wide.name} without a byte-order mark; convert it: {converted(path, wide.iconv)}")


def _check_printable(text: str, name: str) -> None:
    """Raise `BadInput` for text full of control characters."""
    start = text[:SAMPLE_BYTES]
    controls = sum(not char.isspace() and (char < " " or "\x7f" <= char < "\xa0") for char in start)
    if controls > 8 and controls > len(start) / 10:
        raise BadInput(
            f"{name}: is not text ({controls} of its first {len(start)} characters are control characters); "
            "give a text file in UTF-8"
        )


def _line_ends(text: str) -> Callable[[str, bool], str]:
    """A function `(piece, final)` that makes the line ends of a file `\\n`, chosen by its first text."""
    if "\n" in text:
        return lambda piece, final: piece
    if "\r" in text[:-1]:
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        return lambda piece, final: newlines.decode(piece, final=final)
    lines = any(end in text for end in _LINE_ENDS)
    table = {ord(end): "\n" for end in _LINE_ENDS}
    table |= {ord(end): "\n\n" if lines else "\n" for end in _PARAGRAPH_ENDS}
    return lambda piece, final: piece.translate(table)


def _undecodable(error: UnicodeDecodeError, codec: str, path: Path, where: str, plain: bool, first: bool) -> BadInput:
    """The error for bytes that cannot be decoded.

    `plain`: all text before this piece was ASCII; `first`: it is the first piece.
    """
    if codec != "utf-8":
        return BadInput(f"{where}: is damaged {codec.upper()} ({error.reason}); save the file again, as UTF-8")
    piece = bytes(error.object)
    if error.reason == "unexpected end of data":
        return BadInput(f"{where}: ends within a UTF-8 character; the file is cut short, get it again")
    # A sample of whole lines around the error.
    begin = max(0, error.start - SAMPLE_BYTES // 2)
    sample = piece[begin : begin + SAMPLE_BYTES]
    wide = detect_wide(piece[:SAMPLE_BYTES])
    lines = sample.split(b"\n")
    if len(lines) > 2:  # the first and the last may be incomplete
        lines = lines[begin > 0 or not first : None if begin + len(sample) == len(piece) else -1]
    foreign = [line for line in lines if not line.isascii()]
    whole = sum(_is_utf8(line) for line in foreign)
    if wide is None and (not plain or whole > len(foreign) - whole):
        byte = piece[error.start]
        return BadInput(
            f"{where}: is not UTF-8 (byte 0x{byte:02x}), though the text around it is; repair the line, or remove the "
            f"damage: {converted(path, 'utf-8', '-c ')}"
        )
    fitting = [wide] if wide else detect_legacy(b"\n".join(foreign))
    if not fitting and sum(byte < 9 or 13 < byte < 32 for byte in sample) > len(sample) / 20:
        return BadInput(f"{where}: is not text, or in an unknown encoding; give a text file in UTF-8")
    if not fitting:
        return BadInput(
            f"{where}: is not UTF-8, and its encoding is uncertain; save the file as UTF-8, "
            "or convert it with `iconv -f ENCODING -t utf-8`"
        )
    names = " or ".join(encoding.name for encoding in fitting)
    others = ", ".join(f"-f {encoding.iconv}" for encoding in fitting[1:])
    otherwise = f", read the result, or else with {others}" if others else ""
    return BadInput(f"{where}: is not UTF-8 but {names}; convert it: {converted(path, fitting[0].iconv)}{otherwise}")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
