"""Models that are built from weights compute what their configuration says."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.assemble import build_gpt2


def test_attention_scales_survive_a_model_built_from_weights(tiny_model: GPT2LMHeadModel) -> None:
    """A de-quantized model left them out, so quantizing such a checkpoint looked like a great loss."""
    ids = torch.arange(20)[None]
    fields = {**tiny_model.config.to_dict(), "scale_attn_by_inverse_layer_idx": True}
    built = build_gpt2(GPT2Config.from_dict(fields), tiny_model.state_dict())
    eager = GPT2LMHeadModel._from_config(GPT2Config.from_dict(fields), attn_implementation="eager").eval()
    eager.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        assert torch.equal(built(ids).logits, eager(ids).logits)
        assert not torch.allclose(built(ids).logits, tiny_model(ids).logits, atol=1e-6)
