"""The decoder graph: GPT-2 written with onnxscript.nn, one graph for prefill and decode.

The modules and their parameters carry the names of Hugging Face's GPT2LMHeadModel, so that the weights are loaded by
name (export/weights.py). Fused operators of onnxruntime's com.microsoft domain do the work. It builds the graph; it
decides no integer (that is the quantizer's work) and runs nothing.

Two targets. `cpu` computes in float32, with a cache of float32 or, with static scales, of int8. `cuda` computes in
float16 with a float16 cache, by operators that onnxruntime's CUDA provider has kernels for.

Inputs (batch: conversations; seq: new tokens of each; n: positions that logits are wanted for):
    input_ids                    int64 [batch, seq]
    position_ids                 int64 [batch, seq]
    logits_positions             int64 [batch, n]    which of the seq tokens: the last one to chat, all of them to score
    seqlens_k                    int32 [batch]       valid tokens after this step - 1
    total_sequence_length        int32 scalar        the largest number of valid tokens after this step
    past_key_values.{i}.key      float32, int8 or float16 [batch, heads, context, kv_head_dim]; and .value
Outputs:
    logits                       float32 [batch, n, vocab]
    present.{i}.key              the buffer that is bound as past_key_values.{i}.key; and .value

The tied table is stored once: the embedding gathers rows of the same initializer that the head multiplies by.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder, nn
from transformers import GPT2Config

from chitchat.errors import BadInput
from export.layers import (
    MICROSOFT,
    Blocks,
    Channels,
    EmbeddingTable,
    Format,
    Head,
    Linear,
    Norm,
    Stream,
    pad_heads,
    trim_heads,
)
from export.weights import GraphWeights, check_weights
from serve.bundle import Geometry

OPSET = 21
IR_VERSION = 10
# GPT-2's names of its activation -> how `Activation` computes it.
ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf", "relu": "relu"}
KV_DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}


@dataclass(frozen=True)
class GraphSpec:
    """What decides the graph. `formats` has the quantized weights by module name; the others are float.

    target: "cpu" or "cuda". kv: "float32", or "int8" for a cache with static scales (`with_kv_scales`); the float
    cache of a cuda graph is float16.
    """

    geometry: Geometry
    activation: str
    epsilon: float
    attention_scales: tuple[float, ...]  # one a layer
    tied: bool
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


def graph_spec(
    config: GPT2Config, formats: Mapping[str, Format] | None = None, *, target: str = "cpu", kv: str = "float32"
) -> GraphSpec:
    """Read what decides the graph of a checkpoint. Raises BadInput for what has no graph."""
    _check_target(formats or {}, target, kv)
    width, heads = config.n_embd, config.n_head
    if width % heads:
        raise BadInput(
            f"config.json: n_embd {width} / n_head {heads} is {width / heads:g} numbers a head, not a whole number; "
            "train to another --width or --heads"
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
        formats=dict(formats or {}),
        target=target,
        kv=kv,
    )


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
        self.c_attn = Linear(width, 3 * width, spec.formats.get(f"{name}.c_attn"), True, spec.dtype)
        self.c_proj = Linear(width, width, spec.formats.get(f"{name}.c_proj"), False, spec.dtype)
        self.heads, self.scale = spec.geometry.heads, spec.attention_scales[layer]
        self.sizes = spec.geometry.head_dim, spec.geometry.kv_head_dim
        self.rounded = spec.kv == "int8"
        if self.rounded:
            shape = [1, self.heads, 1, spec.geometry.kv_head_dim]
            self.k_scale, self.v_scale = nn.Parameter(shape), nn.Parameter(shape)

    def forward(
        self, op: OpBuilder, x: ir.Value, step: "Step", layer: int, rows: ir.Value | None
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Give the update (of `rows` only, if given) and the two present buffers."""
        size, padded = self.sizes
        packed = pad_heads(op, self.c_attn(op, x), 3 * self.heads, size, padded)
        inputs = [packed, None, None, *step.past[layer], step.seqlens_k, step.total]
        options: dict[str, str | int] = {}
        if self.rounded:  # the five between are for rotary embeddings, positions, a bias and a sink
            inputs += [None, None, None, None, None, self.k_scale, self.v_scale]
            options = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        mixed, key, value = op.GroupQueryAttention(
            *inputs,
            **options,
            num_heads=self.heads,
            kv_num_heads=self.heads,
            scale=self.scale,
            do_rotary=0,
            _domain=MICROSOFT,
            _outputs=3,
        )
        mixed = trim_heads(op, mixed, self.heads, padded, size)
        return self.c_proj(op, pick(op, mixed, rows)), key, value


class FeedForward(nn.Module):
    """`mlp`: two linears around the activation, which adds the first one's bias."""

    def __init__(self, spec: GraphSpec, layer: int) -> None:
        super().__init__()
        width, ffn, name = spec.geometry.width, spec.geometry.ffn, f"transformer.h.{layer}.mlp"
        self.c_fc = Linear(width, ffn, spec.formats.get(f"{name}.c_fc"), False, spec.dtype)
        self.c_proj = Linear(ffn, width, spec.formats.get(f"{name}.c_proj"), False, spec.dtype)
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
        self.ln_1 = Norm(spec.geometry.width, spec.epsilon, spec.dtype)
        self.attn = Attention(spec, layer)
        self.ln_2 = Norm(spec.geometry.width, spec.epsilon, spec.dtype)
        self.mlp = FeedForward(spec, layer)

    def forward(
        self, op: OpBuilder, stream: Stream, step: "Step", layer: int, rows: ir.Value | None
    ) -> tuple[Stream, ir.Value, ir.Value]:
        """Give the stream (of `rows` only, if given) and the two present buffers."""
        normed, hidden = self.ln_1(op, stream)
        update, key, value = self.attn(op, normed, step, layer, rows)
        normed, hidden = self.ln_2(op, Stream(pick(op, hidden, rows), update, self.attn.c_proj.bias))
        return Stream(hidden, self.mlp(op, normed), self.mlp.c_proj.bias), key, value


def pick(op: OpBuilder, value: ir.Value, rows: ir.Value | None) -> ir.Value:
    """Rows [batch, n, 1] of a value [batch, seq, width]: [batch, n, width]; all of them when `rows` is None."""
    return value if rows is None else op.GatherND(value, rows, batch_dims=1)


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
        self.wte = EmbeddingTable(geometry.vocab, geometry.width, spec.table("transformer.wte"), spec.dtype)
        self.wpe = EmbeddingTable(geometry.context, geometry.width, spec.table("transformer.wpe"), spec.dtype)
        self.h = nn.ModuleList([Block(spec, layer) for layer in range(geometry.layers)])
        self.ln_f = Norm(geometry.width, spec.epsilon, spec.dtype)

    def forward(self, op: OpBuilder, step: Step) -> tuple[ir.Value, list[ir.Value]]:
        """Give the normed rows at `logits_positions`, [batch, n, width], and the present buffers."""
        # The sum of the two tables is the first residual: the first norm adds them.
        stream, present = Stream(self.wte(op, step.input_ids), self.wpe(op, step.position_ids), None), []
        # After its keys and values, the last layer works for the wanted rows alone, and so does the head.
        wanted, last = op.Unsqueeze(step.logits_positions, [2]), len(self.h) - 1
        for layer, block in enumerate(self.h):
            stream, *buffers = block(op, stream, step, layer, wanted if layer == last else None)
            present += buffers
        normed, _ = self.ln_f(op, stream)
        return normed, present


class Decoder(nn.Module):
    """GPT2LMHeadModel: the transformer and the head, which is the token table when tied."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        self.transformer = Transformer(spec)
        if not spec.tied:
            self.lm_head = Head(spec.geometry.vocab, spec.geometry.width, spec.table("lm_head"), spec.dtype)
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
    buffer = ["batch", geometry.heads, geometry.context, geometry.kv_head_dim]
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
