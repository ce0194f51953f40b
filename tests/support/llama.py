"""A second architecture, for tests alone: what the walkers must not assume, they meet in it.

Llama: RMSNorm, rotary positions, gated feed-forwards, fewer key-value heads, heads of a free size, no biases, matrices
as nn.Linear [out, in]. The modules are those of transformers' LlamaForCausalLM.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from chitchat.architectures.protocol import Architecture, LinearView, Matrix
from chitchat.architectures.sublayers import Part, Projection, Sublayer
from serve.geometry import Geometry


class Llama(Architecture):
    """`Architecture` of LlamaForCausalLM."""

    model_type = "llama"
    class_name = "LlamaForCausalLM"
    title = "Llama"
    gguf_type = "llama"
    table_name = "model.embed_tokens"

    def claims(self, record: Mapping[str, Any]) -> bool:
        return False

    def read_config(self, record: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
        return dict(record)

    def geometry(self, config: Any) -> Geometry:
        fields = config if isinstance(config, Mapping) else config.to_dict()
        return Geometry(
            layers=fields["num_hidden_layers"],
            heads=fields["num_attention_heads"],
            kv_heads=fields["num_key_value_heads"],
            head_dim=fields["head_dim"],
            width=fields["hidden_size"],
            ffn=fields["intermediate_size"],
            vocab=fields["vocab_size"],
            context=fields["max_position_embeddings"],
            tied=fields["tie_word_embeddings"],
            architecture=self.model_type,
        )

    def config_fields(self, geometry: Geometry) -> dict[str, Any]:
        return {
            "num_hidden_layers": geometry.layers,
            "num_attention_heads": geometry.heads,
            "num_key_value_heads": geometry.kv_heads,
            "head_dim": geometry.head_dim,
            "hidden_size": geometry.width,
            "intermediate_size": geometry.ffn,
            "vocab_size": geometry.vocab,
            "max_position_embeddings": geometry.context,
            "tie_word_embeddings": geometry.tied,
        }

    def dropout_fields(self, share: float) -> dict[str, float]:
        return {"attention_dropout": share}

    def norm_epsilon(self, config: Mapping[str, Any]) -> float:
        return float(config["rms_norm_eps"])

    def matrices(self, geometry: Geometry) -> Iterator[Matrix]:
        width, ffn = geometry.width, geometry.ffn
        inner, shared = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
        yield Matrix("model.embed_tokens", geometry.vocab, width, table=True)
        for layer in range(geometry.layers):
            prefix = self.layer_prefix(layer)
            yield Matrix(f"{prefix}self_attn.q_proj", inner, width)
            yield Matrix(f"{prefix}self_attn.k_proj", shared, width)
            yield Matrix(f"{prefix}self_attn.v_proj", shared, width)
            yield Matrix(f"{prefix}self_attn.o_proj", width, inner)
            yield Matrix(f"{prefix}mlp.gate_proj", ffn, width)
            yield Matrix(f"{prefix}mlp.up_proj", ffn, width)
            yield Matrix(f"{prefix}mlp.down_proj", width, ffn)
        if not geometry.tied:
            yield Matrix("lm_head", geometry.vocab, width, table=True)

    def vectors(self, geometry: Geometry) -> Iterator[tuple[str, int]]:
        for layer in range(geometry.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"{self.layer_prefix(layer)}{norm}.weight", geometry.width
        yield "model.norm.weight", geometry.width

    def is_transposed(self, module: str) -> bool:
        return False

    def layer_prefix(self, layer: int) -> str:
        return f"model.layers.{layer}."

    def rename(self, name: str) -> str:
        return name

    def is_weight(self, name: str) -> bool:
        return name.startswith("model.") or name == "lm_head.weight"

    def gguf_tensor(self, name: str) -> str | None:
        return None

    def model_class(self) -> type[LlamaForCausalLM]:
        return LlamaForCausalLM

    def config_class(self) -> type[LlamaConfig]:
        return LlamaConfig

    def layers(self, model: LlamaForCausalLM) -> nn.ModuleList:
        return model.model.layers

    def sublayers(self, model: LlamaForCausalLM, layer: int) -> tuple[Sublayer, Sublayer]:
        block, name = model.model.layers[layer], f"model.layers.{layer}"
        attn, mlp, config = block.self_attn, block.mlp, model.config
        size = attn.head_dim
        heads, kv_heads = attn.q_proj.weight.shape[0] // size, attn.k_proj.weight.shape[0] // size

        def attend(normed: Tensor) -> Tensor:
            positions = torch.arange(normed.shape[1], device=normed.device)[None]
            return attn(normed, position_embeddings=model.model.rotary_emb(normed, positions))[0]

        def linear(part: str, module: nn.Module, *parts: Part) -> Projection:
            return Projection(f"{name}.{part}", module, False, parts)

        attention = Sublayer(
            name=f"{name}.self_attn",
            kind="attention",
            norm=block.input_layernorm,
            body=attend,
            in_projs=(
                linear("self_attn.q_proj", attn.q_proj, Part("query", 0, size, heads)),
                linear("self_attn.k_proj", attn.k_proj, Part("key", 0, size, kv_heads)),
                linear("self_attn.v_proj", attn.v_proj, Part("value", 0, size, kv_heads)),
            ),
            out_proj=linear("self_attn.o_proj", attn.o_proj),
            heads=heads,
            kv_heads=kv_heads,
        )
        units = Part("inner", 0, 1, mlp.up_proj.weight.shape[0])
        feed_forward = Sublayer(
            name=f"{name}.mlp",
            kind="feed_forward",
            norm=block.post_attention_layernorm,
            body=mlp,
            in_projs=(linear("mlp.gate_proj", mlp.gate_proj, units), linear("mlp.up_proj", mlp.up_proj, units)),
            out_proj=linear("mlp.down_proj", mlp.down_proj),
        )
        assert config.num_attention_heads % config.num_key_value_heads == 0
        return attention, feed_forward

    def final_norm(self, model: LlamaForCausalLM) -> tuple[str, nn.Module]:
        return "model.norm", model.model.norm

    def linear_view(self, model: LlamaForCausalLM) -> LinearView:
        view = copy.deepcopy(model).eval()
        view.config.use_cache = False
        return LinearView(
            model=view,
            table=view.model.embed_tokens,
            head_inputs=tuple(block.self_attn.o_proj for block in view.model.layers),
            inner_outputs=tuple(block.mlp.gate_proj for block in view.model.layers),
        )

    def linear_view_weights(self, view: LinearView) -> dict[str, Tensor]:
        return dict(view.model.state_dict())


def random_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """3 layers, 48 wide, 4 heads of 16 that share 2 of keys and values, 40 units, 61 tokens, context 32, no bias."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 40,
        "vocab_size": 61,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
    }
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**shape | tokens | {"initializer_range": 0.2} | changes)).eval()
    for parameter in model.parameters():  # gains begin at one, and a forgotten one would not show
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model
