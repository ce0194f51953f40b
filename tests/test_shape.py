"""Shapes: parameters counted as transformers counts them, budgets kept, and every refusal."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.architectures.registry import count_parameters, geometry_of
from chitchat.errors import BadInput
from compress.prune.shape import candidate_shapes, explicit_shape, quality_cost, smallest_shape
from serve.geometry import Geometry

GPT2_CHITCHAT = Geometry(layers=12, heads=12, head_dim=64, ffn=3072, vocab=13317, context=1024)
BYU = Geometry(layers=6, heads=5, head_dim=64, ffn=1280, vocab=4096, context=256)
TINY = Geometry(layers=2, heads=4, head_dim=8, ffn=128, vocab=300, context=64)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ffn", [None, 48])
def test_parameters_are_what_transformers_counts(tied: bool, ffn: int | None) -> None:
    """Stops a formula that forgets a bias or counts a tied table twice: the budget would be missed."""
    config = GPT2Config(
        n_layer=3, n_head=4, n_embd=32, n_inner=ffn, vocab_size=77, n_positions=20, tie_word_embeddings=tied
    )
    shape = geometry_of(config)
    assert count_parameters(shape) == GPT2LMHeadModel(config).num_parameters()
    assert shape.ffn == (ffn or 128)


def within(full: Geometry, keep: float) -> list[Geometry]:
    """The candidates of a share of the parameters."""
    return candidate_shapes(full, lambda shape: count_parameters(shape) <= keep * count_parameters(full))


@pytest.mark.parametrize("full", [GPT2_CHITCHAT, BYU, TINY])
@pytest.mark.parametrize("keep", [0.95, 0.7, 0.5, 0.33])
def test_a_budget_is_kept_and_nearly_used(full: Geometry, keep: float) -> None:
    """Stops a shape above its budget, and one that gives quality away by staying far below it."""
    shapes = within(full, keep)
    assert shapes
    for shape in shapes:
        assert count_parameters(shape) <= keep * count_parameters(full)
        one_step_wider = 32 * (2 * shape.width + 1) * shape.layers
        assert shape.ffn == full.ffn or count_parameters(shape) + one_step_wider > keep * count_parameters(full)
        assert shape.width % shape.heads == 0
        assert (shape.head_dim, shape.vocab, shape.context) == (full.head_dim, full.vocab, full.context)


@pytest.mark.parametrize("full", [GPT2_CHITCHAT, BYU])
@pytest.mark.parametrize("keep", [0.95, 0.7, 0.5, 0.33, 0.2])
def test_sizes_are_multiples_of_32_where_the_model_is_large_enough(full: Geometry, keep: float) -> None:
    """Stops shapes whose last block of integers is mostly padding."""
    assert all(shape.width % 32 == 0 and shape.ffn % 32 == 0 for shape in within(full, keep))


def test_the_cheapest_axis_goes_first() -> None:
    """Stops a plan that cuts the width, which costs most, while FFN and layers are whole."""
    light, half = within(BYU, 0.9)[0], within(BYU, 0.5)[0]
    assert light.width == half.width == 320
    assert light.ffn < BYU.ffn
    assert half.layers < 6


def test_candidates_come_in_order_and_every_width_and_depth_is_among_them() -> None:
    """Stops a search that never looks at narrow models, and a first candidate by enumeration order."""
    shapes = within(BYU, 0.4)
    costs = [quality_cost(shape, BYU) for shape in shapes]
    assert costs == sorted(costs)
    assert {shape.heads for shape in shapes} == {1, 2, 3, 4, 5}
    assert {shape.layers for shape in shapes} == {1, 2, 3, 4, 5, 6}
    assert len({(shape.layers, shape.heads) for shape in shapes}) == len(shapes)


def test_the_model_itself_is_no_candidate() -> None:
    """Stops a budget that is met already from pruning nothing, silently."""
    assert BYU not in candidate_shapes(BYU, lambda shape: True)


def test_nothing_is_smaller_than_the_smallest() -> None:
    """Stops a refusal that names a size which cannot be had."""
    for full in (GPT2_CHITCHAT, BYU, TINY):
        least = smallest_shape(full)
        assert not candidate_shapes(full, lambda shape, least=least: count_parameters(shape) < count_parameters(least))
        assert least in candidate_shapes(
            full, lambda shape, least=least: count_parameters(shape) <= count_parameters(least)
        )


def test_explicit_axes_leave_the_others_alone() -> None:
    """Stops an FFN that shrinks silently with the width."""
    assert explicit_shape(BYU, None, 192, None) == Geometry(6, 3, 64, 1280, 4096, 256)
    assert explicit_shape(BYU, 4, None, 100) == Geometry(4, 5, 64, 100, 4096, 256)
    assert explicit_shape(BYU, vocab=3000, context=128) == Geometry(6, 5, 64, 1280, 3000, 128)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((7, None, None), r"--layers 7: the model has 6"),
        ((0, None, None), r"--layers 0: .*1 to 6"),
        ((None, 384, None), r"--width 384: the model has 320"),
        ((None, None, 2048), r"--ffn 2048: the model has 1280"),
        ((None, 200, None), r"--width 200: .*64; the nearest are 192 and 256"),
        ((None, 40, None), r"--width 40: .*the nearest are 64"),
        ((None, None, None, 5000), r"--vocab 5000: the model has 4096"),
        ((None, None, None, None, 0), r"--context 0: the model has 256; choose 1 to 256"),
    ],
)
def test_an_axis_that_cannot_be_is_refused(axes: tuple[int | None, ...], message: str) -> None:
    """Stops a traceback out of torch-pruning; the line names the option, the value and what would do."""
    with pytest.raises(BadInput, match=message):
        explicit_shape(BYU, *axes)
