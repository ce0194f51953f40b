"""`config.json` of a checkpoint of any age, and reading of JSON files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chitchat.architectures.registry import architecture_of_file
from chitchat.errors import BadInput, one_line


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint; {} if it is `optional` and absent. Raises `BadInput`."""
    if optional and not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({one_line(error)}); fetch the checkpoint again") from error
    if not isinstance(record, dict):
        raise BadInput(f"{path}: holds a {type(record).__name__}, not an object; fetch the checkpoint again")
    return record


def model_config(record: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The fields that describe the model, `model_type` first, with their defaults; `where` names it in errors.

    `quantization_config` is kept. Raises `BadInput` for an architecture that is not supported, and for an invalid
    value.
    """
    return architecture_of_file(record, where).read_config(record, where)
