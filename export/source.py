"""What is exported: a float or quantized checkpoint, opened and checked once."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chitchat.checkpoint import load_model, read_config
from chitchat.data.dataset import ChatData
from chitchat.dialogue import Dialogue, dialogue_of_model, open_dialogue
from chitchat.tokenizer import tokenizer_of
from compress.quantize.checkpoint import load_quantized
from export.weights import GraphWeights, float_weights, quantized_weights


@dataclass(frozen=True)
class Source:
    """A checkpoint that is to be exported. `model` is in float32: of a quantized one, what its integers stand for.

    `kernel` is the integer product that a w8a8 checkpoint's integers were made for ("u8u8"), "" for the others.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    dialogue: Dialogue
    scheme: str
    weights: GraphWeights
    kernel: str = ""

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def open_source(
    checkpoint: str, chat: ChatData | None, family: str | None = None, tokenizer_option: str | None = None
) -> Source:
    """Load a float or quantized checkpoint. Raises BadInput when the data set was made with another tokenizer."""
    config, kernel = read_config(checkpoint), ""
    tokenizer = tokenizer_of(checkpoint, tokenizer_option, chat.tokenizer if chat else None)
    if "quantization_config" in config:
        stored = load_quantized(checkpoint, tokenizer)
        model = stored.dequantized_model()
        scheme, kernel = str(config["quantization_config"]["scheme"]), config["quantization_config"].get("kernel", "")
        weights = quantized_weights(stored.matrices, stored.floats, tied=model.config.tie_word_embeddings)
    else:
        model, scheme = load_model(checkpoint), "fp32"
        weights = float_weights(model)
    if chat is not None:
        chat.check_tokenizer(tokenizer, tokenizer_option or checkpoint)
    dialogue = open_dialogue(tokenizer, checkpoint, family) if family or not chat else chat.dialogue
    dialogue = dialogue_of_model(dialogue, tokenizer, config["vocab_size"], checkpoint)
    return Source(checkpoint, model, tokenizer, dialogue, scheme, weights, kernel)
