"""The WordPiece tokenizer of a BERT `vocab.txt`: a token a line, as in GPT2-chitchat.

Whether text is lower-cased is in a `tokenizer_config.json` beside it (`do_lower_case`), else deduced from the letters
of the vocabulary.
"""

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chitchat.errors import BadInput
from chitchat.formats.config import read_json
from chitchat.text.lines import text_lines

SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_NEEDED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # the published vocabularies of GPT2-chitchat have no [MASK]
_AN_ALPHABET = 10  # letters; fewer are symbols, such as Ω
# Scripts without spaces between words, their punctuation and the full-width forms.
_UNSPACED = (
    r"[\u2E80-\u312F\u31A0-\u9FFF\uF900-\uFAFF\uFE30-\uFE4F\uFF00-\uFFEF\u2014\u2018-\u201D\u2026\x{20000}-\x{3FFFF}]"
)


def read_wordpiece(path: Path, option: str = "") -> PreTrainedTokenizerFast:
    """The tokenizer of a BERT `vocab.txt`, every Chinese character a word of its own.

    `option` precedes the path in errors. Text is lower-cased and loses its accents unless the vocabulary is cased
    (`is_cased`) or a tokenizer_config.json beside it says otherwise. Raises `BadInput` for another file.
    """
    where = f"{option} {path}".strip()
    tokens = [line.rstrip("\r") for _, line in text_lines(path, where)]
    while tokens and tokens[-1] == "":
        tokens.pop()
    vocab = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in _NEEDED if token not in vocab]
    if missing:
        raise BadInput(f"{where}: is not a BERT vocabulary (no {', '.join(missing)}); give a vocab.txt, a token a line")
    if len(vocab) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise BadInput(f"{where}: has the token {twice!r} twice; every line must be another token")
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    record = read_json(path.parent / "tokenizer_config.json", optional=True)
    options = {name: record[name] for name in names if isinstance(record.get(name), bool)}
    lowercase = bool(options.get("do_lower_case", not is_cased(tokens)))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = unspaced_decoder()
    specials = {name: token for name, token in SPECIALS.items() if token in vocab}
    return wrap_tokenizer(tokenizer, specials)


def is_cased(tokens: list[str]) -> bool:
    """Whether a WordPiece vocabulary is cased.

    WordPiece starts from single letters, so a cased vocabulary has most capitals as tokens. A few words with capitals
    (special tokens, `T恤`), Roman numerals or Greek symbols do not make one: lower-cased text never contains them, and
    without lower-casing `WIFI` would be unknown.
    """
    words = {token.removeprefix("##") for token in tokens}
    single = {word for word in words if len(word) == 1 and word.isalpha() and word.lower() != word.upper()}
    latin = {letter for letter in single if letter.isascii()}
    for letters in (latin, single):
        if len(letters) >= _AN_ALPHABET:
            return _mostly_capitals(letters)
    return _mostly_capitals({word for word in words if word.isascii() and word.isalpha()})


def _mostly_capitals(words: set[str]) -> bool:
    """Whether more than a third of the words have capitals; of a cased vocabulary's single letters half are."""
    return 3 * sum(word != word.lower() for word in words) > len(words)


def unspaced_decoder() -> decoders.Decoder:
    """A WordPiece decoder without spaces beside characters of scripts that are written without them."""
    gap = Regex(f"(?<={_UNSPACED}) | (?={_UNSPACED})")
    return decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=True), decoders.Fuse(), decoders.Replace(gap, "")]
    )


def wrap_tokenizer(tokenizer: Tokenizer, specials: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer as a class of transformers; `specials` are its other arguments, such as `sep_token`."""
    # Not BertTokenizerFast, which changes what tokenizer.json says, such as the decoder.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **specials)
