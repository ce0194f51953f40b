"""Which tensors get 4 bits and which 8 (`--scheme auto`): the smallest file within a loss, by measured sensitivity.

Every tensor is put to 4 bits alone, all others as they were, and the KL divergence of that from the original is
measured. Losses of this size add up nearly; so the tensors go to 4 bits in the order of the loss per byte saved, as
many as the limit allows. How many, is found by bisection on what the whole set really loses, measured each time on the
finished integers.

Knows nothing of models and files: it asks `lost`, and is told.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chitchat.errors import BadInput


@dataclass(frozen=True)
class Sensitivity:
    """What 4 bits in one tensor cost and save: `kl` in nats a token, `saved` bytes against 8 bits."""

    module: str
    kl: float
    saved: int

    @property
    def price(self) -> float:
        """KL a byte."""
        return max(self.kl, 0.0) / self.saved


@dataclass(frozen=True)
class Allocation:
    """`low` are the modules at 4 bits; `kl` is what they lose together, and `tried` every other set's number and KL."""

    low: tuple[str, ...]
    kl: float
    tried: Mapping[int, float]


def allocate(found: Sequence[Sensitivity], lost: Callable[[Sequence[str]], float], max_kl: float) -> Allocation:
    """The longest prefix of the tensors, cheapest first, that loses at most `max_kl` together.

    `lost(modules)` is the measured KL with those modules at 4 bits and the others at 8. Raises `BadInput` when all of
    them at 8 bits lose more than `max_kl`.
    """
    order = [each.module for each in sorted(found, key=lambda each: (each.price, each.module))]
    tried: dict[int, float] = {0: lost(())}
    if tried[0] > max_kl:
        raise BadInput(f"--max-kl {max_kl:g}: 8 bits everywhere lose {tried[0]:.2g} already; allow at least that")
    fits, fails = 0, len(order) + 1
    guess = _guess(found, order, max_kl - tried[0])
    while fails - fits > 1:
        guess = min(max(guess, fits + 1), fails - 1)
        tried[guess] = lost(order[:guess])
        if tried[guess] <= max_kl:
            fits = guess
        else:
            fails = guess
        guess = (fits + fails) // 2
    return Allocation(tuple(order[:fits]), tried[fits], tried)


def _guess(found: Sequence[Sensitivity], order: Sequence[str], left: float) -> int:
    """How many would fit if losses added up."""
    by_name = {each.module: max(each.kl, 0.0) for each in found}
    count = 0
    for module in order:
        left -= by_name[module]
        if left < 0:
            break
        count += 1
    return count
