"""GPT-2: learned positions, LayerNorms, fused query-key-value, biases everywhere, GELU, matrices as Conv1D [in, out].

Radford et al., Language Models are Unsupervised Multitask Learners (2019); the modules are those of transformers'
GPT2LMHeadModel.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from chitchat.architectures.protocol import Columns, Projection, Sublayer

LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class GPT2:
    """`Architecture` of GPT2LMHeadModel."""

    model_type = "gpt2"

    def layers(self, model: GPT2LMHeadModel) -> Sequence[nn.Module]:
        """See `Architecture.layers`."""
        layers: Sequence[nn.Module] = model.transformer.h
        return layers

    def sublayers(self, model: GPT2LMHeadModel, layer: int) -> tuple[Sublayer, Sublayer]:
        """See `Architecture.sublayers`: attention, then feed-forward."""
        block, name = model.transformer.h[layer], f"transformer.h.{layer}"
        heads, width = block.attn.num_heads, block.attn.c_attn.weight.shape[0]
        fused = Projection(f"{name}.attn.c_attn", block.attn.c_attn, transposed=True)
        values = Columns(fused, slice(fused.weight.shape[1] // 3 * 2, None))
        assert fused.weight.shape[1] == 3 * width
        attention = Sublayer(
            name=f"{name}.attn",
            kind="attention",
            norm=block.ln_1,
            body=lambda normed: block.attn(normed)[0],
            in_projs=(fused,),
            out_proj=Projection(f"{name}.attn.c_proj", block.attn.c_proj, transposed=True),
            linear_value=values,
            heads=heads,
            kv_heads=heads,
        )
        feed_forward = Sublayer(
            name=f"{name}.mlp",
            kind="feed_forward",
            norm=block.ln_2,
            body=block.mlp,
            in_projs=(Projection(f"{name}.mlp.c_fc", block.mlp.c_fc, transposed=True),),
            out_proj=Projection(f"{name}.mlp.c_proj", block.mlp.c_proj, transposed=True),
        )
        return attention, feed_forward

    def token_table(self, model: GPT2LMHeadModel) -> tuple[str, nn.Module]:
        """See `Architecture.token_table`."""
        return "transformer.wte", model.transformer.wte

    def position_table(self, model: GPT2LMHeadModel) -> tuple[str, nn.Module]:
        """See `Architecture.position_table`."""
        return "transformer.wpe", model.transformer.wpe

    def final_norm(self, model: GPT2LMHeadModel) -> tuple[str, nn.Module]:
        """See `Architecture.final_norm`."""
        return "transformer.ln_f", model.transformer.ln_f

    def head(self, model: GPT2LMHeadModel) -> tuple[str, nn.Module]:
        """See `Architecture.head`."""
        return "lm_head", model.lm_head

    def embed(self, model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
        """See `Architecture.embed`: the sum of token and position embeddings."""
        stream: Tensor = model.transformer.wte(ids) + model.transformer.wpe.weight[: ids.shape[1]]
        return stream

    def matrix_shapes(self, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
        """See `Architecture.matrix_shapes`."""
        width = config["n_embd"]
        ffn = config.get("n_inner") or 4 * width
        yield "transformer.wte", (config["vocab_size"], width)
        yield "transformer.wpe", (config["n_positions"], width)
        shapes = ((3 * width, width), (width, width), (ffn, width), (width, ffn))
        for layer in range(config["n_layer"]):
            yield from ((f"transformer.h.{layer}.{name}", shape) for name, shape in zip(LINEARS, shapes, strict=True))
        if not config.get("tie_word_embeddings", True):
            yield "lm_head", (config["vocab_size"], width)

    def is_transposed(self, module: str) -> bool:
        """See `Architecture.is_transposed`: Conv1D matrices are, tables and the head are not."""
        return module.endswith(LINEARS)
