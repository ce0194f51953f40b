"""Tokenizers: train a byte-level BPE, read a BERT `vocab.txt`, or take that of a checkpoint.

All come out as fast tokenizers that carry the dialogue format (`chitchat.dialogue`) and that `AutoTokenizer` loads
unchanged after `save_pretrained`. Vocabularies are never altered.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chitchat.checkpoint import load_tokenizer
from chitchat.dialogue import WORD_JOINER, dialogue_of, open_dialogue, set_chat_template
from chitchat.errors import BadInput

_SPECIALS = {
    "chitchat": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "dialogpt": {"eos_token": "<|endoftext|>"},
}
_BERT_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# The trainer holds some 120 bytes of memory for each byte of a distinct word. In Chinese a whole clause is such a word,
# so 16 MB of text took 1.9 GB; with this limit it is a third of a gigabyte in any language.
DISTINCT_BYTES = 3_000_000
_WORD = re.compile(r"\w+")
# Scripts that put no spaces between words, with their punctuation and the full-width forms.
_UNSPACED = (
    r"[\u2E80-\u312F\u31A0-\u9FFF\uF900-\uFAFF\uFE30-\uFE4F\uFF00-\uFFEF\u2014\u2018-\u201D\u2026\x{20000}-\x{3FFFF}]"
)


def check_vocab_size(vocab_size: int, family: str) -> None:
    """Raise `BadInput` for a vocabulary that cannot hold the 256 bytes and the special tokens."""
    least = 256 + len(_SPECIALS[family])
    if vocab_size < least:
        raise BadInput(f"--vocab-size {vocab_size}: too small for byte-level BPE; give at least {least}")


def train_tokenizer(texts: Iterable[str], vocab_size: int, family: str = "chitchat") -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, the special tokens first: it has no unknown text.

    Fewer tokens come out where the texts do not repeat enough pieces. No more of the texts is read than memory is
    good for (`DISTINCT_BYTES`).
    """
    check_vocab_size(vocab_size, family)
    specials = _SPECIALS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(WORD_JOINER, "")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_bounded(texts, DISTINCT_BYTES), trainer)
    return _finished(tokenizer, specials, family)


def _bounded(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The texts up to where their distinct words hold `limit` bytes."""
    seen: set[str] = set()
    size = 0
    for text in texts:
        yield text
        for word in _WORD.findall(text):
            if word not in seen:
                seen.add(word)
                size += len(word.encode())
        if size >= limit:
            return


def read_vocab_txt(path: Path, dialogue: str | None = None) -> PreTrainedTokenizerFast:
    """The WordPiece tokenizer of a BERT `vocab.txt` (a token a line), every Chinese character a word of its own.

    Text is put into lower case unless the vocabulary has tokens with capitals. Raises `BadInput` for a file that is
    not such a vocabulary.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInput(f"--tokenizer {path}: line {line} is not UTF-8; convert the file") from error
    except OSError as error:
        raise BadInput(f"--tokenizer {path}: cannot be read ({error.strerror}); check the path") from error
    tokens = [line.rstrip("\r") for line in lines]
    if tokens[-1] == "":
        tokens.pop()
    vocab = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in _BERT_SPECIALS.values() if token not in vocab and token != "[MASK]"]
    if missing:
        raise BadInput(
            f"--tokenizer {path}: is not a BERT vocabulary (no {', '.join(missing)}); give a vocab.txt, a token a line"
        )
    if len(vocab) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise BadInput(f"--tokenizer {path}: the token {twice!r} stands in it twice; every line must be another token")
    specials = {name: token for name, token in _BERT_SPECIALS.items() if token in vocab}
    cased = any(token != token.lower() for token in tokens if not (token.startswith("[") and token.endswith("]")))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = unspaced_decoder()
    family = dialogue_of(_wrapped(tokenizer, specials), dialogue).family
    return _finished(tokenizer, specials, family)


def unspaced_decoder() -> decoders.Decoder:
    """A WordPiece decoder that puts no spaces beside characters of scripts that are written without them."""
    gap = Regex(f"(?<={_UNSPACED}) | (?={_UNSPACED})")
    return decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=True), decoders.Fuse(), decoders.Replace(gap, "")]
    )


def open_tokenizer(spec: str, dialogue: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer that `--tokenizer` names: a BERT vocab.txt, a folder that has one, or a hub id.

    Raises `BadInput` for anything else. The dialogue format is recognised, or is `dialogue`, and set.
    """
    path = Path(spec)
    if path.is_file():
        if path.suffix != ".txt":
            raise BadInput(f"--tokenizer {path}: is neither a vocab.txt nor a folder; give the folder that holds it")
        return read_vocab_txt(path, dialogue)
    if not path.exists() and (
        spec.startswith((".", "/", "~")) or spec.count("/") > 1 or path.suffix in (".txt", ".json")
    ):
        raise BadInput(f"--tokenizer {spec}: no such file or folder; give a vocab.txt, a checkpoint folder or a hub id")
    try:
        tokenizer = load_tokenizer(path if path.exists() else spec)
    except BadInput as error:
        raise BadInput(f"--tokenizer {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise BadInput(f"--tokenizer {spec}: has no fast version (tokenizer.json); convert it with transformers first")
    _unspace(tokenizer)
    set_chat_template(tokenizer, open_dialogue(tokenizer, f"--tokenizer {spec}", dialogue).family)
    return tokenizer


def _unspace(tokenizer: PreTrainedTokenizerFast) -> None:
    """Give a BERT tokenizer that splits Chinese into characters a decoder that joins them again."""
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.model, models.WordPiece) and isinstance(backend.decoder, decoders.WordPiece):
        backend.decoder = unspaced_decoder()


def _finished(tokenizer: Tokenizer, specials: dict[str, str], family: str) -> PreTrainedTokenizerFast:
    fast = _wrapped(tokenizer, specials)
    set_chat_template(fast, family)
    return fast


def _wrapped(tokenizer: Tokenizer, specials: dict[str, str]) -> PreTrainedTokenizerFast:
    # PreTrainedTokenizerFast and not BertTokenizerFast: it takes tokenizer.json as it is, the decoder included.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **specials)
