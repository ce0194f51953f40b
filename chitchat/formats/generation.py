"""`generation_config.json`, reduced to the settings that transformers can save again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.errors import BadInput
from chitchat.formats.config import read_json

if TYPE_CHECKING:
    from transformers import GenerationConfig

FILE = "generation_config.json"
# How a model is called, the version that wrote the file, and special tokens, which are the tokenizer's.
_IGNORED = ("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
            "transformers_version", "_from_model_config", "use_cache", "cache_implementation", "bos_token_id",
            "eos_token_id", "pad_token_id", "decoder_start_token_id")  # fmt: skip


def savable_generation(folder: Path) -> tuple["GenerationConfig | None", list[str]]:
    """The generation settings of a folder that can be saved again, and a notice on those that cannot.

    None if the folder has no settings, or none that can be read. transformers refuses to save settings without effect,
    such as a temperature with `do_sample: false`; leaving them out changes nothing else.
    """
    from transformers import GenerationConfig

    try:
        record = read_json(folder / FILE) if (folder / FILE).is_file() else None
    except BadInput as error:
        return None, [f"{str(error).rpartition(';')[0]}; its settings are left out"]
    if record is None:
        return None, []
    given = {name: value for name, value in record.items() if name not in _IGNORED and value is not None}
    kept: dict[str, Any] = {}
    if _can_be_saved(given):
        kept = given
    else:  # each setting must be accepted with those before it; the two that the others depend on are first
        for name in sorted(given, key=lambda name: name not in ("do_sample", "num_beams")):
            kept |= {name: given[name]} if _can_be_saved({**kept, name: given[name]}) else {}
    left_out = ", ".join(name for name in given if name not in kept)
    notice = f"{folder / FILE}: {left_out} left out, since transformers does not save such settings"
    return GenerationConfig(**kept), [notice] if left_out else []


def _can_be_saved(settings: dict[str, Any]) -> bool:
    from transformers import GenerationConfig

    try:
        GenerationConfig(**settings).validate(strict=True)
    except Exception:  # ValueError, TypeError, or errors of huggingface_hub
        return False
    return True
