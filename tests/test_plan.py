"""What a budget buys: shares, megabytes, milliseconds; measured times and honest refusals."""

from collections.abc import Sequence

import numpy as np
import pytest

from chitchat.architectures.registry import count_parameters
from chitchat.errors import BadInput
from compress.prune.options import PruneOptions
from compress.prune.plan import Candidate, nonnegative_fit, plan_candidates
from serve.geometry import Geometry

FULL = Geometry(layers=12, heads=12, head_dim=64, ffn=3072, vocab=13317, context=1024)
WHOLE = count_parameters(FULL)


class Ruler:
    """A machine whose times are a known function of the shape: ms and MB can be foretold exactly."""

    def __init__(self) -> None:
        self.measured: list[Geometry] = []

    def ms(self, shape: Geometry) -> float:
        work = shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.ffn)
        return 0.05 + 0.04 * shape.layers + 6e-8 * work + 4e-8 * shape.vocab * shape.width

    def measure(self, shapes: Sequence[Geometry]) -> list[float]:
        self.measured += shapes
        return [self.ms(shape) for shape in shapes]

    def file_mb(self, shape: Geometry) -> float:
        return count_parameters(shape) * 1.03e-6


def test_a_time_budget_is_met_and_nearly_used() -> None:
    """Stops shapes that are slower than asked, and ones that give quality away by being much faster."""
    ruler = Ruler()
    found = plan_candidates(WHOLE, FULL, PruneOptions(max_ms_per_token=3.0, candidates=6), ruler)
    assert len(found) == 6
    for each in found:
        assert each.ms_per_token == ruler.ms(each.shape)
        assert each.ms_per_token is not None
        assert each.ms_per_token <= 3.0 + 1e-9
        assert each.shape.ffn == FULL.ffn or each.ms_per_token > 2.7
    assert [each.expected_loss for each in found] == sorted(each.expected_loss for each in found)


def test_the_times_of_six_shapes_are_measured_for_the_model_of_all_others() -> None:
    """Stops shapes that are alike: what a layer costs and what an FFN costs cannot be told apart by them."""
    ruler = Ruler()
    plan_candidates(WHOLE, FULL, PruneOptions(max_ms_per_token=3.0, candidates=1), ruler)
    probes = {(shape.layers, shape.heads, shape.ffn) for shape in ruler.measured[:-1]}
    assert probes == {(12, 12, 3072), (6, 12, 3072), (12, 12, 768), (12, 6, 3072), (6, 12, 768), (1, 6, 768)}
    assert all(isinstance(shape.ffn, int) for shape in ruler.measured)


def test_a_size_budget_is_met() -> None:
    """Stops MB of another unit than the file's."""
    found = plan_candidates(WHOLE, FULL, PruneOptions(max_mb=50.0), Ruler())
    assert all(0.9 * 50 < (each.file_mb or 0) <= 50 for each in found)


def test_all_budgets_hold_at_once() -> None:
    """Stops the last option from winning."""
    ruler = Ruler()
    found = plan_candidates(WHOLE, FULL, PruneOptions(keep=0.6, max_mb=40.0, max_ms_per_token=9.0), ruler)
    assert all(
        count_parameters(each.shape) <= 0.6 * count_parameters(FULL) and (each.file_mb or 0) <= 40 for each in found
    )
    assert all((each.ms_per_token or 0) <= 9 for each in found)


def test_the_share_is_of_the_model_that_came() -> None:
    """Stops a trimmed vocabulary from making `--keep` a share of something smaller."""
    trimmed = Geometry(12, 12, 64, 3072, 4000, 256)
    (best, *_) = plan_candidates(WHOLE, trimmed, PruneOptions(keep=0.5, vocab=4000, context=256), None)
    assert 0.48 * count_parameters(FULL) < count_parameters(best.shape) <= 0.5 * count_parameters(FULL)
    assert (best.shape.vocab, best.shape.context) == (4000, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.001}, r"--keep 0.001: the smallest is --keep 0\.\d{3}; that is 1 layers x 64 wide"),
        ({"max_mb": 0.1}, r"--max-mb 0.1: the smallest has \d+\.\d+ MB \(w8\)"),
        ({"max_ms_per_token": 1e-4}, r"--max-ms-per-token 0.0001: the fastest takes 0\.\d+ ms here"),
    ],
)
def test_a_budget_that_no_shape_meets_names_the_smallest(options: dict[str, float], message: str) -> None:
    """Stops an empty search from ending in a traceback."""
    with pytest.raises(BadInput, match=message):
        plan_candidates(WHOLE, FULL, PruneOptions(**options), Ruler())


def test_the_smallest_that_a_refusal_names_can_be_had() -> None:
    """Stops advice that is refused again."""
    with pytest.raises(BadInput) as refused:
        plan_candidates(WHOLE, FULL, PruneOptions(keep=0.001), None)
    least = float(str(refused.value).split("--keep ")[2].split(";")[0])
    assert plan_candidates(WHOLE, FULL, PruneOptions(keep=least), None)


def test_a_fit_has_no_negative_cost() -> None:
    """Stops a noisy measurement from making layers free: more of anything is never faster."""
    random = np.random.default_rng(0)
    features = random.random((6, 3))
    np.testing.assert_allclose(nonnegative_fit(features, features @ [1.0, 0.0, 2.0]), [1, 0, 2], atol=1e-9)
    found = nonnegative_fit(features, features @ [1.0, -0.5, 2.0])
    assert found.min() >= 0
    assert found[1] == 0


def test_a_stored_candidate_comes_back() -> None:
    """Stops a resumed run from going on with another shape."""
    shape = Geometry(9, 10, 64, 1536, 13317, 1024)
    candidate = Candidate(shape, Candidate.of(shape, FULL).expected_loss, 60.5, 3.25, 20.1, 1.04, 0.03, 40, True)
    assert Candidate.from_json(candidate.as_json(), FULL) == candidate
