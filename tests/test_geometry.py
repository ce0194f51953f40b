"""The geometry: what stands in bundle.json, what is refused, and what follows from the numbers."""

from typing import Any

import pytest

from serve.geometry import FIELDS, Geometry

GPT2 = Geometry(layers=12, heads=12, head_dim=64, ffn=3072, vocab=13317, context=300)
# Fewer heads for keys and values, heads that are not the width's parts, a head of its own: no GPT-2.
OTHER = Geometry(9, 6, 64, 960, 500, 128, width=576, kv_heads=3, tied=False, architecture="llama")


def test_sizes_that_are_left_out_follow_from_the_heads() -> None:
    """Stops a bundle of an earlier exporter from being read as another shape."""
    assert (GPT2.width, GPT2.kv_heads, GPT2.tied, GPT2.architecture) == (768, 12, True, "gpt2")
    assert (OTHER.width, OTHER.kv_heads) == (576, 3)
    assert (GPT2.name, OTHER.name) == ("12x768-ffn3072", "9x576-ffn960")
    assert str(GPT2) == "12 layers x 768 wide (12 heads), FFN 3072"


@pytest.mark.parametrize("geometry", [GPT2, OTHER])
def test_what_is_written_is_read_back(geometry: Geometry) -> None:
    """Stops a field that only one side knows; a GPT-2's object is that of the first bundles."""
    assert Geometry.from_json(geometry.as_json()) == geometry
    extra = {"kv_heads": 3, "tied": False, "architecture": "llama"} if geometry is OTHER else {}
    assert geometry.as_json() == {name: getattr(geometry, name) for name in FIELDS} | extra


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[({name: value}, f"^{name} is {value!r}, not a positive number$") for name in FIELDS for value in (0, None)],
        ({"layers": True}, "layers is True"),
        ({"heads": 2.0}, "heads is 2.0"),
        ({"kv_heads": 0}, "kv_heads is 0"),
        ({"kv_heads": 5}, "kv_heads 5 is no divisor of the heads"),
        ({"width": 767}, "width 767 is not heads"),
        ({"tied": 1}, "tied is 1 and architecture 'gpt2', not a switch and a name"),
        ({"architecture": 5}, "tied is True and architecture 5"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str) -> None:
    """Stops a damaged bundle.json from becoming buffers of another size."""
    with pytest.raises(ValueError, match=message):
        Geometry.from_json(GPT2.as_json() | changes)


def test_one_and_the_largest_numbers_pass() -> None:
    """Stops a limit that refuses the smallest model."""
    one = Geometry(1, 1, 1, 1, 1, 1)
    assert Geometry.from_json(one.as_json()) == one
    assert Geometry.from_json(OTHER.as_json() | {"kv_heads": 6}).kv_heads == 6


@pytest.mark.parametrize(("head_dim", "rounded"), [(1, 8), (7, 8), (8, 8), (9, 16), (64, 64)])
def test_the_cache_holds_heads_of_multiples_of_eight(head_dim: int, rounded: int) -> None:
    """onnxruntime's attention takes no others; the figure decides how many slots a box is given."""
    geometry = Geometry(3, 4, head_dim, 8, 8, 8, kv_heads=2)
    assert geometry.kv_head_dim == rounded
    assert geometry.kv_bytes_per_token == 3 * 2 * rounded * 2 * 4


def test_fewer_heads_keep_their_share_of_the_width() -> None:
    """Stops a pruned shape whose heads no longer fit its stream."""
    half = OTHER.with_heads(4)
    assert (half.heads, half.kv_heads, half.width, half.tied) == (4, 2, 384, False)
    assert GPT2.with_heads(1).width == 64
    for heads in (5, 1, 0, -2):
        with pytest.raises(ValueError, match=f"^{heads} heads of"):
            OTHER.with_heads(heads)
