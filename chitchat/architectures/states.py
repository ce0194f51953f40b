"""The hidden states of a decoder of any family."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def last_hidden(model: Any, ids: "Tensor") -> "Tensor":
    """The final hidden states [batch, tokens, width], after the last norm, of a right-padded batch of any family.

    No attention mask is needed, since attention is causal, and without one the fast kernels apply. Embeddings are
    passed because transformers warns of padded ids without a mask.
    """
    embedded = model.get_input_embeddings()(ids)
    states: Tensor = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return states


def all_hidden(model: Any, ids: "Tensor") -> "tuple[Tensor, ...]":
    """The inputs of the layers, in order, then the result of `last_hidden`: [batch, tokens, width] each."""
    embedded = model.get_input_embeddings()(ids)
    found = model.base_model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
    states: tuple[Tensor, ...] = found.hidden_states
    return states
