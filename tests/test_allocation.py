"""The choice of bits: the most that the limit allows, told from measurements alone."""

from collections.abc import Sequence

import pytest

from chitchat.errors import BadInput
from compress.quantize.allocation import Sensitivity, allocate

FOUND = [
    Sensitivity("cheap", 0.001, 1000),
    Sensitivity("large", 0.010, 20_000),
    Sensitivity("dear", 0.050, 1000),
    Sensitivity("free", -0.0001, 10),
    Sensitivity("bad", 1.0, 5000),
]
ORDER = ("free", "large", "cheap", "dear", "bad")


class Model:
    """Losses that add up, with 1e-4 that 8 bits cost; it counts how often it was asked."""

    def __init__(self, together: float = 1.0) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.together = together

    def __call__(self, modules: Sequence[str]) -> float:
        self.asked.append(tuple(modules))
        return 1e-4 + self.together * sum(max(0.0, each.kl) for each in FOUND if each.module in modules)


@pytest.mark.parametrize(
    ("limit", "count"), [(1.1e-4, 1), (0.0101, 2), (0.0112, 3), (0.0111, 3), (0.06, 3), (0.0612, 4), (2.0, 5)]
)
def test_as_many_go_to_4_bits_as_the_limit_allows(limit: float, count: int) -> None:
    """Stops a choice that stops too early, or one tensor too late."""
    found = allocate(FOUND, Model(), limit + 1e-12)
    assert found.low == ORDER[:count]
    assert found.kl <= limit + 1e-9


@pytest.mark.parametrize("together", [0.3, 3.0])
def test_what_counts_is_what_they_lose_together(together: float) -> None:
    """Stops trust in a sum: rounding errors help and hinder each other."""
    model = Model(together)
    found = allocate(FOUND, model, 0.02)
    assert found.kl == model(found.low) <= 0.02
    assert model(ORDER[: len(found.low) + 1]) > 0.02
    assert found.tried[len(found.low)] == found.kl


def test_few_sets_are_measured() -> None:
    """Each measurement quantizes a whole model."""
    many = [Sensitivity(f"m{i:03}", 0.001 * (i + 1), 100) for i in range(100)]
    asked = []

    def lost(modules: Sequence[str]) -> float:
        asked.append(len(modules))
        return 0.001 * sum(1.3 * (int(name[1:]) + 1) for name in modules)

    found = allocate(many, lost, 1.0)
    assert lost(found.low) <= 1.0 < lost([*found.low, f"m{len(found.low):03}"])
    assert len(asked) <= 11


def test_a_limit_below_8_bits_is_refused() -> None:
    """Stops a file that breaks the promise; the line says what can be had."""
    with pytest.raises(BadInput, match=r"--max-kl 5e-05: 8 bits everywhere lose 0.0001 already"):
        allocate(FOUND, Model(), 5e-5)
