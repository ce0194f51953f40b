"""What an export is asked for."""

from dataclasses import dataclass
from typing import Literal

from chitchat.errors import BadInput
from chitchat.options import DIALOGUE, PORTABLE_PYTHON, SEED, TOKENIZER, Dialogues, Options, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What the bundle holds; `BadInput` names the option of a value that cannot be used.

    `kv` "int8" stores the cpu graph's cache in bytes, calibrated on the data set; `dialogue` is the family of a
    checkpoint that does not say its own, `tokenizer` that of a checkpoint whose vocabulary lies elsewhere, and
    `portable_python` the interpreter that has optimum, for the target "portable" (default: that of `make portable`).
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if "cpu" not in self.targets:
            if self.kv == "int8":
                raise BadInput(
                    f"--kv int8 --target {self.target}: only the cpu graph has such a cache; give --target cpu"
                )
            if self.genai:
                raise BadInput(
                    f"--genai --target {self.target}: onnxruntime-genai takes our cpu graph; give --target cpu"
                )

    @property
    def targets(self) -> tuple[str, ...]:
        """What a graph is written for, each by itself."""
        return tuple(self.target.split("+"))
