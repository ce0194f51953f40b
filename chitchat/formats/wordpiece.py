"""The WordPiece tokenizer of a BERT `vocab.txt`: a token a line, as GPT2-chitchat has it.

The file does not say whether text is put into lower case before it is looked up. A `tokenizer_config.json` beside it
may (`do_lower_case`); else the letters of the vocabulary tell.
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
_AN_ALPHABET = 10  # letters; fewer are signs, as Ω is
# Scripts that put no spaces between words, with their punctuation and the full-width forms.
_UNSPACED = (
    r"[\u2E80-\u312F\u31A0-\u9FFF\uF900-\uFAFF\uFE30-\uFE4F\uFF00-\uFFEF\u2014\u2018-\u201D\u2026\x{20000}-\x{3FFFF}]"
)


def read_wordpiece(path: Path, option: str = "") -> PreTrainedTokenizerFast:
    """The tokenizer of a BERT `vocab.txt`, every Chinese character a word of its own.

    `option` stands before the path in errors. Text is put into lower case and loses its accents unless the vocabulary
    is cased (`is_cased`), or a tokenizer_config.json beside it says otherwise. Raises `BadInput` for a file that is
    not such a vocabulary.
    """
    where = f"{option} {path}".strip()
    tokens = _read_tokens(path, where)
    vocab = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in _NEEDED if token not in vocab]
    if missing:
        raise BadInput(f"{where}: is not a BERT vocabulary (no {', '.join(missing)}); give a vocab.txt, a token a line")
    if len(vocab) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise BadInput(f"{where}: the token {twice!r} stands in it twice; every line must be another token")
    options = _options_beside(path)
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


def _read_tokens(path: Path, where: str) -> list[str]:
    lines = [line for _, line in text_lines(path, where)]
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and tokens[-1] == "":
        tokens.pop()
    return tokens


def _options_beside(path: Path) -> dict[str, Any]:
    """What a tokenizer_config.json beside a vocab.txt says of how text is normalized."""
    config = path.parent / "tokenizer_config.json"
    record = read_json(config) if config.is_file() else {}
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    return {name: record[name] for name in names if isinstance(record.get(name), bool)}


def is_cased(tokens: list[str]) -> bool:
    """Whether a WordPiece vocabulary tells capitals from small letters.

    WordPiece is trained from single letters, so a vocabulary of cased text has the capitals by themselves, most of
    them. A few words with capitals (special tokens as `<S>`, `T恤`), Roman numerals or Greek signs do not make one:
    in text that is put into lower case they are never found, and in their own case `WIFI` would be unknown.
    """
    words = {token.removeprefix("##") for token in tokens}
    single = {word for word in words if len(word) == 1 and word.isalpha() and word.lower() != word.upper()}
    latin = {letter for letter in single if letter.isascii()}
    for letters in (latin, single):
        if len(letters) >= _AN_ALPHABET:
            return _mostly_capitals(letters)
    return _mostly_capitals({word for word in words if word.isascii() and word.isalpha()})


def _mostly_capitals(words: set[str]) -> bool:
    """Whether more than a third of some words have capitals: in a cased vocabulary half of the single letters do."""
    return 3 * sum(word != word.lower() for word in words) > len(words)


def unspaced_decoder() -> decoders.Decoder:
    """A WordPiece decoder that puts no spaces beside characters of scripts that are written without them."""
    gap = Regex(f"(?<={_UNSPACED}) | (?={_UNSPACED})")
    return decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=True), decoders.Fuse(), decoders.Replace(gap, "")]
    )


def wrap_tokenizer(tokenizer: Tokenizer, specials: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it; `specials` are the tokens by their part (`sep_token`) and its template."""
    # PreTrainedTokenizerFast and not BertTokenizerFast: it takes tokenizer.json as it is, the decoder included.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **specials)
