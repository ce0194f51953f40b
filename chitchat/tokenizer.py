"""Tokenizers: train a byte-level BPE, read a BERT `vocab.txt`, or open that of a checkpoint.

All are fast tokenizers with the dialogue format (`chitchat.dialogue`) set, which `AutoTokenizer` loads unchanged after
`save_pretrained`. Vocabularies are never altered.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chitchat.checkpoint import fit_tokenizer, load_tokenizer, tokenizer_folder
from chitchat.dialogue import WORD_JOINER, dialogue_of, open_dialogue, set_chat_template
from chitchat.errors import BadInput
from chitchat.formats.hub import looks_like_hub_id
from chitchat.formats.tokenizer_files import TOKENIZER_FILES, has_tokenizer
from chitchat.formats.wordpiece import read_wordpiece, wrap_tokenizer
from chitchat.system.notices import announce_once

_SPECIALS = {
    "chitchat": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "dialogpt": {"eos_token": "<|endoftext|>"},
}
# The trainer needs some 120 bytes of memory per byte of distinct words; a Chinese clause is one word, so 16 MB of text
# took 1.9 GB. With this limit it is a third of a gigabyte in any language.
DISTINCT_BYTES = 3_000_000
_WORD = re.compile(r"\w+")


def check_vocab_size(vocab_size: int, dialogue: str) -> None:
    """Raise `BadInput` for a vocabulary too small for the 256 bytes and the special tokens."""
    least = 256 + len(_SPECIALS[dialogue])
    if vocab_size < least:
        raise BadInput(f"--vocab-size {vocab_size}: too small for byte-level BPE; give at least {least}")


def train_tokenizer(texts: Iterable[str], vocab_size: int, dialogue: str = "chitchat") -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, special tokens first; no text is unknown to it.

    There are fewer tokens if the texts do not repeat enough pieces. The texts are read up to `DISTINCT_BYTES`.
    """
    check_vocab_size(vocab_size, dialogue)
    specials = _SPECIALS[dialogue]
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
    fast = wrap_tokenizer(tokenizer, specials)
    set_chat_template(fast, dialogue)
    return fast


def _bounded(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The texts until their distinct words have `limit` bytes."""
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
    """The WordPiece tokenizer of a BERT `vocab.txt` (`chitchat.formats.wordpiece`), its dialogue format set."""
    tokenizer = read_wordpiece(path, "--tokenizer")
    set_chat_template(tokenizer, dialogue_of(tokenizer, dialogue).family)
    return tokenizer


def open_tokenizer(spec: str, dialogue: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer given by `--tokenizer`: a BERT vocab.txt, a folder that has a tokenizer, or a hub id.

    The dialogue format is recognised, or is `dialogue`, and set. Raises `BadInput` for anything else.
    """
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix == ".txt" and path.name != "merges.txt":
        return read_vocab_txt(path, dialogue)
    if path.is_file() and path.name not in (*TOKENIZER_FILES, "merges.txt", "tokenizer_config.json"):
        raise BadInput(f"--tokenizer {path}: is neither a vocab.txt nor a folder; give the folder that holds it")
    if not path.exists() and (not looks_like_hub_id(spec) or path.suffix in (".txt", ".json")):
        raise BadInput(f"--tokenizer {spec}: no such file or folder; give a vocab.txt, a checkpoint folder or a hub id")
    try:
        tokenizer = load_tokenizer(path if path.exists() else spec)
    except BadInput as error:
        raise BadInput(f"--tokenizer {error}") from error
    set_chat_template(tokenizer, open_dialogue(tokenizer, f"--tokenizer {spec}", dialogue).family)
    return tokenizer


def tokenizer_of(
    checkpoint: str | Path, tokenizer: str | None = None, other: PreTrainedTokenizerFast | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint: the one that `tokenizer` names, else its own, else `other`, that of the data set.

    Tokens without a row in the checkpoint's table: see `chitchat.checkpoint.fit_tokenizer`. Raises `BadInput` if there
    is no tokenizer.
    """
    if tokenizer is not None:
        return fit_tokenizer(open_tokenizer(tokenizer), tokenizer_folder(checkpoint), f"--tokenizer {tokenizer}")
    folder = tokenizer_folder(checkpoint)
    if other is None or has_tokenizer(folder):
        return load_tokenizer(checkpoint)
    announce_once(f"{checkpoint}: holds no tokenizer; that of the data set is taken for its own")
    return fit_tokenizer(other, folder, "--data")
