"""GPT-2 in numpy and float64, without a cache: what every faster way to its logits must give."""

import numpy as np
import numpy.typing as npt
from transformers import GPT2LMHeadModel

Floats = npt.NDArray[np.float64]


class NumpyGPT2:
    """The function of a GPT2LMHeadModel (GELU of the tanh form, no attention scales by layer), from its weights."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        self.weights = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
        self.layers, self.heads = model.config.n_layer, model.config.n_head
        self.epsilon = model.config.layer_norm_epsilon

    def logits(self, ids: list[int]) -> Floats:
        """Logits [n, vocab] after each of `ids`."""
        get = self.weights
        stream = get["transformer.wte.weight"][ids] + get["transformer.wpe.weight"][: len(ids)]
        for layer in range(self.layers):
            name = f"transformer.h.{layer}"
            stream = stream + self.attention(f"{name}.attn", self.norm(f"{name}.ln_1", stream))
            inner = self.linear(f"{name}.mlp.c_fc", self.norm(f"{name}.ln_2", stream))
            inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
            stream = stream + self.linear(f"{name}.mlp.c_proj", inner)
        return self.norm("transformer.ln_f", stream) @ get["lm_head.weight"].T

    def attention(self, name: str, stream: Floats) -> Floats:
        """Causal attention, row by row and head by head."""
        query, key, value = np.split(self.linear(f"{name}.c_attn", stream), 3, axis=1)
        mixed, size = np.zeros_like(stream), stream.shape[1] // self.heads
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            for row in range(len(stream)):
                scores = key[: row + 1, part] @ query[row, part] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                mixed[row, part] = weights @ value[: row + 1, part] / weights.sum()
        return self.linear(f"{name}.c_proj", mixed)

    def linear(self, name: str, stream: Floats) -> Floats:
        """A Conv1D: [n, in] to [n, out]."""
        return stream @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def norm(self, name: str, stream: Floats) -> Floats:
        """A LayerNorm over the last axis."""
        centred = stream - stream.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + self.epsilon)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
