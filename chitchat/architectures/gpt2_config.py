"""`config.json` of a GPT-2 of any age, reduced to the fields that describe the model.

transformers also stores how its classes are called (`return_dict`, `output_attentions`) and, in old versions, sampling
settings there; these are ignored. Field names and defaults are those of `transformers.GPT2Config`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput

# The fields and their defaults, those of GPT2Config.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "tie_word_embeddings": True,
}
_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
SHARES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_SWITCHES = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Other names of the sizes: the attribute map of GPT2Config, and those of files of 2019.
_ALIASES = {
    "n_ctx": "n_positions",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "n_inner_dim": "n_inner",
}
# Each activation as one of those that the graph has: the exact gelu, its tanh form, or relu.
_ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
}
# A config.json with these fields and no model_type is a GPT-2's: no other family writes them.
TELLTALE = ("n_embd", "n_layer", "n_head")


def read_fields(record: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The fields of a GPT-2 with their defaults, from a `config.json` of any age; `where` names it in errors.

    `quantization_config` is kept. Raises `BadInput` for a value that no GPT-2 has.
    """
    _check_kind(record, where)
    named = {new: record[old] for old, new in _ALIASES.items() if record.get(old) is not None}
    given = {**named, **{name: record[name] for name in DEFAULTS if record.get(name) is not None}}
    config = {**DEFAULTS, **given}
    _check_values(config, where)
    config["activation_function"] = _ACTIVATIONS[config["activation_function"]]
    config |= {name: _token_id(record.get(name), config["vocab_size"]) for name in _TOKEN_IDS}
    if record.get("quantization_config"):
        config["quantization_config"] = record["quantization_config"]
    return {"model_type": "gpt2", **config}


def claims(record: Mapping[str, Any]) -> bool:
    """Whether a config.json that names no model_type is a GPT-2's, by its sizes or by its class."""
    named = any("GPT2" in str(name) for name in record.get("architectures") or [])
    return named or all(name in record for name in TELLTALE)


def _check_kind(record: Mapping[str, Any], where: str | Path) -> None:
    if record.get("add_cross_attention") or record.get("is_encoder_decoder"):
        raise BadInput(f"{where}: has cross-attention; compress works on decoder-only GPT-2")
    if any(record.get("pruned_heads") or {}):
        raise BadInput(
            f"{where}: has pruned_heads, which transformers no longer reads; "
            "give the checkpoint before that, and prune it with `compress prune`"
        )


def _check_values(config: Mapping[str, Any], where: str | Path) -> None:
    for name in _SIZES:
        value = config[name]
        if not (name == "n_inner" and value is None) and not (_is_number(value, int) and 1 <= value < 2**31):
            raise _bad(where, name, value, "give the number of the model")
    for name in (*SHARES, "layer_norm_epsilon", "initializer_range"):
        value = config[name]
        most = 1.0 if name in SHARES else math.inf
        if not (_is_number(value, (int, float)) and 0 <= value < most):
            raise _bad(where, name, value, f"its default is {DEFAULTS[name]}")
    for name in _SWITCHES:
        if not isinstance(config[name], bool):
            raise _bad(where, name, config[name], "write true or false")
    if config["n_embd"] % config["n_head"]:
        raise BadInput(
            f"{where}: n_embd {config['n_embd']} is no multiple of n_head {config['n_head']}; "
            "config.json does not describe its weights, fetch the checkpoint again"
        )
    if str(config["activation_function"]) not in _ACTIVATIONS:
        raise BadInput(
            f"{where}: activation_function {config['activation_function']!r} has no operator in our graph; "
            f"known are {', '.join(_ACTIVATIONS)}"
        )


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _token_id(value: Any, rows: int) -> int | None:
    """A special token's id, None if it is outside the table, as GPT-2's 50256 often is in smaller vocabularies."""
    one = value[0] if isinstance(value, list) and value else value
    return one if _is_number(one, int) and 0 <= one < rows else None


def _bad(where: str | Path, name: str, value: Any, remedy: str) -> BadInput:
    return BadInput(f"{where}: {name} {str(value)[:40]!r} is not valid for a GPT-2; {remedy}")
