"""Building a graph: the family's decoder between the inputs and the outputs that all of them have.

Written with onnxscript.nn. The modules and their parameters carry the names of the checkpoint, so that the weights are
loaded by name (export/weights.py). It builds the graph; it decides no integer (that is the quantizer's work) and runs
nothing.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnxscript import GraphBuilder, nn
from transformers import PretrainedConfig

from chitchat.architectures.registry import geometry_of
from chitchat.errors import BadInput
from export.graph import gpt2
from export.graph.layers import MICROSOFT, Channels, Format
from export.graph.spec import KV_DTYPES, GraphSpec, Numbers, Step, graph_names
from export.weights import GraphWeights, check_weights

OPSET = 21
IR_VERSION = 10
# model_type -> what the family computes with, and its decoder: an onnxscript module whose call with the builder's
# operators and a `Step` gives the logits at the wanted positions and the present buffers.
FAMILIES: dict[str, tuple[Callable[[PretrainedConfig], Numbers], Callable[[GraphSpec], nn.Module]]] = {
    gpt2.MODEL_TYPE: (gpt2.read_numbers, gpt2.Decoder)
}


def graph_spec(
    config: PretrainedConfig, formats: Mapping[str, Format] | None = None, *, target: str = "cpu", kv: str = "float32"
) -> GraphSpec:
    """Read what decides the graph of a checkpoint. Raises BadInput for what has no graph."""
    _check_target(formats or {}, target, kv)
    geometry = geometry_of(config)
    read_numbers, _ = FAMILIES[geometry.architecture]
    return GraphSpec(geometry, read_numbers(config), dict(formats or {}), target, kv)


def _check_target(formats: Mapping[str, Format], target: str, kv: str) -> None:
    """Raise BadInput for a target or a cache that there is no graph for."""
    if target not in ("cpu", "cuda"):
        raise BadInput(f"--target {target}: has no graph of ours; choose cpu or cuda")
    if kv not in ("float32", "int8"):
        raise BadInput(f"--kv {kv}: there is no such cache; choose float32 or int8")
    if target == "cuda" and kv == "int8":
        raise BadInput("--kv int8: is for --target cpu; the cuda graph's cache is float16")
    if target == "cuda" and any(isinstance(form, Channels) for form in formats.values()):
        raise BadInput(
            "--target cuda: onnxruntime has no CUDA kernel for w8a8's integer products; give the float checkpoint, or "
            "one of scheme w8 or w4"
        )


def build_graph(spec: GraphSpec, weights: GraphWeights) -> ir.Model:
    """Build the model with its weights. Raises BadInput when they are not those that the geometry asks for."""
    geometry = spec.geometry
    inputs, outputs = graph_names(geometry.layers)
    _, make_decoder = FAMILIES[geometry.architecture]
    decoder = make_decoder(spec)
    check_weights(weights, {name: (tuple(p.shape), p.dtype) for name, p in decoder.named_parameters()})
    decoder.load_state_dict(weights.tensors())
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, MICROSOFT: 1}, name="decoder")
    builder = GraphBuilder(graph)
    whole, single = ir.DataType.INT64, ir.DataType.INT32
    types = {inputs[0]: ("batch", "seq"), inputs[1]: ("batch", "seq"), inputs[2]: ("batch", "n")}
    ids, positions, wanted = (builder.input(name, whole, shape) for name, shape in types.items())
    seqlens, total = builder.input(inputs[3], single, ["batch"]), builder.input(inputs[4], single, [])
    buffer = ["batch", geometry.kv_heads, geometry.context, geometry.kv_head_dim]
    kv_dtype = KV_DTYPES[spec.kv_dtype]
    past = [builder.input(name, kv_dtype, buffer) for name in inputs[5:]]
    pairs = list(zip(past[::2], past[1::2], strict=True))
    logits, present = decoder(builder.op, Step(ids, positions, wanted, seqlens, total, pairs))
    logits.type, logits.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", "n", geometry.vocab])
    builder.add_output(logits, outputs[0])
    for name, value in zip(outputs[1:], present, strict=True):
        value.type, value.shape = ir.TensorType(kv_dtype), ir.Shape(buffer)
        builder.add_output(value, name)
    for node in graph:
        node.metadata_props.clear()  # traces of the builder; the names tell as much
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="chitchat-compress")
