"""What `compress prune` is asked for."""

import math
from dataclasses import dataclass

from chitchat.errors import BadInput
from compress.prune.importance import IMPORTANCES

BUDGETS = ("keep", "max_mb", "max_ms_per_token")
UNIT_AXES = ("layers", "width", "ffn")


@dataclass(frozen=True)
class PruneOptions:
    """A budget or a shape, and how to repair what was cut; `BadInput` names the option of a value that cannot be used.

    Budgets, of which all that are given hold: `keep`, a share of the parameters; `max_mb` and `max_ms_per_token`, of
    the bundle that `scheme` makes of it (10^6 bytes; measured on this machine). A shape: `layers`, `width`, `ffn`.
    `vocab` and `context` go with either. `importance` ranks the units, `refit` repairs in closed form, and of the
    shapes that a budget buys `candidates` are tried.

    Healing takes `heal_epochs` or `heal_minutes` (none: one epoch; 0: no healing); `heal_loss`, `heal_labels` (there
    `label_share`) and `own_replies`: see `compress.distill.options`. `teacher` is a checkpoint to heal from, the
    unpruned one when None. `tokenizer` is that of a checkpoint whose vocabulary lies elsewhere.
    """

    keep: float | None = None
    max_mb: float | None = None
    max_ms_per_token: float | None = None
    layers: int | None = None
    width: int | None = None
    ffn: int | None = None
    vocab: int | None = None
    context: int | None = None
    importance: str = "obs"
    refit: bool = True
    candidates: int = 4
    scheme: str = "w8"
    heal_epochs: float | None = None
    heal_minutes: float | None = None
    heal_loss: str = "kl"
    heal_labels: float = 0.0
    own_replies: float = 0.1
    teacher: str | None = None
    tokenizer: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        axes = [f"--{name}" for name in UNIT_AXES if getattr(self, name) is not None]
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if not (axes or budgets or self.vocab or self.context):
            raise BadInput(
                "--keep: say how much is to stay (--keep 0.5, --max-mb, --max-ms-per-token), "
                "or a shape by --layers, --width, --ffn, --vocab, --context"
            )
        if self.keep is not None and not 0 < self.keep < 1:
            raise BadInput(f"--keep {self.keep:g}: a share of the parameters, between 0 and 1 (0.5 keeps half)")
        for name in budgets:
            value = getattr(self, name)
            option = "--" + name.replace("_", "-")
            if axes:
                raise BadInput(f"{option} {value:g}: is a budget and {', '.join(axes)} a shape; give one of the two")
            if not 0 < value < math.inf:
                raise BadInput(f"{option} {value:g}: give a number above 0")
        if self.heal_epochs is not None and self.heal_minutes is not None:
            raise BadInput("--heal-epochs and --heal-minutes: give one of the two")
        for name, value in (("--heal-epochs", self.heal_epochs), ("--heal-minutes", self.heal_minutes)):
            if value is not None and not 0 <= value < math.inf:
                raise BadInput(f"{name} {value:g}: 0 (no healing) or more")
        if self.importance not in IMPORTANCES:
            raise BadInput(f"--importance {self.importance}: no such ranking; choose {', '.join(IMPORTANCES)}")
        if self.candidates < 1:
            raise BadInput(f"--candidates {self.candidates}: give 1 (no trial) or more")

    @property
    def heals(self) -> bool:
        return self.heal_epochs != 0 and self.heal_minutes != 0

    @property
    def has_budget(self) -> bool:
        return any(getattr(self, name) is not None for name in BUDGETS)
