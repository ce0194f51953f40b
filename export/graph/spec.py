"""What decides a decoder graph, what goes into it and what comes out: the same for every family of models.

One graph for prefill and decode. Two targets: `cpu` computes in float32, with a cache of float32 or, with static
scales, of int8; `cuda` computes in float16 with a float16 cache, by operators that onnxruntime's CUDA provider has
kernels for.

Inputs (batch: conversations; seq: new tokens of each; n: positions that logits are wanted for):
    input_ids                    int64 [batch, seq]
    position_ids                 int64 [batch, seq]
    logits_positions             int64 [batch, n]    which of the seq tokens: the last one to chat, all of them to score
    seqlens_k                    int32 [batch]       valid tokens after this step - 1
    total_sequence_length        int32 scalar        the largest number of valid tokens after this step
    past_key_values.{i}.key      float32, int8 or float16 [batch, kv_heads, context, kv_head_dim]; and .value
Outputs:
    logits                       float32 [batch, n, vocab]
    present.{i}.key              the buffer that is bound as past_key_values.{i}.key; and .value
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from export.graph.layers import Blocks, Channels, Format
from serve.geometry import Geometry

KV_DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}


@dataclass(frozen=True)
class Numbers:
    """What a family computes with beside the geometry.

    activation: "tanh" or "erf" (the two forms of GELU) or "relu". attention_scales: of the products of queries and
    keys, one a layer. epsilon: of the norms.
    """

    activation: str
    epsilon: float
    attention_scales: tuple[float, ...]


@dataclass(frozen=True)
class GraphSpec:
    """What decides the graph. `formats` has the quantized weights by module name; the others are float.

    target: "cpu" or "cuda". kv: "float32", or "int8" for a cache with static scales (`with_kv_scales`); the float
    cache of a cuda graph is float16.
    """

    geometry: Geometry
    numbers: Numbers
    formats: Mapping[str, Format]
    target: str = "cpu"
    kv: str = "float32"

    @property
    def dtype(self) -> ir.DataType:
        """What weights and activations are computed in."""
        return ir.DataType.FLOAT16 if self.target == "cuda" else ir.DataType.FLOAT

    @property
    def kv_dtype(self) -> str:
        """Type of the cache's numbers: "float32", "float16" or "int8"."""
        return "float16" if self.target == "cuda" else self.kv

    def table(self, module: str) -> Blocks | None:
        """The format of a table."""
        form = self.formats.get(module)
        assert not isinstance(form, Channels), f"{module}: a table is quantized by blocks"
        return form


@dataclass(frozen=True)
class Step:
    """The inputs of a run, as values of the graph; shapes stand in the module's docstring."""

    input_ids: ir.Value
    position_ids: ir.Value
    logits_positions: ir.Value
    seqlens_k: ir.Value
    total: ir.Value
    past: list[tuple[ir.Value, ir.Value]]


def graph_names(layers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the graph's inputs and outputs, in order."""
    past = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    first = ("input_ids", "position_ids", "logits_positions", "seqlens_k", "total_sequence_length")
    return (*first, *past), ("logits", *present)
