"""The architecture of a model, a configuration, a `config.json` or a geometry."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.architectures.gpt2 import GPT2
from chitchat.architectures.protocol import Architecture
from chitchat.errors import BadInput
from serve.geometry import Geometry

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ARCHITECTURES: dict[str, Architecture] = {architecture.model_type: architecture for architecture in (GPT2(),)}
DEFAULT = ARCHITECTURES[Geometry.architecture]  # what is trained from scratch


def architecture_of(found: "PreTrainedModel | PretrainedConfig | Mapping[str, Any] | Geometry") -> Architecture:
    """The architecture of a model or configuration of transformers, of what `read_config` gives, or of a geometry.

    Raises `BadInput` for one that is not supported.
    """
    config: Any = getattr(found, "config", found)
    if isinstance(config, Geometry):
        model_type = config.architecture
    elif isinstance(config, Mapping):
        model_type = config.get("model_type", DEFAULT.model_type)  # older ones name none
    else:
        model_type = config.model_type
    if model_type not in ARCHITECTURES:
        raise BadInput(f"model_type {model_type!r}: compress works on {_known()} only")
    return ARCHITECTURES[model_type]


def architecture_of_file(record: Mapping[str, Any], where: str | Path) -> Architecture:
    """The architecture of a config.json of any age; `where` names it in errors.

    Raises `BadInput` for one that is not supported.
    """
    model_type = record.get("model_type")
    if model_type is None:
        claiming = [architecture for architecture in ARCHITECTURES.values() if architecture.claims(record)]
        if claiming:
            return claiming[0]
    elif model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    kind = "an unnamed" if model_type is None else f"a {model_type!r}"
    raise BadInput(f"{where}: is {kind} model; compress works on {_known()} only")


def geometry_of(found: "PreTrainedModel | PretrainedConfig | Mapping[str, Any]") -> Geometry:
    """The geometry of a model or configuration of transformers, or of what `read_config` gives."""
    return architecture_of(found).geometry(getattr(found, "config", found))


@cache
def count_parameters(geometry: Geometry) -> int:
    """Numbers in a model of this geometry, a tied table counted once."""
    return architecture_of(geometry).parameters(geometry)


def _known() -> str:
    return ", ".join(f"{known.title} (model_type {known.model_type!r})" for known in ARCHITECTURES.values())
