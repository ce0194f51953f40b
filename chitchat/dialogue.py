"""The dialogue format: the tokens that start a conversation and end a turn, and the tokenizer's chat template.

There are two families: `[CLS]turn[SEP]turn[SEP]` (GPT2-chitchat) and `turn<eos>turn<eos>` (DialoGPT). The format is
stored in the tokenizer's special tokens and its `chat_template`, so that Hugging Face tools format conversations alike.
Text that looks like a special token is encoded as ordinary characters.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chitchat.errors import BadInput
from chitchat.system.notices import announce_once
from serve.dialogue import Dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FAMILIES = ("chitchat", "dialogpt")
# Invisible, and removed by the normalizer of every tokenizer trained here and by BERT's `clean_text`. The template
# inserts it into a user's `[SEP]`, so that the text is not parsed as a special token.
WORD_JOINER = "\u2060"
_MARK = re.compile(r"\{#-? dialogue: (\w+) -?#\}")


def dialogue_of(tokenizer: "PreTrainedTokenizerFast", override: str | None = None) -> Dialogue:
    """The dialogue format of a tokenizer: `override`, else the family of its template, else of its special tokens.

    Raises `BadInput` for an unknown family and for a tokenizer without the family's special tokens.
    """
    if override is not None and override not in FAMILIES:
        raise BadInput(f"--dialogue {override}: no such dialogue format; give one of {', '.join(FAMILIES)}")
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    family = override or _family_of_template(tokenizer) or ("chitchat" if None not in (start, end) else "dialogpt")
    if family == "chitchat" and (start is None or end is None):
        raise BadInput(
            "--dialogue chitchat: this tokenizer has no [CLS] and [SEP]; give --dialogue dialogpt or another tokenizer"
        )
    if family == "dialogpt":
        end = tokenizer.eos_token_id
        if end is None:
            option = f"--dialogue {override}" if override else "tokenizer"
            raise BadInput(
                f"{option}: has neither [CLS] and [SEP] nor an end-of-text token; give a tokenizer that can end a turn"
            )
    return _dialogue(tokenizer, family, () if family == "dialogpt" else (start,), end)


def open_dialogue(tokenizer: "PreTrainedTokenizerFast", where: str, override: str | None = None) -> Dialogue:
    """`dialogue_of` a tokenizer that may be of another tool; a notice on stderr tells what was assumed."""
    dialogue = dialogue_of(tokenizer, override)
    if override is None and _family_of_template(tokenizer) is None:
        form = {"chitchat": "[CLS]turn[SEP]turn[SEP]", "dialogpt": "turn<eos>turn<eos>"}[dialogue.family]
        announce_once(
            f"{where}: names no dialogue format; by its special tokens it is taken for {dialogue.family} ({form}), "
            "--dialogue says otherwise"
        )
    return dialogue


def _dialogue(tokenizer: "PreTrainedTokenizerFast", family: str, start_ids: tuple[int, ...], end: int) -> Dialogue:
    unk, pad = _unknown_id(tokenizer), tokenizer.pad_token_id
    return Dialogue(
        family=family,
        start_ids=start_ids,
        end_of_turn_id=end,
        pad_id=end if pad is None else pad,
        # GPT-2's tokenizer declares its end of text as the unknown token, which it never needs.
        unk_id=None if unk == end else unk,
        unconditional_prompt_ids=start_ids or (end,),
        banned_ids=tuple(sorted({*_special_ids(tokenizer), *([] if unk is None else [unk])} - {end})),
    )


def _unknown_id(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """The unknown token's id: the declared one, else that of the tokenizer's model."""
    if tokenizer.unk_token_id is not None:
        return int(tokenizer.unk_token_id)
    name = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    return tokenizer.backend_tokenizer.token_to_id(name) if isinstance(name, str) else None


def unassigned_ids(tokenizer: "PreTrainedTokenizerFast", rows: int) -> tuple[int, ...]:
    """The ids below `rows` (the rows of a model's table) that are no token: padding of the table."""
    known = set(tokenizer.get_vocab().values())
    return tuple(index for index in range(rows) if index not in known)


def dialogue_of_model(dialogue: Dialogue, tokenizer: "PreTrainedTokenizerFast", rows: int, where: str) -> Dialogue:
    """The dialogue format of a model whose table has `rows`: ids without a token are banned too, with a notice."""
    padding = unassigned_ids(tokenizer, rows)
    if padding:
        announce_once(
            f"{where}: its table has {rows:,} rows for {rows - len(padding):,} tokens; the others are never generated"
        )
    return with_banned(dialogue, padding)


def with_banned(dialogue: Dialogue, ids: Iterable[int]) -> Dialogue:
    """The dialogue format with more banned ids."""
    return replace(dialogue, banned_ids=tuple(sorted({*dialogue.banned_ids, *ids})))


def set_chat_template(tokenizer: "PreTrainedTokenizerFast", family: str) -> None:
    """Give the tokenizer the template of `family`, and a bos and eos token if it has none.

    `apply_chat_template(messages)` then equals `Dialogue.encode` of the messages that are not of the system. A word
    joiner separates text that looks like a special token. A tokenizer whose normalizer removes it (those trained here,
    and BERT's) gives exactly the ids of `encode_text`; another byte-level one gives the joiner's bytes as well.
    """
    if family == "chitchat":
        start, end = tokenizer.cls_token, tokenizer.sep_token
        tokenizer.bos_token = tokenizer.bos_token or start
        tokenizer.eos_token = tokenizer.eos_token or end
    else:
        start, end = "", tokenizer.eos_token
    names = sorted(_special_tokens(tokenizer))
    # Split and join, since template engines outside Python (minja) know no `replace`.
    guarded = "message['content']"
    for name in names:
        guarded = f"({guarded}.split({_quote(name)})|join({_quote(name[:1] + WORD_JOINER + name[1:])}))"
    tokenizer.chat_template = (
        f"{{#- dialogue: {family} -#}}"
        f"{{{{ {_quote(start)} }}}}"
        "{%- for message in messages if message['role'] != 'system' -%}"
        f"{{{{ {guarded} + {_quote(end)} }}}}"
        "{%- endfor -%}"
    )


def encode_text(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text; special tokens are neither added nor parsed from the text.

    Special tokens that are not declared as such are parsed by the tokenizer nevertheless; their ids are removed.
    """
    backend = tokenizer.backend_tokenizer
    parsed = backend.encode_special_tokens
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    try:
        turns = [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = parsed
    borders = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id}
    reserved = _special_ids(tokenizer) - ({_unknown_id(tokenizer)} - borders)
    return [turn if reserved.isdisjoint(turn) else [i for i in turn if i not in reserved] for turn in turns]


def _family_of_template(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """The family in a template that was set here; None for another template or none."""
    template = tokenizer.chat_template
    found = _MARK.match(template) if isinstance(template, str) else None
    return found.group(1) if found and found.group(1) in FAMILIES else None


def _special_tokens(tokenizer: "PreTrainedTokenizerFast") -> set[str]:
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {str(token) for token in tokenizer.all_special_tokens} | set(added)


def _special_ids(tokenizer: "PreTrainedTokenizerFast") -> set[int]:
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return set(tokenizer.all_special_ids) | set(added)


def _quote(text: str) -> str:
    """A Jinja string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
