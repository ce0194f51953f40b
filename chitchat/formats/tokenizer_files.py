"""The tokenizer of a folder, by its files alone: what class wrote them, and which version, does not matter.

`tokenizer.json` is taken as it is; without it a BERT `vocab.txt`, or either pair of GPT-2's files. Which token does
what (`sep_token`, …) is read from `tokenizer_config.json` and `special_tokens_map.json`, and known by name where
neither says. A role is never given to a token that the vocabulary does not have: transformers would append it, with an
id past the model's table.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from chitchat.errors import BadInput
from chitchat.formats.byte_level import END_OF_TEXT, FILES, read_byte_level
from chitchat.formats.config import read_json
from chitchat.formats.wordpiece import SPECIALS, read_wordpiece, unspaced_decoder, wrap_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", *(name for pair in FILES for name in pair))
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CONFIG = "tokenizer_config.json"
# What saving notes of the machine that saved, and what only newer versions read.
_NOT_SAVED = ("backend", "is_local", "local_files_only", "name_or_path")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder. Raises `BadInput` where there is none that can be read, naming the file."""
    if not has_tokenizer(folder):
        raise BadInput(f"{folder}: holds no tokenizer ({_other_tokenizer(folder)}); {_REMEDY}")
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    backend, roles = _backend(folder, config)
    _add_tokens(folder, backend)
    roles = {**roles, **_roles(folder, config, backend)}
    # The name of version 4, which version 5 takes too: the benchmark reads tokenizers beside optimum, which needs 4.
    options: dict[str, Any] = {**roles, "additional_special_tokens": list(_extra_tokens(folder, config, backend))}
    if template := _template(folder, config):
        options["chat_template"] = template
    length = config.get("model_max_length")
    if isinstance(length, int) and 0 < length < 2**31:
        options["model_max_length"] = length
    return wrap_tokenizer(backend, options)


_REMEDY = "give --tokenizer, a vocab.txt or the folder that the model's vocabulary is in"


def _other_tokenizer(folder: Path) -> str:
    """What stands there instead of a tokenizer that can be read."""
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).is_file():
            return f"{name} is SentencePiece, which GPT-2 models do not have"
    texts = sorted(path.name for path in folder.glob("*vocab*.txt"))
    return f"but {texts[0]}" if texts else "no tokenizer.json, vocab.txt or vocab.json"


def _backend(folder: Path, config: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer itself, and the roles that its files imply."""
    path = folder / "tokenizer.json"
    if path.is_file():
        backend = _from_json(path)
    elif (folder / "vocab.txt").is_file():
        backend = read_wordpiece(folder / "vocab.txt").backend_tokenizer
    else:
        found = read_byte_level(folder, config.get("add_prefix_space") is True)
        assert found is not None, "has_tokenizer found one"
        backend = found
    # A BERT tokenizer that splits Chinese into characters joins them again with spaces.
    if isinstance(backend.model, models.WordPiece) and isinstance(backend.decoder, decoders.WordPiece):
        backend.decoder = unspaced_decoder()
    return backend, _roles_by_name(backend)


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except Exception as error:  # tokenizers raises a bare Exception
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"{path}: cannot be read ({reason}); fetch the file again") from error


def _roles_by_name(backend: Tokenizer) -> dict[str, str]:
    """The roles of the names that everybody uses, for a folder that does not tell them."""
    if backend.token_to_id("[CLS]") is not None and backend.token_to_id("[SEP]") is not None:
        return {role: token for role, token in SPECIALS.items() if backend.token_to_id(token) is not None}
    if backend.token_to_id(END_OF_TEXT) is not None:
        return {"eos_token": END_OF_TEXT}
    return {}


def _roles(folder: Path, config: Mapping[str, Any], backend: Tokenizer) -> dict[str, str]:
    """The declared roles of tokens that the vocabulary has."""
    path = folder / "special_tokens_map.json"
    mapped = read_json(path) if path.is_file() else {}
    declared = {role: _content(mapped.get(role)) or _content(config.get(role)) for role in _ROLES}
    return {role: token for role, token in declared.items() if token and backend.token_to_id(token) is not None}


def _content(token: Any) -> str | None:
    """The text of a token, which old versions write as an object."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) and text else None


def _extra_tokens(folder: Path, config: Mapping[str, Any], backend: Tokenizer) -> Iterator[str]:
    """Special tokens without a role: a list in version 4 (`additional_…`) and 5 (`extra_…`), an object in between."""
    path = folder / "special_tokens_map.json"
    seen: set[str] = set()
    for record in (config, read_json(path) if path.is_file() else {}):
        for name in ("additional_special_tokens", "extra_special_tokens"):
            values = record.get(name) or []
            for value in values.values() if isinstance(values, Mapping) else values:
                token = _content(value)
                if token and token not in seen and backend.token_to_id(token) is not None:
                    seen.add(token)
                    yield token


def _add_tokens(folder: Path, backend: Tokenizer) -> None:
    """The tokens of `added_tokens.json`, where tokenizer.json does not hold them: an object of tokens with their ids.

    Raises `BadInput` where an id cannot be the one that is said.
    """
    path = folder / "added_tokens.json"
    record = read_json(path) if path.is_file() else {}
    new = sorted((index, token) for token, index in record.items() if backend.token_to_id(token) is None)
    for index, token in new:
        if not isinstance(index, int) or index != backend.get_vocab_size(with_added_tokens=True):
            raise BadInput(
                f"{path}: {token} has id {index}, which does not follow the vocabulary; fetch the files again"
            )
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, a text, or the default one of several."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {str(entry.get("name")): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the files of a tokenizer into `folder`, so that `AutoTokenizer` of transformers 4 and 5 loads them.

    The same tokenizer gives the same bytes wherever it was loaded from.
    """
    tokenizer.save_pretrained(folder)
    path = folder / _CONFIG
    written = read_json(path)
    kept = {name: value for name, value in written.items() if name not in _NOT_SAVED}
    # Version 5 has other names for these, which 4 does not know; it knows the older ones.
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    if "model_specific_special_tokens" in kept:
        kept["extra_special_tokens"] = kept.pop("model_specific_special_tokens")
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def without_rows(tokenizer: PreTrainedTokenizerFast, rows: int) -> PreTrainedTokenizerFast | None:
    """The tokenizer without the special tokens whose ids lie at or past `rows`; None where others lie there as well.

    Such tokens were appended by a library, and the model has no row for them: they are in no text and no reply.
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
