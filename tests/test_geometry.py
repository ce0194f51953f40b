"""The geometry of a decoder: what is left out, what fewer heads take with them, and what bundle.json holds."""

from dataclasses import replace

import pytest

from serve.geometry import FIELDS, Geometry

PLAIN = Geometry(layers=2, heads=6, head_dim=10, ffn=40, vocab=50, context=16)
GROUPED = replace(PLAIN, width=96, kv_heads=2, tied=False, architecture="other")


def test_a_width_and_keys_that_are_left_out_follow_from_the_heads() -> None:
    """A width of 0 reached the graph."""
    assert (PLAIN.width, PLAIN.kv_heads, PLAIN.kv_head_dim) == (60, 6, 16)
    assert PLAIN.kv_bytes_per_token == 2 * 4 * 2 * 6 * 16
    assert GROUPED.kv_bytes_per_token == PLAIN.kv_bytes_per_token // 3


def test_fewer_heads_take_their_share_of_width_and_keys() -> None:
    """The width stayed, and heads without keys of their own were counted."""
    assert PLAIN.with_heads(2) == Geometry(layers=2, heads=2, head_dim=10, ffn=40, vocab=50, context=16)
    assert (GROUPED.with_heads(3).width, GROUPED.with_heads(3).kv_heads) == (48, 1)
    for heads in (0, 2):
        with pytest.raises(ValueError, match=rf"{heads} heads of"):
            GROUPED.with_heads(heads)


def test_a_bundle_of_gpt2_holds_what_it_always_held() -> None:
    """A field more would make every bundle differ from the one before; a field less would lose the other family."""
    assert list(PLAIN.as_json()) == list(FIELDS)
    assert set(GROUPED.as_json()) - set(FIELDS) == {"kv_heads", "tied", "architecture"}
    for geometry in (PLAIN, GROUPED):
        assert Geometry.from_json(geometry.as_json()) == geometry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"ffn": True}, "ffn is True"),
        ({"context": None}, "context is None"),
        ({"width": 64}, r"width 64 is not heads \* head_dim"),
        ({"kv_heads": 4}, "kv_heads 4 is no divisor"),
        ({"tied": 1}, "tied is 1"),
    ],
)
def test_what_contradicts_itself_is_refused(change: dict, message: str) -> None:
    """A damaged field reached the cache as its size."""
    with pytest.raises(ValueError, match=message):
        Geometry.from_json(PLAIN.as_json() | change)
