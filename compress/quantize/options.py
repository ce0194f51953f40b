"""What quantization is asked for."""

import math
from dataclasses import dataclass

from chitchat.errors import BadInput
from compress.quantize.blockwise import check_grid
from compress.quantize.methods import CALIBRATED, METHODS
from compress.quantize.schemes import AUTO, SCHEMES, check_scheme

KD_MINUTES = 4.0


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize; `BadInput` names the option of a value that cannot be used.

    `block_size` None takes the scheme's own. `max_kl` is what scheme "auto" may lose, nats a token against the
    checkpoint on held-out conversations; `kd_minutes` the budget of method "kd". `seed` draws the conversations that
    are calibrated on, and `tokenizer` is that of a checkpoint whose vocabulary lies elsewhere.
    """

    scheme: str = "w8"
    method: str = "gptq"
    block_size: int | None = None
    max_kl: float | None = None
    kd_minutes: float = KD_MINUTES
    seed: int = 0
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        check_scheme(self.scheme)
        if self.method not in METHODS:
            raise BadInput(f"--method {self.method}: there is no such method; choose {', '.join(METHODS)}")
        bits = 8 if self.scheme == AUTO else SCHEMES[self.scheme].bits
        check_grid(bits, SCHEMES["w8"].block_size if self.block_size is None else self.block_size)
        if self.scheme == AUTO and self.max_kl is None:
            raise BadInput("--scheme auto: what may it lose? give --max-kl, for example 0.001")
        if self.scheme != AUTO and self.max_kl is not None:
            raise BadInput(
                f"--max-kl {self.max_kl:g}: --scheme {self.scheme} has no choice of bits; give --scheme auto"
            )
        if self.max_kl is not None and not 0 < self.max_kl < math.inf:
            raise BadInput(f"--max-kl {self.max_kl:g}: give a number above 0")
        if self.method == "kd" and self.scheme not in ("w8", "w4", AUTO):
            raise BadInput(f"--method kd --scheme {self.scheme}: its grids cannot be trained; give --scheme w4 or w8")
        if not 0 < self.kd_minutes < math.inf:
            raise BadInput(f"--kd-minutes {self.kd_minutes:g}: give a number above 0")

    @property
    def calibrates(self) -> bool:
        """Whether training conversations are read."""
        static = self.scheme != AUTO and SCHEMES[self.scheme].static_inputs
        return static or self.method in CALIBRATED or self.scheme == AUTO
