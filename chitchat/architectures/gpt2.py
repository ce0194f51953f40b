"""GPT-2: learned positions, LayerNorms, fused query-key-value, biases everywhere, GELU, matrices as Conv1D [in, out].

Radford et al., Language Models are Unsupervised Multitask Learners (2019); the modules are those of transformers'
GPT2LMHeadModel:

    transformer.wte                             [vocab, width]; embedding, and head too where that is tied
    transformer.wpe                             [positions, width]
    transformer.h.{i}.ln_1, attn.c_attn, attn.c_proj, ln_2, mlp.c_fc, mlp.c_proj
    transformer.ln_f
    lm_head                                     [vocab, width]; only where the head is not tied
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.architectures import gpt2_config
from chitchat.architectures.protocol import Architecture, Config, LinearView, Matrix
from chitchat.architectures.sublayers import Part, Projection, Role, Sublayer
from serve.geometry import Geometry

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NORMS = ("ln_1", "ln_2")
# Causal masks, which old versions stored as if they were weights.
_MASK = re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias")
# GGUF's names (llama.cpp, src/llama-arch.cpp, LLM_ARCH_GPT2): of a layer's modules, and of the others.
_GGUF_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_GGUF_OTHERS = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


class GPT2(Architecture):
    """GPT2LMHeadModel; methods without a docstring are documented in `Architecture`."""

    model_type = "gpt2"
    class_name = "GPT2LMHeadModel"
    title = "GPT-2"
    telltale = gpt2_config.TELLTALE
    gguf_type = "gpt2"
    table_name = "transformer.wte"
    wrapper_prefixes = ("model.", "gpt2.")

    # Configuration

    def claims(self, record: Config) -> bool:
        return gpt2_config.claims(record)

    def read_config(self, record: Config, where: str | Path) -> dict[str, Any]:
        return gpt2_config.read_fields(record, where)

    def geometry(self, config: "Config | GPT2Config") -> Geometry:
        """An absent `n_inner` means four times the width."""
        fields = config if isinstance(config, Mapping) else config.to_dict()
        width, heads = fields["n_embd"], fields["n_head"]
        return Geometry(
            layers=fields["n_layer"],
            heads=heads,
            head_dim=width // heads,
            ffn=fields.get("n_inner") or 4 * width,
            vocab=fields["vocab_size"],
            context=fields["n_positions"],
            width=width,
            tied=fields.get("tie_word_embeddings", True),
            architecture=self.model_type,
        )

    def config_fields(self, geometry: Geometry) -> dict[str, Any]:
        if geometry.width != geometry.heads * geometry.head_dim or geometry.kv_heads != geometry.heads:
            raise ValueError(f"{geometry}: heads of {geometry.head_dim} with {geometry.kv_heads} of keys: no GPT-2")
        return {
            "n_layer": geometry.layers,
            "n_embd": geometry.width,
            "n_head": geometry.heads,
            "n_inner": geometry.ffn,
            "vocab_size": geometry.vocab,
            "n_positions": geometry.context,
            "tie_word_embeddings": geometry.tied,
        }

    def new_config(self, geometry: Geometry, dropout: float = 0.0, **token_ids: int | None) -> "GPT2Config":
        """`n_inner` is left out for an FFN of four times the width."""
        config = super().new_config(geometry, dropout, **token_ids)
        config.n_inner = None if geometry.ffn == 4 * geometry.width else geometry.ffn
        return config

    def dropout_fields(self, share: float) -> dict[str, float]:
        return dict.fromkeys(gpt2_config.SHARES, share)

    def norm_epsilon(self, config: Config) -> float:
        return float(config["layer_norm_epsilon"])

    def refuses_layer_cut(self, config: "GPT2Config") -> str:
        """A scale that depends on the layer's number would change after a cut."""
        if not config.scale_attn_by_inverse_layer_idx:
            return ""
        return "the model scales attention by the layer's number (scale_attn_by_inverse_layer_idx)"

    # Weights by name

    def matrices(self, geometry: Geometry) -> Iterator[Matrix]:
        width, ffn = geometry.width, geometry.ffn
        yield Matrix("transformer.wte", geometry.vocab, width, table=True)
        yield Matrix("transformer.wpe", geometry.context, width, table=True)
        shapes = ((3 * width, width), (width, width), (ffn, width), (width, ffn))
        for layer in range(geometry.layers):
            for name, shape in zip(LINEARS, shapes, strict=True):
                yield Matrix(self.layer_prefix(layer) + name, *shape, transposed=True)
        if not geometry.tied:
            yield Matrix("lm_head", geometry.vocab, width, table=True)

    def vectors(self, geometry: Geometry) -> Iterator[tuple[str, int]]:
        width = geometry.width
        norms = {f"{norm}.{part}": width for norm in NORMS for part in ("weight", "bias")}
        biases = zip(LINEARS, (3 * width, width, geometry.ffn, width), strict=True)
        lengths = norms | {f"{name}.bias": length for name, length in biases}
        for layer in range(geometry.layers):
            yield from ((self.layer_prefix(layer) + name, length) for name, length in lengths.items())
        yield from ((f"transformer.ln_f.{part}", width) for part in ("weight", "bias"))

    def is_transposed(self, module: str) -> bool:
        """Conv1D matrices are transposed, tables and the head are not."""
        return module.endswith(LINEARS)

    def layer_prefix(self, layer: int) -> str:
        return f"transformer.h.{layer}."

    def rename(self, name: str) -> str:
        """`transformer.` is added if absent, and DialoGPT's head renamed."""
        if name == "lm_head.decoder.weight":
            return "lm_head.weight"
        return f"transformer.{name}" if name.startswith(("wte.", "wpe.", "h.", "ln_f.")) else name

    def is_weight(self, name: str) -> bool:
        return (name.startswith("transformer.") and not self.is_buffer(name)) or name == "lm_head.weight"

    def is_buffer(self, name: str) -> bool:
        return _MASK.fullmatch(name) is not None

    def gguf_tensor(self, name: str) -> str | None:
        parts = name.removeprefix("transformer.").split(".")
        kind = parts[-1]
        if parts[0] == "h":
            module = ".".join(parts[2:-1])
            return f"blk.{parts[1]}.{_GGUF_LAYER[module]}.{kind}" if module in _GGUF_LAYER else None
        return f"{_GGUF_OTHERS[parts[0]]}.{kind}" if parts[0] in _GGUF_OTHERS else None

    # Models

    def model_class(self) -> "type[GPT2LMHeadModel]":
        from transformers import GPT2LMHeadModel

        return GPT2LMHeadModel

    def config_class(self) -> "type[GPT2Config]":
        from transformers import GPT2Config

        return GPT2Config

    def build(
        self, config: "GPT2Config", weights: "Mapping[str, Tensor]", generation: "GenerationConfig | None" = None
    ) -> "GPT2LMHeadModel":
        """Attention is eager if the configuration scales it.

        The fused attentions of transformers ignore `scale_attn_weights` and `scale_attn_by_inverse_layer_idx`.
        """
        model = super().build(config, weights, generation)
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
            model.set_attn_implementation("eager")
        return model

    def layers(self, model: "GPT2LMHeadModel") -> "nn.ModuleList":
        layers: nn.ModuleList = model.transformer.h
        return layers

    def sublayers(self, model: "GPT2LMHeadModel", layer: int) -> tuple[Sublayer, Sublayer]:
        """Attention, then feed-forward."""
        block, name = model.transformer.h[layer], f"transformer.h.{layer}"
        heads, size = block.attn.num_heads, block.attn.head_dim
        width, ffn = heads * size, block.mlp.c_fc.weight.shape[1]
        roles: tuple[Role, ...] = ("query", "key", "value")
        fused = tuple(Part(role, index * width, size, heads) for index, role in enumerate(roles))
        attention = Sublayer(
            name=f"{name}.attn",
            kind="attention",
            norm=block.ln_1,
            body=lambda normed: block.attn(normed)[0],
            in_projs=(Projection(f"{name}.attn.c_attn", block.attn.c_attn, True, fused),),
            out_proj=Projection(f"{name}.attn.c_proj", block.attn.c_proj, True),
            heads=heads,
            kv_heads=heads,
        )
        feed_forward = Sublayer(
            name=f"{name}.mlp",
            kind="feed_forward",
            norm=block.ln_2,
            body=block.mlp,
            in_projs=(Projection(f"{name}.mlp.c_fc", block.mlp.c_fc, True, (Part("inner", 0, 1, ffn),)),),
            out_proj=Projection(f"{name}.mlp.c_proj", block.mlp.c_proj, True),
        )
        return attention, feed_forward

    def position_table(self, model: "GPT2LMHeadModel") -> "tuple[str, nn.Module]":
        return "transformer.wpe", model.transformer.wpe

    def final_norm(self, model: "GPT2LMHeadModel") -> "tuple[str, nn.Module]":
        return "transformer.ln_f", model.transformer.ln_f

    def linear_view(self, model: "GPT2LMHeadModel") -> LinearView:
        from chitchat.architectures.gpt2_linear_view import linear_view

        return linear_view(model)

    def linear_view_weights(self, view: LinearView) -> "dict[str, Tensor]":
        from chitchat.architectures.gpt2_linear_view import weights_of

        return weights_of(view)
