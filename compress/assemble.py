"""Building a GPT2LMHeadModel from a configuration and a complete set of weights."""

import copy

from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from chitchat.checkpoint import honour_attention_scale


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
