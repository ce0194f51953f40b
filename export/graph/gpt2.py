"""GPT-2's decoder, written with onnxscript.nn; fused operators of onnxruntime's com.microsoft domain do the work.

The modules and their parameters carry the names of Hugging Face's GPT2LMHeadModel. The tied table is stored once: the
embedding gathers rows of the same initializer that the head multiplies by.
"""

import onnx_ir as ir
from onnxscript import OpBuilder, nn
from transformers import GPT2Config

from chitchat.errors import BadInput
from export.graph.layers import (
    MICROSOFT,
    EmbeddingTable,
    Head,
    Linear,
    Norm,
    Stream,
    pad_heads,
    pick,
    trim_heads,
)
from export.graph.spec import GraphSpec, Numbers, Step

MODEL_TYPE = "gpt2"
# GPT-2's names of its activation -> how `FeedForward` computes it.
ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf", "relu": "relu"}


def read_numbers(config: GPT2Config) -> Numbers:
    """What the graph of a configuration computes with. Raises BadInput for what has no graph."""
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
    return Numbers(
        activation=ACTIVATIONS[config.activation_function],
        epsilon=config.layer_norm_epsilon,
        attention_scales=tuple(scale / (layer + 1 if by_layer else 1) for layer in range(config.n_layer)),
    )


class Attention(nn.Module):
    """`attn`: GroupQueryAttention on the packed output of c_attn, the cache extended in place."""

    def __init__(self, spec: GraphSpec, layer: int) -> None:
        super().__init__()
        width, name = spec.geometry.width, f"transformer.h.{layer}.attn"
        self.c_attn = Linear(width, 3 * width, spec.formats.get(f"{name}.c_attn"), True, spec.dtype)
        self.c_proj = Linear(width, width, spec.formats.get(f"{name}.c_proj"), False, spec.dtype)
        self.heads, self.scale = spec.geometry.heads, spec.numbers.attention_scales[layer]
        self.sizes = spec.geometry.head_dim, spec.geometry.kv_head_dim
        self.rounded = spec.kv == "int8"
        if self.rounded:
            shape = [1, self.heads, 1, spec.geometry.kv_head_dim]
            self.k_scale, self.v_scale = nn.Parameter(shape), nn.Parameter(shape)

    def forward(
        self, op: OpBuilder, x: ir.Value, step: Step, layer: int, rows: ir.Value | None
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
        self.activation = spec.numbers.activation

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
        self.ln_1 = Norm(spec.geometry.width, spec.numbers.epsilon, spec.dtype)
        self.attn = Attention(spec, layer)
        self.ln_2 = Norm(spec.geometry.width, spec.numbers.epsilon, spec.dtype)
        self.mlp = FeedForward(spec, layer)

    def forward(
        self, op: OpBuilder, stream: Stream, step: Step, layer: int, rows: ir.Value | None
    ) -> tuple[Stream, ir.Value, ir.Value]:
        """Give the stream (of `rows` only, if given) and the two present buffers."""
        normed, hidden = self.ln_1(op, stream)
        update, key, value = self.attn(op, normed, step, layer, rows)
        normed, hidden = self.ln_2(op, Stream(pick(op, hidden, rows), update, self.attn.c_proj.bias))
        return Stream(hidden, self.mlp(op, normed), self.mlp.c_proj.bias), key, value


class Transformer(nn.Module):
    """`transformer`: tables, layers, last norm."""

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__()
        geometry = spec.geometry
        self.wte = EmbeddingTable(geometry.vocab, geometry.width, spec.table("transformer.wte"), spec.dtype)
        self.wpe = EmbeddingTable(geometry.context, geometry.width, spec.table("transformer.wpe"), spec.dtype)
        self.h = nn.ModuleList([Block(spec, layer) for layer in range(geometry.layers)])
        self.ln_f = Norm(geometry.width, spec.numbers.epsilon, spec.dtype)

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
        if not spec.geometry.tied:
            self.lm_head = Head(spec.geometry.vocab, spec.geometry.width, spec.table("lm_head"), spec.dtype)
        self.tied = spec.geometry.tied

    def forward(self, op: OpBuilder, step: Step) -> tuple[ir.Value, list[ir.Value]]:
        normed, present = self.transformer(op, step)
        return (self.transformer.wte.multiply(op, normed) if self.tied else self.lm_head(op, normed)), present
