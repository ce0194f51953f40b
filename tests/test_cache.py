"""The KV cache: lengths, limits, bytes."""

import pytest

from serve.bundle import Geometry
from serve.cache import KVCache

GEOMETRY = Geometry(layers=3, heads=2, head_dim=8, width=16, ffn=64, vocab=50, context=10)


def test_slots_have_lengths_of_their_own() -> None:
    """A shared length lets one conversation read the keys of another."""
    cache = KVCache(GEOMETRY, slots=2)
    cache.advance(4, slot=1)
    cache.advance(3, slot=1)
    assert (cache.length(0), cache.length(1), cache.room(1)) == (0, 7, 3)
    cache.trim(5, slot=1)
    cache.reset(0)
    assert (cache.length(0), cache.length(1)) == (0, 5)


def test_bytes_are_those_of_keys_and_values_of_all_layers() -> None:
    """The figure decides how many slots a box is given."""
    assert KVCache(GEOMETRY, slots=2).nbytes == 2 * 3 * 2 * 2 * 10 * 8 * 4
    assert KVCache(GEOMETRY).nbytes == GEOMETRY.kv_bytes_per_token * 10


@pytest.mark.parametrize("tokens", [-1, 6])
def test_a_slot_never_counts_beyond_its_buffer(tokens: int) -> None:
    """onnxruntime would write after the end of the buffer, or read before it."""
    cache = KVCache(GEOMETRY)
    cache.advance(5)
    with pytest.raises(ValueError, match="room for 5"):
        cache.advance(tokens)
    assert cache.length() == 5


@pytest.mark.parametrize("length", [-1, 6])
def test_trimming_only_shortens(length: int) -> None:
    """A slot trimmed to more than it holds would attend to what an earlier conversation left there."""
    cache = KVCache(GEOMETRY)
    cache.advance(5)
    with pytest.raises(ValueError, match="it holds 5"):
        cache.trim(length)


def test_there_is_at_least_one_slot() -> None:
    """Zero slots make empty buffers, which onnxruntime takes."""
    with pytest.raises(ValueError, match="slots 0"):
        KVCache(GEOMETRY, slots=0)
