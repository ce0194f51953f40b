"""Building a GPT2LMHeadModel from a configuration and a complete set of weights."""

import copy

from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel


def build_gpt2(
    config: GPT2Config, weights: dict[str, Tensor], generation: GenerationConfig | None = None
) -> GPT2LMHeadModel:
    """A model in eval mode with exactly these weights, its head tied as `config` says.

    `weights` is its state dict; `lm_head.weight` may be left out where the head is tied. Raises `RuntimeError` when a
    weight is missing, unknown or of another shape than `config` gives it.
    """
    model = GPT2LMHeadModel(config).eval()
    if config.tie_word_embeddings:
        weights = {**weights, "lm_head.weight": weights["transformer.wte.weight"]}
    model.load_state_dict(weights, strict=True)
    model.tie_weights()
    if generation is not None:
        model.generation_config = copy.deepcopy(generation)
    return honour_attention_scale(model)


def honour_attention_scale(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The model, with plain attention where its configuration scales attention in a way of its own.

    The fused attentions of transformers ignore `scale_attn_weights` and `scale_attn_by_inverse_layer_idx`.
    """
    if not model.config.scale_attn_weights or model.config.scale_attn_by_inverse_layer_idx:
        model.set_attn_implementation("eager")
    return model
