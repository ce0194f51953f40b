"""The KV cache: fixed buffers that the graph reads and extends in place.

One key and one value buffer a layer, float32 [slots, heads, context, head_dim]. Each is bound to a run as past *and* as
present: onnxruntime's GroupQueryAttention sees the equal pointers and appends instead of copying. Rows at and after a
slot's length are never read, so forgetting is setting a number.
"""

import numpy as np
import onnxruntime as ort

from serve.bundle import Geometry


class KVCache:
    """Buffers for `slots` conversations of up to `context` tokens; the length of each slot in tokens."""

    def __init__(self, geometry: Geometry, slots: int = 1) -> None:
        if slots < 1:
            raise ValueError(f"slots {slots}: at least 1")
        self.context = geometry.context
        self.slots = slots
        shape = (slots, geometry.heads, geometry.context, geometry.head_dim)
        names = [f"{layer}.{part}" for layer in range(geometry.layers) for part in ("key", "value")]
        # An OrtValue made from an array does not own its memory: the arrays must live as long as the cache.
        self._arrays = {name: np.zeros(shape, dtype=np.float32) for name in names}
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self._arrays.items()}
        self._lengths = [0] * slots

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers. Pages that no token has touched yet take no memory."""
        return sum(array.nbytes for array in self._arrays.values())

    def length(self, slot: int = 0) -> int:
        """Tokens in a slot."""
        return self._lengths[slot]

    def room(self, slot: int = 0) -> int:
        """Tokens that still fit into a slot."""
        return self.context - self._lengths[slot]

    def advance(self, tokens: int, slot: int = 0) -> None:
        """Count tokens that a run has just appended."""
        if not 0 <= tokens <= self.room(slot):
            raise ValueError(f"slot {slot}: {tokens} more tokens, room for {self.room(slot)}")
        self._lengths[slot] += tokens

    def trim(self, length: int, slot: int = 0) -> None:
        """Keep the first `length` tokens of a slot and forget the rest."""
        if not 0 <= length <= self._lengths[slot]:
            raise ValueError(f"slot {slot}: trim to {length}, it holds {self._lengths[slot]}")
        self._lengths[slot] = length

    def reset(self, slot: int = 0) -> None:
        """Forget a slot."""
        self.trim(0, slot)

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind every buffer as past and as present of a run over all slots."""
        for name, value in self._values.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
