"""A bundle of random weights: what a shape costs in bytes and in time, before anybody has trained it.

The graph, the layouts and the block sizes are those of `compress quantize` and `compress export`; only the numbers are
drawn, since neither size nor speed hangs on them. So the file is written in a second, with no model in torch, no
calibration and no proof. What such a bundle says is noise.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from chitchat.architectures.protocol import Matrix
from chitchat.architectures.registry import architecture_of, count_parameters
from compress.quantize.blockwise import BlockTensor
from compress.quantize.channelwise import ChannelTensor
from compress.quantize.checkpoint import QuantizedTensor
from compress.quantize.schemes import SCHEMES, Grid, grids
from export.bundle import write_graph, write_manifest
from export.graph.builder import build_graph, graph_spec
from export.graph.spec import graph_names
from export.weights import GraphWeights, quantized_weights
from serve.bundle import GRAPH, TOKENIZER, Graph, Manifest
from serve.geometry import Geometry
from serve.options import SamplingOptions

END_OF_TURN_ID = 0
_SPREAD = 0.02  # GPT-2's initial weights
MANIFEST_BYTES = 6_000  # bundle.json of a model that was trained, pruned, quantized and exported


def bundle_bytes(shape: Geometry, scheme: str, tokenizer_bytes: int) -> int:
    """Bytes of the bundle that a model of `shape` becomes under `scheme` ("fp32", or one of `compress quantize`).

    The weights are counted exactly. The nodes of the graph are those of written graphs of one and two layers, which
    grow evenly. `tokenizer_bytes` is the size of tokenizer.json; bundle.json is taken as 6 kB.
    """
    one, two = (_graph_overhead(layers, scheme, shape.tied) for layers in (1, 2))
    overhead = one + (shape.layers - 1) * (two - one)
    return _weight_bytes(shape, scheme) + overhead + tokenizer_bytes + MANIFEST_BYTES


def write_random_bundle(shape: Geometry, scheme: str, folder: Path, seed: int = 0) -> None:
    """Write a bundle of random weights into an empty folder; its tokenizer is empty."""
    write_weights(shape, scheme, random_weights(shape, scheme, np.random.default_rng(seed)), folder)


def write_weights(shape: Geometry, scheme: str, weights: GraphWeights, folder: Path) -> None:
    """Write a bundle of `weights` into an empty folder, to be timed and not to be talked to; its tokenizer is empty."""
    spec = graph_spec(_config(shape), weights.formats)
    write_graph(build_graph(spec, weights), folder)
    (folder / TOKENIZER).write_text("{}", encoding="utf-8")
    dialogue = {"family": "dialogpt", "start_ids": [], "end_of_turn_id": END_OF_TURN_ID, "pad_id": END_OF_TURN_ID}
    manifest = Manifest(
        graphs={"cpu": Graph(GRAPH, *graph_names(shape.layers), weights.nbytes)},
        scheme=scheme,
        geometry=spec.geometry,
        parameters=count_parameters(shape),
        dialogue=dialogue | {"unk_id": None, "blank_ids": [], "banned_ids": []},
        sampling=asdict(SamplingOptions()),
        cpu_features=(),
        lineage=(),
        parity={},
        quality={},
        latency={},
    )
    write_manifest(manifest, folder)


def _config(shape: Geometry) -> PretrainedConfig:
    return architecture_of(shape).new_config(shape, bos_token_id=END_OF_TURN_ID, eos_token_id=END_OF_TURN_ID)


def _matrices(shape: Geometry, scheme: str) -> Iterator[tuple[Matrix, Grid | None]]:
    """Every weight matrix and table, and how `compress quantize` would store it; None: in float32."""
    chosen = grids(shape, scheme) if scheme in SCHEMES else {}
    for matrix in architecture_of(shape).matrices(shape):
        yield matrix, chosen.get(matrix.module)


def _stored_bytes(matrix: Matrix, grid: Grid | None) -> int:
    """Bytes in the graph: numbers, scales, padding to whole blocks, and the scalars of w8a8."""
    rows, columns = matrix.rows, matrix.columns
    if grid is None:
        return 4 * rows * columns
    if grid.static_inputs:  # a scale a row
        return rows * columns + 4 * rows + 5
    return rows * -(-columns // grid.block_size) * (grid.block_size * grid.bits // 8 + 4)


def _weight_bytes(shape: Geometry, scheme: str) -> int:
    """Bytes of all arrays of the graph; every layer has those of the first."""
    one, two = (_counted(replace(shape, layers=layers), scheme) for layers in (1, 2))
    return one + (shape.layers - 1) * (two - one)


@cache
def _counted(shape: Geometry, scheme: str) -> int:
    matrices = sum(_stored_bytes(*stored) for stored in _matrices(shape, scheme))
    return matrices + 4 * sum(length for _, length in architecture_of(shape).vectors(shape))


@cache
def _graph_overhead(layers: int, scheme: str, tied: bool) -> int:
    """Bytes of model.onnx beside the weights: nodes, names and dimensions."""
    small = Geometry(layers, heads=1, head_dim=32, ffn=32, vocab=32, context=32, tied=tied)
    weights = random_weights(small, scheme, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        path = write_graph(build_graph(graph_spec(_config(small), weights.formats), weights), Path(folder))
        return path.stat().st_size - weights.nbytes


def random_weights(shape: Geometry, scheme: str, random: np.random.Generator) -> GraphWeights:
    """The arrays of a graph, drawn: those of a real export under the same names, in the same shapes and types."""
    quantized: dict[str, QuantizedTensor] = {}
    floats: dict[str, NDArray[np.generic]] = {
        name: np.full(length, 1.0 if name.endswith("weight") else 0.0, dtype=np.float32)
        for name, length in architecture_of(shape).vectors(shape)
    }
    for matrix, grid in _matrices(shape, scheme):
        if grid is None:
            size = (matrix.columns, matrix.rows) if matrix.transposed else (matrix.rows, matrix.columns)
            floats[f"{matrix.module}.weight"] = random.standard_normal(size, dtype=np.float32) * np.float32(_SPREAD)
        else:
            quantized[matrix.module] = _random_tensor(matrix, grid, random)
    return quantized_weights(quantized, floats, tied=shape.tied)


def _random_tensor(matrix: Matrix, grid: Grid, random: np.random.Generator) -> QuantizedTensor:
    rows, columns = matrix.rows, matrix.columns
    if grid.static_inputs:
        q = _random_bytes((columns, rows), random)
        scales = np.full(rows, _SPREAD / 74, dtype=np.float32)  # 74: the spread of random bytes
        return ChannelTensor(q, scales, np.asarray(0.05, dtype=np.float32), np.asarray(128, dtype=np.uint8))
    blocks = -(-columns // grid.block_size)
    q = _random_bytes((rows, blocks, grid.block_size * grid.bits // 8), random)
    spread = 2**grid.bits / 12**0.5
    scales = np.full((rows, blocks), _SPREAD / spread, dtype=np.float32)
    return BlockTensor(q, scales, columns, grid.bits, grid.block_size)


def _random_bytes(size: tuple[int, ...], random: np.random.Generator) -> NDArray[np.uint8]:
    return np.frombuffer(random.bytes(prod(size)), dtype=np.uint8).reshape(size)
