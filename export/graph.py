"""The decoder graph: GPT-2 written with onnxscript.nn, one graph for prefill and decode.

The modules and their parameters carry the names of Hugging Face's GPT2LMHeadModel, so that the weights are loaded by
name (export/weights.py). Fused operators of onnxruntime's com.microsoft domain do the work. It builds the graph; it
decides no integer (that is the quantizer's work) and runs nothing.

Inputs (batch: conversations; seq: new tokens of each; n: positions that logits are wanted for):
    input_ids                    int64 [batch, seq]
    position_ids                 int64 [batch, seq]
    logits_positions             int64 [batch, n]    which of the seq tokens: the last one to chat, all of them to score
    seqlens_k                    int32 [batch]       valid tokens after this step - 1
    total_sequence_length        int32 scalar        the largest number of valid tokens after this step
    past_key_values.{i}.key      float [batch, heads, context, head_dim]; and .value
Outputs:
    logits                       float [batch, n, vocab]
    present.{i}.key              the buffer that is bound as past_key_values.{i}.key; and .value

The tied table is stored once: the embedding gathers rows of the same initializer that the head multiplies by.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder, nn
from transformers import GPT2Config

from chitchat.errors import BadInput
from export.layers import MICROSOFT, Blocks, Head, Linear, Norm, Stream, Table
from export.weights import GraphWeights, check_weights
from serve.bundle import Geometry

OPSET = 21
IR_VERSION = 10
# GPT-2's names of its activation -> how `Activation` computes it.
ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf", "relu": "relu"}


@dataclass(frozen=True)
class GraphSpec:
    """What decides the graph. `blocks` has the quantized weights by module name; the others are float."""

    geometry: Geometry
    activation: str
    epsilon: float
    attention_scales: tuple[float, ...]  # one a layer
    tied: bool
    blocks: Mapping[str, Blocks]


def graph_spec(config: GPT2Config, blocks: Mapping[str, Blocks] | None = None) -> GraphSpec:
    """Read what decides the graph of a checkpoint. Raises BadInput for what has no graph."""
    width, heads = config.n_embd, config.n_head
    if width % heads or (width // heads) % 8:
        raise BadInput(
            f"config.json: n_embd {width} / n_head {heads} is {width / heads:g} numbers a head; onnxruntime's "
            "attention takes multiples of 8, so train or prune to another --width or --heads, or use --target portable"
        )
    if config.activation_function not in ACTIVATIONS:
        raise BadInput(
            f"config.json: activation_function {config.activation_function!r} has no fused operator; "
            f"known are {', '.join(sorted(ACTIVATIONS))}"
        )
    scale = (width // heads) ** -0.5 if config.scale_attn_weights else 1.0
    by_layer = config.scale_attn_by_inverse_layer_idx
    return GraphSpec(
        geometry=geometry_of(config),
        activation=ACTIVATIONS[config.activation_function],
        epsilon=config.layer_norm_epsilon,
        attention_scales=tuple(scale / (layer + 1 if by_layer else 1) for layer in range(config.n_layer)),
        tied=config.tie_word_embeddings,
        blocks=dict(blocks or {}),
    )


def geometry_of(config: GPT2Config) -> Geometry:
    """The shape of a GPT-2."""
    return Geometry(
        layers=config.n_layer,
        heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        width=config.n_embd,
        ffn=config.n_inner or 4 * config.n_embd,
        vocab=config.vocab_size,
        context=config.n_positions,
    )


def graph_names(layers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the graph's inputs and outputs, in order."""
    past = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    first = ("input_ids", "position_ids", "logits_positions", "seqlens_k", "total_sequence_length")
    return (*first, *past), ("logits", *present)


class Attention(nn.Module):
    """`attn`: GroupQueryAttention on the packed output of c_attn, the cache extended in place."""

    def __init__(self, spec: GraphSpec, layer: int) -> None:
        super().__init__()
        width, name = spec.geometry.width, f"transformer.h.{layer}.attn"
        self.c_attn = Linear(width, 3 * width, spec.blocks.get(f"{name}.c_attn"), with_bias=True)
        self.c_proj = Linear(width, width, spec.blocks.get(f"{name}.c_proj"), with_bias=False)
        self.heads, self.scale = spec.geometry.heads, spec.attention_scales[layer]

    def forward(self, op: OpBuilder, x: ir.Value, step: "Step", layer: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        mixed, key, value = op.GroupQueryAttention(
            self.c_attn(op, x),
            None,
            None,
            *step.past[layer],
            step.seqlens_k,
            step.total,
            num_heads=self.heads,
            kv_num_heads=self.heads,
            scale=self.scale,
            do_rotary=0,
            _domain=MICROSOFT,
            _outputs=3,
        )
        return self.c_proj(op, mixed), key, value


class FeedForward(nn.Module):
    """`mlp`: two linears around the activation, which adds the first one's bias."""

    def __init__(self, spec: GraphSpec, layer: int) -> None:
        super().__init__()
        width, ffn, name = spec.geometry.width, spec.geometry.ffn, f"transformer.h.{layer}.mlp"
        self.c_fc = Linear(width, ffn, spec.blocks.get(f"{name}.c_fc"), with_bias=False)
        self.c_proj = Linear(ffn, width, spec.blocks.get(f"{name}.c_proj"), with_bias=False)
        self.activation = spec.activation

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        inner = self.c_fc(op, x)
        if self.activation == "tanh":
            inner = op.FastGelu(inner, self.c_fc.bias, _domain=MICROSOFT)
        elif self.activation == "erf":
            inner = op.BiasGelu(inner, self.c_fc.bias, _domain=MICROSOFT)
        else:
            inner = op.Relu(op.Add(inner, self.c_fc.bias))
        return self.c_proj(op, inner)


class Block(nn.Module):
    """One layer: norm, attention, norm, feed forward, around the residual stream."""

    def __init__(self, spec: GraphSpec, layer: int) -> None:
        super().__init__()
        self.ln_1 = Norm(spec.geometry.width, spec.epsilon)
        self.attn = Attention(spec, layer)
        self.ln_2 = Norm(spec.geometry.width, spec.epsilon)
        self.mlp = FeedForward(spec, layer)

    def forward(self, op: OpBuilder, stream: Stream, step: "Step", layer: int) -> tuple[Stream, ir.Value, ir.Value]:
        normed, hidden = self.ln_1(op, stream)
        update, key, value = self.attn(op, normed, step, layer)
        normed, hidden = self.ln_2(op, Stream(hidden, update, self.attn.c_proj.bias))
        return Stream(hidden, self.mlp(op, normed), self.mlp.c_proj.bias), key, value


@dataclass(frozen=True)
class Step:
    """The inputs of a run, as values of the graph; shapes stand in the module's docstring."""

    input_ids: ir.Value
    position_ids: ir.Value
    logits_positions: ir.Value
    seqlens_k: ir.Value
    total: ir.Value
    past: list[tuple[ir.Value, ir.Value]]


class Transformer(nn.Module):
    """`transformer`: tables, layers, last norm."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        geometry = spec.geometry
        self.wte = Table(geometry.vocab, geometry.width, spec.blocks.get("transformer.wte"))
        self.wpe = Table(geometry.context, geometry.width, spec.blocks.get("transformer.wpe"))
        self.h = nn.ModuleList([Block(spec, layer) for layer in range(geometry.layers)])
        self.ln_f = Norm(geometry.width, spec.epsilon)

    def forward(self, op: OpBuilder, step: Step) -> tuple[ir.Value, list[ir.Value]]:
        """Give the normed rows at `logits_positions`, [batch, n, width], and the present buffers."""
        # The sum of the two tables is the first residual: the first norm adds them.
        stream, present = Stream(self.wte(op, step.input_ids), self.wpe(op, step.position_ids), None), []
        for layer, block in enumerate(self.h):
            stream, *buffers = block(op, stream, step, layer)
            present += buffers
        # Only the wanted rows go on: the head is the largest product of a small model.
        rows = op.Unsqueeze(step.logits_positions, [2])
        hidden, update = (op.GatherND(value, rows, batch_dims=1) for value in (stream.hidden, stream.update))
        normed, _ = self.ln_f(op, Stream(hidden, update, stream.bias))
        return normed, present


class Decoder(nn.Module):
    """GPT2LMHeadModel: the transformer and the head, which is the token table when tied."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        self.transformer = Transformer(spec)
        if not spec.tied:
            self.lm_head = Head(spec.geometry.vocab, spec.geometry.width, spec.blocks.get("lm_head"))
        self.tied = spec.tied

    def forward(self, op: OpBuilder, step: Step) -> tuple[ir.Value, list[ir.Value]]:
        normed, present = self.transformer(op, step)
        return (self.transformer.wte.multiply(op, normed) if self.tied else self.lm_head(op, normed)), present


def build_graph(spec: GraphSpec, weights: GraphWeights) -> ir.Model:
    """Build the model with its weights. Raises BadInput when they are not those that the geometry asks for."""
    inputs, outputs = graph_names(spec.geometry.layers)
    decoder = Decoder(spec)
    check_weights(weights, {name: (tuple(p.shape), p.dtype) for name, p in decoder.named_parameters()})
    decoder.load_state_dict(weights.tensors())
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, MICROSOFT: 1}, name="decoder")
    builder = GraphBuilder(graph)
    whole, single = ir.DataType.INT64, ir.DataType.INT32
    types = {inputs[0]: ("batch", "seq"), inputs[1]: ("batch", "seq"), inputs[2]: ("batch", "n")}
    ids, positions, wanted = (builder.input(name, whole, shape) for name, shape in types.items())
    seqlens, total = builder.input(inputs[3], single, ["batch"]), builder.input(inputs[4], single, [])
    geometry = spec.geometry
    buffer = ["batch", geometry.heads, geometry.context, geometry.head_dim]
    past = [builder.input(name, ir.DataType.FLOAT, buffer) for name in inputs[5:]]
    pairs = list(zip(past[::2], past[1::2], strict=True))
    logits, present = decoder(builder.op, Step(ids, positions, wanted, seqlens, total, pairs))
    shapes = [["batch", "n", geometry.vocab], *[buffer] * len(present)]
    for name, value, shape in zip(outputs, [logits, *present], shapes, strict=True):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        builder.add_output(value, name)
    for node in graph:
        node.metadata_props.clear()  # traces of the builder; the names tell as much
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="chitchat-compress")
