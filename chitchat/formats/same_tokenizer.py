"""Whether two tokenizers are the same: they give the same ids for every text.

Five rules decide that: the vocabulary, the merges, the normalizer, the pre-tokenizer, and the special tokens. Decoders,
templates, padding and truncation do not. All are read from `tokenizer.json`, of a checkpoint, a data set or a bundle.
"""

import hashlib
import json
from typing import Any

RULES = ("vocabulary", "merges", "normalizer", "pre-tokenizer", "special tokens")


def tokenizer_rules(tokenizer_json: str) -> dict[str, str]:
    """A text for each of `RULES`, equal if the rule is, from the text of a `tokenizer.json`."""
    record = json.loads(tokenizer_json)
    model = dict(record["model"])
    vocab, merges = model.pop("vocab"), model.pop("merges", None) or []
    pre_tokenizer = _step(record.get("pre_tokenizer"), "pretokenizers")
    if model.get("type") == "BPE" and "ByteLevel" in json.dumps(pre_tokenizer):
        model.pop("unk_token", None)  # never used, as every text is bytes
    added = sorted((token["id"], token["content"], token["special"]) for token in record.get("added_tokens") or [])
    entries = sorted(vocab.items()) if isinstance(vocab, dict) else vocab
    tables = {
        "vocabulary": [{name: value for name, value in sorted(model.items()) if value}, entries],
        "merges": [" ".join(pair) if isinstance(pair, list) else pair for pair in merges],
        "normalizer": _step(record.get("normalizer"), "normalizers"),
        "pre-tokenizer": pre_tokenizer,
        "special tokens": added,
    }
    return {name: json.dumps(table, ensure_ascii=False, sort_keys=True) for name, table in tables.items()}


def tokenizer_differences(one: str, other: str) -> list[str]:
    """The names of the rules that differ between two `tokenizer.json`; [] if both give the same ids."""
    of_one, of_other = tokenizer_rules(one), tokenizer_rules(other)
    return [name for name in RULES if of_one[name] != of_other[name]]


def tokenizer_identity(tokenizer_json: str) -> str:
    """A hex sha256 over all rules: equal if two tokenizers give the same ids."""
    rules = tokenizer_rules(tokenizer_json)
    return hashlib.sha256("\0".join(rules[name] for name in RULES).encode()).hexdigest()


def _step(step: Any, parts: str) -> Any:
    """A normalizer or pre-tokenizer in a canonical form: a sequence of one is that one, an empty one is None."""
    if not isinstance(step, dict):
        return None
    if step.get("type") == "Sequence":
        inner = [found for part in step.get(parts) or [] if (found := _step(part, parts)) is not None]
        return inner[0] if len(inner) == 1 else {"type": "Sequence", parts: inner} if inner else None
    rule = {name: value for name, value in step.items() if name != "trim_offsets"}  # offsets are no ids
    if rule.get("type") == "BertNormalizer" and rule.get("strip_accents") is None:
        rule["strip_accents"] = rule.get("lowercase")
    return rule
