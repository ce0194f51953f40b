"""From a checkpoint's tensors to the graph's parameters.

The modules of the graph carry the names of Hugging Face, so the table is nearly the identity:

    checkpoint                          graph
    <linear>.weight                     [in, out], MatMul's layout, whichever way the model keeps it
    <table>.weight   [rows, width]      the same
    biases, norms                       the same
    <module>.qweight, .scales, …        the same (a quantized checkpoint stores the layouts of the kernels)
    the head's weight, when tied        nothing: the head reads the token table
    –                                   <attention>.k_scale, .v_scale [1, kv_heads, 1, kv_head_dim], from calibration

Nothing is converted but the float type, to float32 or float16; no integer changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from transformers import PreTrainedModel

from chitchat.architectures.protocol import Architecture
from chitchat.architectures.registry import architecture_of, geometry_of
from chitchat.errors import BadInput
from compress.calibrate.ranges import KVScales
from compress.quantize.blockwise import BlockTensor
from compress.quantize.checkpoint import QuantizedTensor, named_arrays
from export.graph.layers import Blocks, Channels, Format

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class GraphWeights:
    """The arrays of every parameter of a graph by name, and how the quantized modules are stored."""

    arrays: Arrays
    formats: Mapping[str, Format]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; a tied table counts once, since it is there once."""
        return sum(array.nbytes for array in self.arrays.values())

    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """The arrays as the builder takes them."""
        return {name: ir.tensor(array, name=name) for name, array in self.arrays.items()}


def float_weights(model: PreTrainedModel) -> GraphWeights:
    """The weights of a float model, as float32."""
    architecture, state = architecture_of(model), model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop(f"{architecture.head_name}.weight")
    for matrix in architecture.matrices(geometry_of(model)):
        if not (matrix.table or matrix.transposed):
            state[f"{matrix.module}.weight"] = state[f"{matrix.module}.weight"].T
    arrays = {name: value.detach().float().contiguous().cpu().numpy() for name, value in state.items()}
    return GraphWeights(arrays, {})


def quantized_weights(
    matrices: Mapping[str, QuantizedTensor], floats: Mapping[str, npt.NDArray[np.generic]], tied: bool
) -> GraphWeights:
    """The weights of a quantized checkpoint: the integers and scales as they are, the rest as float32."""
    arrays: Arrays = {}
    for name, tensor in matrices.items():
        arrays |= named_arrays(name, tensor)
    for name, array in floats.items():
        if not (tied and name == f"{Architecture.head_name}.weight"):
            arrays[name] = np.ascontiguousarray(array, dtype=np.float32)
    return GraphWeights(arrays, {name: format_of(tensor) for name, tensor in matrices.items()})


def format_of(tensor: QuantizedTensor) -> Format:
    """How the graph multiplies by a tensor of a quantized checkpoint."""
    return Blocks(tensor.bits, tensor.block_size) if isinstance(tensor, BlockTensor) else Channels()


def with_kv_scales(weights: GraphWeights, scales: Sequence[KVScales]) -> GraphWeights:
    """Add the scales of an int8 cache (`calibrate_kv`), one of each layer; zeros behind a head are of scale 1."""
    arrays = dict(weights.arrays)
    for found in scales:
        for name, scale in (("k_scale", found.key), ("v_scale", found.value)):
            padding = ((0, 0), (0, 0), (0, 0), (0, -scale.shape[-1] % 8))
            arrays[f"{found.attention}.{name}"] = np.pad(scale, padding, constant_values=1)
    return replace(weights, arrays=arrays)


def half_weights(weights: GraphWeights) -> GraphWeights:
    """The same integers with every float as float16, for a cuda graph.

    Raises BadInput, naming the tensor, for a number that float16 cannot hold.
    """
    arrays: Arrays = {}
    for name, array in weights.arrays.items():
        if array.dtype == np.float32 and np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise BadInput(f"--target cuda: {name} holds numbers beyond float16's 65504; use --target cpu")
        arrays[name] = array.astype(np.float16) if array.dtype == np.float32 else array
    return replace(weights, arrays=arrays)


def check_weights(weights: GraphWeights, expected: Mapping[str, tuple[tuple[int, ...], ir.DataType]]) -> None:
    """Raise BadInput unless there is one array of the right shape and type for every parameter of the graph."""
    missing, extra = sorted(expected.keys() - weights.arrays.keys()), sorted(weights.arrays.keys() - expected.keys())
    if missing or extra:
        raise BadInput(
            f"the checkpoint's tensors do not fit its config.json (missing {missing[:3]}, left over {extra[:3]}); "
            "fetch the checkpoint again"
        )
    for name, (shape, dtype) in expected.items():
        array = weights.arrays[name]
        if array.shape != shape or ir.DataType.from_numpy(array.dtype) != dtype:
            raise BadInput(
                f"{name} is {array.dtype}{list(array.shape)}, config.json asks for {dtype}{list(shape)}; "
                "fetch the checkpoint again"
            )
