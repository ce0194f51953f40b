"""Text to ids and back, for whole replies and for streamed ones.

Beyond the tokenizer itself: text that looks like a special token stays text, so it cannot forge the end of a turn; the
pieces of a stream never split a character and join to exactly what `decode` gives; Chinese from a WordPiece vocabulary
has no spaces between characters.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel, WordPiece

from serve.errors import BadBundle, BadRequest

_REPLACEMENT = "\ufffd"  # what an incomplete or invalid byte sequence decodes to
# Han (with extensions and the supplementary planes), kana, and the full-width signs written among them.
_WIDE = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff\u2018-\u201d\u2026"
_SPACE_IN_WIDE = re.compile(f"(?<=[{_WIDE}]) (?=[{_WIDE}])")


class TextCodec:
    """A tokenizer that treats all text as text. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a tokenizer, whose settings are changed: no truncation, no padding, no parsing of special tokens."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._joins_wide = isinstance(tokenizer.decoder, WordPiece)
        self._alphabet = _byte_alphabet() if isinstance(tokenizer.decoder, ByteLevel) else {}
        self._continuation = getattr(tokenizer.model, "continuing_subword_prefix", None) or ""
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._unk_id = tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None
        added = tokenizer.get_added_tokens_decoder()
        self._alone: dict[int, str] = {}
        self._special_ids = {i for i, token in added.items() if token.special} - {self._unk_id}

    @classmethod
    def open(cls, path: Path) -> "TextCodec":
        """Read a tokenizer.json. Raises BadBundle when it is not one."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise BadBundle(f"{path}: not a tokenizer.json that can be read ({error}); make it again") from error

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """The ids of the text, no special token among them. Raises BadRequest for text that is not Unicode."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:  # a lone surrogate
            raise BadRequest("the text is not valid Unicode (half a surrogate pair); send it as UTF-8") from error
        if self._special_ids.isdisjoint(ids):
            return list(ids)
        # A vocabulary whose words may hold a special token's spelling, such as one that only splits at spaces.
        unknown = [] if self._unk_id is None else [self._unk_id]
        return [kept for i in ids for kept in (unknown if i in self._special_ids else [i])]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens have none, bytes that are not UTF-8 become U+FFFD.

        A piece of a word that opens the text comes without the mark that it goes on one (`##`).
        """
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        if self._continuation and text.startswith(self._continuation):
            opening = next(filter(None, map(self._spelled, ids)), "")
            if len(opening) > len(self._continuation) and opening.startswith(self._continuation):
                text = text[len(self._continuation) :]
        return _SPACE_IN_WIDE.sub("", text) if self._joins_wide else text

    def decode_alone(self, token: int) -> str:
        """`decode` of one id, remembered: streams ask for it at every token."""
        text = self._alone.get(token)
        if text is None:
            text = self._alone[token] = self.decode([token])
        return text

    def _spelled(self, token: int) -> str:
        """A token as the vocabulary has it; "" for one that has no text."""
        return "" if token in self._special_ids else self._tokenizer.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        """What one id stands for: bytes of UTF-8, perhaps only a part of a character.

        A piece of a word comes without the mark that it goes on one (`##`), a word without the space before it.
        """
        spelled = self._tokenizer.id_to_token(token) or ""
        if self._alphabet and all(letter in self._alphabet for letter in spelled):
            return bytes(self._alphabet[letter] for letter in spelled)
        return str(spelled).removeprefix(self._continuation).encode()

    def stream(self) -> "StreamDecoder":
        """Begin to decode one reply token by token."""
        return StreamDecoder(self)


def _byte_alphabet() -> dict[str, int]:
    """The letters that stand for bytes in byte-level BPE (Radford et al. 2019): Latin-1 as it is where it prints."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + index): byte for index, byte in enumerate(others)}


class StreamDecoder:
    """Ids in, text pieces out: `"".join(pieces) == codec.decode(ids)`, and no piece ends inside a character.

    Each step decodes a window: the last token that was sent, then those that are not. tokenizers' DecodeStream does
    the same and loses a tail of bytes that never become a character; here `flush` gives it.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._sent_chars = 0
        self._window: list[int] = []
        self._known = ""  # the text of the window's sent part

    def feed(self, token: int) -> str:
        """Take one id and give the text that it completes, often empty."""
        self._ids.append(token)
        self._window.append(token)
        text = self._codec.decode(self._window)
        complete = text.rstrip(_REPLACEMENT)
        if not complete.startswith(self._known):
            return ""
        piece = complete[len(self._known) :]
        self._sent_chars += len(piece)
        if complete != text:  # the end may be a part of a character: the window stays until it is whole
            self._known = complete
            return piece
        alone = self._codec.decode_alone(token)
        # A token without text is no start for a window: a decoder that joins words with spaces would see a first word.
        self._window, self._known = ([token], alone) if alone else (self._window, text)
        return piece

    def flush(self) -> str:
        """What is left when the reply has ended: the U+FFFD of bytes that no later token completed."""
        return self._codec.decode(self._ids)[self._sent_chars :]


class StopFilter:
    """Cuts a stream of text before the stop string that is complete first, and lets no part of one out.

    The result does not depend on how the text comes in pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def feed(self, piece: str) -> str:
        """Take a piece and give the text that is certainly before any stop string. After a hit: nothing."""
        if self.hit or not self._stops:
            return "" if self.hit else piece
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
