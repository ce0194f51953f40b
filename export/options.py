"""What an export is asked for."""

from dataclasses import dataclass
from typing import Literal

from chitchat.options import DIALOGUE, PORTABLE_PYTHON, SEED, TOKENIZER, Dialogues, Options, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What the bundle holds: see `export.stage.export`."""

    target: Literal["cpu", "cuda", "cpu+cuda", "portable"] = option(
        "cpu", "cpu or cuda (our graphs), cpu+cuda (both), portable (standard ONNX, through optimum)."
    )
    kv: Literal["float32", "int8"] = option(
        "float32", "Numbers of the cpu graph's KV cache; int8 is calibrated on --data."
    )
    genai: bool = option(False, "Add what onnxruntime-genai reads.")
    portable_python: str | None = option(None, **PORTABLE_PYTHON)
    tokenizer: str | None = option(None, **TOKENIZER)
    dialogue: Dialogues | None = option(None, **DIALOGUE)
    seed: int = option(0, **SEED)
