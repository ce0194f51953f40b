"""`generation_config.json`: kept as far as transformers writes it again, so that no stage fails at its last step."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.errors import BadInput
from chitchat.formats.config import read_json

if TYPE_CHECKING:
    from transformers import GenerationConfig

FILE = "generation_config.json"
# What describes how a model is called, or the version that wrote the file; what our stages write has its own.
_NOT_ITS_OWN = ("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores",
                "output_logits", "transformers_version", "_from_model_config", "use_cache", "cache_implementation",
                "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")  # fmt: skip


def savable_generation(folder: Path) -> tuple["GenerationConfig | None", list[str]]:
    """The generation settings of a folder that can be saved again, and a word on each that cannot.

    None where the folder has none, or none that can be read. transformers refuses to save settings without effect,
    such as a temperature beside `do_sample: false`; those are left out, which changes nothing of what they do. Ids of
    special tokens are the tokenizer's to tell and are not taken.
    """
    if not (folder / FILE).is_file():
        return None, []
    try:
        record = read_json(folder / FILE)
    except BadInput as error:
        return None, [f"{str(error).rpartition(';')[0]}; its settings are left out"]
    given = {name: value for name, value in record.items() if name not in _NOT_ITS_OWN and value is not None}
    kept = _without_refused(given)
    left_out = [name for name in given if name not in kept]
    notes = (
        [f"{folder / FILE}: {', '.join(left_out)} left out, since transformers does not save such"] if left_out else []
    )
    return _settings(kept), notes


def _without_refused(given: dict[str, Any]) -> dict[str, Any]:
    """The largest part, in order, that transformers saves: each setting must be taken beside those before it."""
    if _is_saved(given):
        return given
    kept: dict[str, Any] = {}
    # Those that decide what the others mean come first.
    for name in sorted(given, key=lambda name: name not in ("do_sample", "num_beams")):
        trial: dict[str, Any] = {**kept, name: given[name]}
        if _is_saved(trial):
            kept = trial
    return kept


def _is_saved(settings: dict[str, Any]) -> bool:
    try:
        _settings(settings).validate(strict=True)
    except Exception:  # strict validation raises what it pleases: ValueError, TypeError, errors of huggingface_hub
        return False
    return True


def _settings(values: dict[str, Any]) -> "GenerationConfig":
    from transformers import GenerationConfig

    return GenerationConfig(**values)
