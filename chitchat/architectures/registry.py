"""Which architecture a model, a configuration or a `config.json` is of."""

from collections.abc import Mapping
from typing import Any

from chitchat.architectures.gpt2 import GPT2
from chitchat.architectures.protocol import Architecture
from chitchat.errors import BadInput

ARCHITECTURES: dict[str, Architecture] = {each.model_type: each for each in (GPT2(),)}


def architecture_of(model_or_config: Any) -> Architecture:
    """The architecture of a model of transformers, of its configuration, or of a `config.json` as a dict.

    Raises `BadInput` for one that is not supported.
    """
    config = getattr(model_or_config, "config", model_or_config)
    # Older checkpoints of GPT-2 name no model_type.
    model_type = config.get("model_type", GPT2.model_type) if isinstance(config, Mapping) else config.model_type
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise BadInput(
            f"config.json: model_type {model_type!r} is no architecture that can be compressed; known: {known}"
        )
    return ARCHITECTURES[model_type]
