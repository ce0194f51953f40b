"""What quantization is asked for."""

from dataclasses import dataclass
from typing import Literal

from chitchat.errors import BadInput
from chitchat.options import SEED, TOKENIZER, Options, option

AUTO = "auto"
SchemeName = Literal["w8", "w8a8", "w4", "auto"]


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(Options):
    """How to quantize; `BadInput` names the option of a value that cannot be used.

    `block_size` None takes the scheme's own. `max_kl` is what scheme "auto" may lose, nats a token against the
    checkpoint on held-out conversations; `kd_minutes` the budget of method "kd". `seed` draws the conversations that
    are calibrated on, and `tokenizer` is that of a checkpoint whose vocabulary lies elsewhere.
    """

    scheme: SchemeName = option("w8", "Integers; auto: 4 and 8 bits within --max-kl.")
    method: Literal["rtn", "mse", "gptq", "kd"] = option(
        "gptq", "How the integers are decided: mse searches scales, kd is gptq and a fine-tune."
    )
    block_size: int | None = option(
        None,
        "Weights that share a scale: 16, 32, 64, 128 or 256 (default: 128 for w8 and w8a8, 64 for w4).",
        unit="weights",
        ge=16,
        le=256,
    )
    max_kl: float | None = option(None, "What auto may lose.", unit="nats per held-out token", gt=0)
    kd_minutes: float = option(
        4.0, "Minutes of the fine-tune of kd; gptq before it comes on top.", unit="minutes", gt=0
    )
    tokenizer: str | None = option(None, **TOKENIZER)
    seed: int = option(0, **SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size is not None and self.block_size.bit_count() != 1:
            raise BadInput(f"--block-size {self.block_size}: there is no such kernel; choose 16, 32, 64, 128 or 256")
        if self.scheme == AUTO and self.max_kl is None:
            raise BadInput("--scheme auto: what may it lose? give --max-kl, for example 0.001")
        if self.scheme != AUTO and self.max_kl is not None:
            raise BadInput(
                f"--max-kl {self.max_kl:g}: --scheme {self.scheme} has no choice of bits; give --scheme auto"
            )
        if self.method == "kd" and self.scheme not in ("w8", "w4", AUTO):
            raise BadInput(f"--method kd --scheme {self.scheme}: its grids cannot be trained; give --scheme w4 or w8")

    @property
    def calibrates(self) -> bool:
        """Whether training conversations are read."""
        from compress.quantize.methods import CALIBRATED
        from compress.quantize.schemes import SCHEMES

        static = self.scheme != AUTO and SCHEMES[self.scheme].static_inputs
        return static or self.method in CALIBRATED or self.scheme == AUTO
