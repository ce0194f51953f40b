"""The tokenizer of a folder, read from its files alone, whichever class and version wrote them.

`tokenizer.json` is used as it is; without it a BERT `vocab.txt`, or either pair of GPT-2's files. The roles of tokens
(`sep_token`, …) are read from `tokenizer_config.json` and `special_tokens_map.json`, else deduced from their names. A
token that is not in the vocabulary gets no role: transformers would append it, with an id past the model's table.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from chitchat.errors import BadInput, one_line
from chitchat.formats.byte_level import END_OF_TEXT, FILES, read_byte_level
from chitchat.formats.config import read_json
from chitchat.formats.wordpiece import SPECIALS, read_wordpiece, unspaced_decoder, wrap_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", *(name for pair in FILES for name in pair))
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CONFIG, _MAP = "tokenizer_config.json", "special_tokens_map.json"
_REMEDY = "give --tokenizer, a vocab.txt or the folder that the model's vocabulary is in"
# Fields that depend on the machine that saved, or that only newer versions read.
_NOT_SAVED = ("backend", "is_local", "local_files_only", "name_or_path")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder. Raises `BadInput`, which names the file, if there is none that can be read."""
    if not has_tokenizer(folder):
        raise BadInput(f"{folder}: holds no tokenizer ({_other_tokenizer(folder)}); {_REMEDY}")
    config, mapped = read_json(folder / _CONFIG, optional=True), read_json(folder / _MAP, optional=True)
    backend = _backend(folder, config)
    by_name = _roles_by_name(backend)
    _add_tokens(folder, backend)
    declared = {role: _content(mapped.get(role)) or _content(config.get(role)) for role in _ROLES}
    known = {role: token for role, token in declared.items() if token and backend.token_to_id(token) is not None}
    roles = {**by_name, **known}
    # transformers 4 and 5 take this name; the benchmark reads tokenizers beside optimum, which needs 4.
    options: dict[str, Any] = {**roles, "additional_special_tokens": list(_extra_tokens(config, mapped, backend))}
    if template := _template(folder, config):
        options["chat_template"] = template
    length = config.get("model_max_length")
    if isinstance(length, int) and 0 < length < 2**31:
        options["model_max_length"] = length
    return wrap_tokenizer(backend, options)


def _other_tokenizer(folder: Path) -> str:
    """What the folder has in place of a tokenizer that can be read."""
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            return f"{name} is SentencePiece, which GPT-2 models do not have"
    texts = sorted(path.name for path in folder.glob("*vocab*.txt"))
    return f"but {texts[0]}" if texts else "no tokenizer.json, vocab.txt or vocab.json"


def _backend(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    backend: Tokenizer | None
    if (folder / "tokenizer.json").is_file():
        backend = _from_json(folder / "tokenizer.json")
    elif (folder / "vocab.txt").is_file():
        backend = read_wordpiece(folder / "vocab.txt").backend_tokenizer
    else:
        backend = read_byte_level(folder, config.get("add_prefix_space") is True)
    assert backend is not None, "has_tokenizer found one"
    # BERT's own decoder joins the characters of Chinese words with spaces.
    if isinstance(backend.model, models.WordPiece) and isinstance(backend.decoder, decoders.WordPiece):
        backend.decoder = unspaced_decoder()
    return backend


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except Exception as error:  # tokenizers raises a bare Exception
        raise BadInput(f"{path}: cannot be read ({one_line(error)}); fetch the file again") from error


def _roles_by_name(backend: Tokenizer) -> dict[str, str]:
    """The roles of tokens with common names, for a folder that declares none."""
    if backend.token_to_id("[CLS]") is not None and backend.token_to_id("[SEP]") is not None:
        return {role: token for role, token in SPECIALS.items() if backend.token_to_id(token) is not None}
    if backend.token_to_id(END_OF_TEXT) is not None:
        return {"eos_token": END_OF_TEXT}
    return {}


def _content(token: Any) -> str | None:
    """The text of a token; old versions write it as an object."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) and text else None


def _extra_tokens(config: Mapping[str, Any], mapped: Mapping[str, Any], backend: Tokenizer) -> Iterator[str]:
    """Special tokens without a role: a list in version 4 (`additional_…`) and 5 (`extra_…`), an object in between."""
    seen: set[str] = set()
    for record in (config, mapped):
        for name in ("additional_special_tokens", "extra_special_tokens"):
            values = record.get(name) or []
            for value in values.values() if isinstance(values, Mapping) else values:
                token = _content(value)
                if token and token not in seen and backend.token_to_id(token) is not None:
                    seen.add(token)
                    yield token


def _add_tokens(folder: Path, backend: Tokenizer) -> None:
    """Add the tokens of `added_tokens.json` (token to id) that tokenizer.json lacks.

    Raises `BadInput` for an id that does not follow the vocabulary.
    """
    path = folder / "added_tokens.json"
    record = read_json(path, optional=True)
    new = sorted((index, token) for token, index in record.items() if backend.token_to_id(token) is None)
    for index, token in new:
        if not isinstance(index, int) or index != backend.get_vocab_size(with_added_tokens=True):
            reason = f"{token} has id {index}, which does not follow the vocabulary"
            raise BadInput(f"{path}: {reason}; fetch the files again")
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: from its own file, or a text, or the default of several."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {str(entry.get("name")): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the files of a tokenizer into `folder`, for `AutoTokenizer` of transformers 4 and 5.

    The bytes do not depend on where the tokenizer was loaded from.
    """
    tokenizer.save_pretrained(folder)
    path = folder / _CONFIG
    written = read_json(path)
    kept = {name: value for name, value in written.items() if name not in _NOT_SAVED}
    # Version 5 reads the names of version 4, not the reverse.
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    if "model_specific_special_tokens" in kept:
        kept["extra_special_tokens"] = kept.pop("model_specific_special_tokens")
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def without_rows(tokenizer: PreTrainedTokenizerFast, rows: int) -> PreTrainedTokenizerFast | None:
    """The tokenizer without special tokens whose ids are `rows` or more; None if other tokens have such ids as well.

    Such tokens were appended by a library; the model has no row for them, so they are in no text and no reply.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    past = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    appended = {token["content"] for token in state["added_tokens"] if token["special"] and token["id"] >= rows}
    if set(past) != appended or any(token in state["model"]["vocab"] for token in appended):
        return None
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in appended]
    roles = {role: getattr(tokenizer, role) for role in _ROLES}
    options: dict[str, Any] = {role: token for role, token in roles.items() if token and token not in appended}
    extra = [str(token) for token in getattr(tokenizer, "extra_special_tokens", []) if str(token) not in appended]
    options |= {"additional_special_tokens": extra, "chat_template": tokenizer.chat_template}
    return wrap_tokenizer(Tokenizer.from_str(json.dumps(state)), options)
