"""The KV cache: what slots hold, their limits, their bytes, and the memory that a run is given."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from serve.bundle import Geometry
from serve.cache import KVCache

GEOMETRY = Geometry(layers=3, heads=2, head_dim=8, width=16, ffn=64, vocab=50, context=10)


def test_slots_have_lengths_of_their_own() -> None:
    """A shared length lets one conversation read the keys of another."""
    cache = KVCache(GEOMETRY, slots=2)
    cache.extend([5, 6, 7, 8], slot=1, prefill=True)
    cache.append(9, slot=1)
    assert (cache.length(0), cache.length(1), cache.room(1)) == (0, 5, 4)
    cache.trim(3, slot=1)
    cache.reset(0)
    assert (cache.length(0), cache.length(1)) == (0, 3)
    assert cache.lengths == [0, 3]


def test_a_prompt_matches_what_the_same_tokens_left() -> None:
    """Keys of other tokens answer another question; keys of a decode have other bits than those of a prefill."""
    cache = KVCache(GEOMETRY, slots=2)
    cache.extend([5, 6, 7], prefill=True)
    cache.extend([8], prefill=False)
    cache.extend([9, 4], prefill=True)
    assert cache.match([5, 6, 1, 8], prefilled=False) == 2
    assert cache.match([5, 6, 7, 8, 9, 4, 3], prefilled=False) == 6
    assert cache.match([5, 6, 7, 8, 9, 4, 3], prefilled=True) == 3, "after a decoded token nothing is as prefilled"
    assert cache.match([5, 6, 7], slot=1, prefilled=False) == 0
    cache.trim(2)
    cache.extend([1], prefill=True)
    assert cache.match([5, 6, 1, 8], prefilled=True) == 3


def test_slots_that_share_a_cache_keep_their_last_row_free() -> None:
    """A row that rides along in a run over its neighbours is written after its last token: not after the buffer."""
    assert KVCache(GEOMETRY).capacity == 10
    cache = KVCache(GEOMETRY, slots=2)
    cache.extend(range(9), prefill=True)
    assert cache.room() == 0
    with pytest.raises(ValueError, match="room for 0"):
        cache.extend([1], prefill=False)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_bytes_are_those_of_keys_and_values_of_all_layers(dtype: str, size: int) -> None:
    """The figure decides how many slots a box is given."""
    assert KVCache(GEOMETRY, 2, dtype).nbytes == 2 * 3 * 2 * 2 * 10 * 8 * size
    assert KVCache(GEOMETRY).nbytes == GEOMETRY.kv_bytes_per_token * 10


def test_a_slot_never_counts_beyond_its_buffer() -> None:
    """onnxruntime would write after the end of the buffer."""
    cache = KVCache(GEOMETRY)
    cache.extend(range(5), prefill=True)
    with pytest.raises(ValueError, match="room for 5"):
        cache.extend(range(6), prefill=True)
    assert (cache.length(), cache.prefilled()) == (5, 5)


@pytest.mark.parametrize("length", [-1, 6])
def test_trimming_only_shortens(length: int) -> None:
    """A slot trimmed to more than it holds would attend to what an earlier conversation left there."""
    cache = KVCache(GEOMETRY)
    cache.extend(range(5), prefill=True)
    with pytest.raises(ValueError, match="it holds 5"):
        cache.trim(length)


def test_there_is_at_least_one_slot() -> None:
    """Zero slots make empty buffers, which onnxruntime takes."""
    with pytest.raises(ValueError, match="slots 0"):
        KVCache(GEOMETRY, slots=0)


def test_a_run_is_given_the_memory_of_its_slots_alone() -> None:
    """A pointer that is one slot off overwrites another conversation."""
    shape, parts = ["n", 2, 10, 8], [f"{layer}.{part}" for layer in range(3) for part in ("key", "value")]
    names = [(f"past_key_values.{part}", f"present.{part}") for part in parts]
    values = [
        [helper.make_tensor_value_info(pair[side], TensorProto.FLOAT, shape) for pair in names] for side in (0, 1)
    ]
    graph = helper.make_graph([helper.make_node("Exp", [a], [b]) for a, b in names], "g", *values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    cache = KVCache(GEOMETRY, slots=4)
    for first, count, expected in ((1, 2, [0, 1, 1, 0]), (0, None, [1, np.e, np.e, 1]), (3, 1, [1, np.e, np.e, np.e])):
        binding = session.io_binding()
        cache.bind(binding, first, count)
        session.run_with_iobinding(binding)
        for array in cache._owners.values():
            assert isinstance(array, np.ndarray)
            np.testing.assert_allclose(array.reshape(4, -1).T, np.tile(expected, (160, 1)))
    for first, count in ((-1, 2), (3, 2), (0, 0)):
        with pytest.raises(ValueError, match="the cache has 4"):
            cache.bind(session.io_binding(), first, count)
