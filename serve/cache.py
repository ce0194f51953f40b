"""The KV cache: fixed buffers that the graph reads and extends in place, and what each slot of them holds.

One key and one value buffer a layer, [slots, heads, context, head_dim]. A range of slots is bound to a run as past
*and* as present, by pointer: onnxruntime's GroupQueryAttention sees equal pointers and appends instead of copying. Rows
at and after a slot's length are never read, so forgetting is setting a number, and a run over a slot's neighbours may
write there. For that, slots that share a cache keep their last row free.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serve.bundle import Geometry
from serve.quiet import load

if TYPE_CHECKING:
    import onnxruntime


class KVCache:
    """Buffers for `slots` conversations of up to `capacity` tokens, and the ids of the tokens in each slot.

    A token's keys and values come from a prefill (a run over several tokens of one slot) or from a decode (one token
    of several slots). The kernels differ, and so do the last bits; hence `prefilled` counts the leading tokens of a
    slot that a prefill computed. `dtype` is "float32", "float16" or "int8"; `device` "cpu" or "cuda".
    """

    def __init__(self, geometry: Geometry, slots: int = 1, dtype: str = "float32", device: str = "cpu") -> None:
        if slots < 1:
            raise ValueError(f"slots {slots}: at least 1")
        self.context = geometry.context
        self.slots = slots
        self.capacity = geometry.context if slots == 1 else geometry.context - 1
        self._device = device
        self._dtype = np.dtype(dtype)
        self._shape = (slots, geometry.kv_heads, geometry.context, geometry.kv_head_dim)
        self._slot_bytes = int(np.prod(self._shape[1:])) * self._dtype.itemsize
        names = [f"{layer}.{part}" for layer in range(geometry.layers) for part in ("key", "value")]
        self._owners = {name: self._allocate() for name in names}
        self._ids: list[list[int]] = [[] for _ in range(slots)]
        self._prefilled = [0] * slots
        self.lengths = [0] * slots  # tokens in each slot; read only

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers. Pages of the CPU's memory that no token has touched yet take none."""
        return len(self._owners) * self.slots * self._slot_bytes

    def length(self, slot: int = 0) -> int:
        """Tokens in a slot."""
        return len(self._ids[slot])

    def room(self, slot: int = 0) -> int:
        """Tokens that still fit into a slot."""
        return self.capacity - len(self._ids[slot])

    def prefilled(self, slot: int = 0) -> int:
        """Leading tokens of a slot that a prefill computed."""
        return self._prefilled[slot]

    def extend(self, ids: Sequence[int], slot: int = 0, *, prefill: bool) -> None:
        """Note the tokens that a run has just appended to a slot. Raises ValueError beyond its capacity."""
        if len(ids) > self.room(slot):
            raise ValueError(f"slot {slot}: {len(ids)} more tokens, room for {self.room(slot)}")
        if prefill and self._prefilled[slot] == len(self._ids[slot]):
            self._prefilled[slot] += len(ids)
        self._ids[slot].extend(ids)
        self.lengths[slot] = len(self._ids[slot])

    def append(self, token: int, slot: int) -> None:
        """Note a token that a decode has just appended. The caller has seen that there was room."""
        self._ids[slot].append(token)
        self.lengths[slot] += 1

    def trim(self, length: int, slot: int = 0) -> None:
        """Keep the first `length` tokens of a slot and forget the rest."""
        if not 0 <= length <= len(self._ids[slot]):
            raise ValueError(f"slot {slot}: trim to {length}, it holds {len(self._ids[slot])}")
        del self._ids[slot][length:]
        self._prefilled[slot] = min(self._prefilled[slot], length)
        self.lengths[slot] = length

    def reset(self, slot: int = 0) -> None:
        """Forget a slot."""
        self.trim(0, slot)

    def match(self, ids: Sequence[int], slot: int = 0, *, prefilled: bool) -> int:
        """How many leading ids of `ids` are those in the slot; with `prefilled`, of those that prefill computed."""
        held = self._ids[slot]
        limit = min(len(ids), self._prefilled[slot] if prefilled else len(held))
        return next((index for index in range(limit) if ids[index] != held[index]), limit)

    def bind(self, binding: "onnxruntime.IOBinding", first: int = 0, count: int | None = None) -> None:
        """Bind the slots `first` to `first + count - 1` (None: all) as past and as present of a run over them."""
        count = self.slots if count is None else count
        if not (first >= 0 and count >= 1 and first + count <= self.slots):
            raise ValueError(f"slots {first} to {first + count - 1}: the cache has {self.slots}")
        shape = (count, *self._shape[1:])
        for name, owner in self._owners.items():
            start = owner.ctypes.data if isinstance(owner, np.ndarray) else owner.data_ptr()
            where = (self._device, 0, self._dtype.type, shape, start + first * self._slot_bytes)
            binding.bind_input(f"past_key_values.{name}", *where)
            binding.bind_output(f"present.{name}", *where)

    def _allocate(self) -> "npt.NDArray[np.generic] | onnxruntime.OrtValue":
        """One buffer of zeros on the device."""
        zeros = np.zeros(self._shape, dtype=self._dtype)
        if self._device == "cpu":
            return zeros
        value: onnxruntime.OrtValue = load("onnxruntime").OrtValue.ortvalue_from_numpy(zeros, self._device, 0)
        return value
