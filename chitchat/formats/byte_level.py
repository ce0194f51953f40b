"""GPT-2's byte-level BPE from its two files: `vocab.json` and `merges.txt`, or `encoder.json` and `vocab.bpe`."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from chitchat.errors import BadInput, one_line
from chitchat.formats.config import read_json

# Hugging Face's names, and those of openai/gpt-2: the same content.
FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
END_OF_TEXT = "<|endoftext|>"


def read_byte_level(folder: Path, add_prefix_space: bool = False) -> Tokenizer | None:
    """The tokenizer of a folder that has either pair of files; None if it has neither.

    `add_prefix_space` is the value in tokenizer_config.json. Raises `BadInput` for an incomplete pair and for files
    that do not match.
    """
    for names in FILES:
        vocab, merges = (folder / name for name in names)
        if vocab.is_file() and merges.is_file():
            return _read(vocab, merges, add_prefix_space)
    for vocab_name, merges_name in FILES:
        if (folder / vocab_name).is_file():
            raise BadInput(f"{folder}: has {vocab_name} and lacks {merges_name}; copy both from the model's files")
    return None


def _read(vocab_path: Path, merges_path: Path, add_prefix_space: bool) -> Tokenizer:
    vocab = read_json(vocab_path)
    if not all(isinstance(index, int) for index in vocab.values()):
        raise BadInput(f"{vocab_path}: does not map tokens to ids; fetch the file again")
    missing = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter not in vocab]
    if missing:
        raise BadInput(
            f"{vocab_path}: is not a byte-level vocabulary ({len(missing)} of 256 bytes are missing); "
            "give GPT-2's own files, or a folder with tokenizer.json"
        )
    try:
        lines = merges_path.read_text(encoding="utf-8-sig").splitlines()
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        tokenizer = Tokenizer(models.BPE(vocab, [(left, right) for left, right in pairs]))
    except OSError as error:
        raise BadInput(f"{merges_path}: cannot be read ({error.strerror}); check the file") from error
    except Exception as error:  # ValueError for a line that is not a pair; tokenizers raises a bare Exception
        reason = f"does not match its vocabulary ({one_line(error)})"
        raise BadInput(f"{merges_path}: {reason}; fetch both files again") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
