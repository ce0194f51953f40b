"""What `compress prune` is asked for."""

from dataclasses import dataclass
from typing import Literal

from chitchat.errors import BadInput
from chitchat.options import SEED, TOKENIZER, option
from compress.distill.options import HealingFields

BUDGETS = ("keep", "max_mb", "max_ms_per_token")
UNIT_AXES = ("layers", "width", "ffn")

_BUDGET, _SHAPE, _CUT = "Budget", "Shape", "Cut"


@dataclass(frozen=True, kw_only=True)
class PruneOptions(HealingFields):
    """A budget or a shape, and how to repair what was cut; `BadInput` names the option of a value that cannot be used.

    Budgets, of which all that are given hold: `keep`, a share of the parameters; `max_mb` and `max_ms_per_token`, of
    the bundle that `scheme` makes of it (10^6 bytes; measured on this machine). A shape: `layers`, `width`, `ffn`.
    `vocab` and `context` go with either. `importance` ranks the units, `no_refit` leaves out the repair in closed form,
    and of the shapes that a budget buys `candidates` are tried.

    Healing takes `heal_epochs` or `heal_minutes` (none: one epoch; 0: no healing); for the rest see
    `compress.distill.options`. `teacher` is a checkpoint to heal from, the unpruned one when None. `tokenizer` is that
    of a checkpoint whose vocabulary lies elsewhere.
    """

    keep: float | None = option(
        None, "Share of the parameters that stays (0.5 keeps half).", group=_BUDGET, unit="share", gt=0, lt=1
    )
    max_mb: float | None = option(None, "Size of the bundle, by --scheme.", group=_BUDGET, unit="MB", gt=0)
    max_ms_per_token: float | None = option(
        None, "Decode time here, by --scheme, in the engine that ships.", group=_BUDGET, unit="ms per token", gt=0
    )
    scheme: Literal["fp32", "w8", "w8a8", "w4"] = option("w8", "Bundle that MB and ms are counted in.", group=_BUDGET)
    candidates: int = option(
        4, "Shapes of a budget that are tried; 1: the likeliest.", group=_BUDGET, unit="shapes", ge=1
    )
    layers: int | None = option(None, "Layers to keep.", group=_SHAPE, unit="layers", ge=1)
    width: int | None = option(None, "Width to keep: a multiple of the head size.", group=_SHAPE, unit="channels", ge=1)
    ffn: int | None = option(None, "FFN width to keep.", group=_SHAPE, unit="neurons", ge=1)
    vocab: int | None = option(None, "Tokens to keep; the tokenizer is rewritten.", group=_SHAPE, unit="tokens", ge=1)
    context: int | None = option(None, "Positions to keep.", group=_SHAPE, unit="tokens", ge=1)
    importance: Literal["obs", "activation", "magnitude", "taylor", "random"] = option(
        "obs", "What ranks the units.", group=_CUT
    )
    no_refit: bool = option(False, "Leave out the repair by least squares.", group=_CUT)
    teacher: str | None = option(
        None, "Heal from this checkpoint (default: the unpruned one).", group="Healing", takes=("checkpoint",)
    )
    tokenizer: str | None = option(None, **TOKENIZER)
    seed: int = option(0, **SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        axes = [f"--{name}" for name in UNIT_AXES if getattr(self, name) is not None]
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if not (axes or budgets or self.vocab or self.context):
            raise BadInput(
                "--keep: say how much is to stay (--keep 0.5, --max-mb, --max-ms-per-token), "
                "or a shape by --layers, --width, --ffn, --vocab, --context"
            )
        if axes and budgets:
            option_name, value = "--" + budgets[0].replace("_", "-"), getattr(self, budgets[0])
            raise BadInput(f"{option_name} {value:g}: is a budget and {', '.join(axes)} a shape; give one of the two")
        if self.heal_epochs is not None and self.heal_minutes is not None:
            raise BadInput("--heal-epochs and --heal-minutes: give one of the two")

    @property
    def heals(self) -> bool:
        """Whether anything is healed."""
        return self.heal_epochs != 0 and self.heal_minutes != 0

    @property
    def has_budget(self) -> bool:
        """Whether shapes are searched for a budget."""
        return any(getattr(self, name) is not None for name in BUDGETS)
