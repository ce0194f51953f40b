"""A quantized checkpoint: an ordinary GPT-2 folder whose weight matrices are integers and scales.

In `model.quantized.safetensors`, for every weight matrix and table the name of its module with `.qweight` (uint8) and
`.scales` (float32), laid out as `blockwise.BlockTensor` says: [N, K] is [out, in], so that Conv1D's matrices stand
transposed. LayerNorms and biases stay float32 under their own names. Modules:

    transformer.wte                             [vocab, width]; embedding, and head too where that is tied
    transformer.wpe                             [positions, width]
    transformer.h.{i}.attn.c_attn | attn.c_proj | mlp.c_fc | mlp.c_proj
    lm_head                                     [vocab, width]; only where the head is not tied

`config.json` has `quantization_config`: {"quant_method": "compress", "scheme", "method", "bits", "table_bits",
"block_size", "symmetric": true}. The bits of each tensor follow from its shape. The exporter copies these integers;
torch runs a model of what they stand for. transformers finds no weights in the folder and refuses it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from chitchat.checkpoint import load_tokenizer, read_config
from chitchat.errors import BadInput
from chitchat.lineage import Stage, write_lineage
from compress.assemble import build_gpt2
from compress.quantize.blockwise import BlockTensor, dequantize_blocks

# Not `model.safetensors`: transformers only warns of a method that it does not know, and would then find none of the
# names that it looks for and go on with random weights. So it finds no weights and says so.
WEIGHTS = "model.quantized.safetensors"
QUANT_METHOD = "compress"
_LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """config: `config.json` as a dict. blocks: by module name. floats: float32, by parameter name."""

    config: dict[str, Any]
    blocks: dict[str, BlockTensor]
    floats: dict[str, NDArray[np.float32]]
    tokenizer: PreTrainedTokenizerFast

    def dequantized_model(self) -> GPT2LMHeadModel:
        """The float32 model that the integers stand for, in eval mode; a tied head is tied to the same table."""
        config = GPT2Config.from_dict({k: v for k, v in self.config.items() if k != "quantization_config"})
        weights = {name: torch.from_numpy(array.copy()) for name, array in self.floats.items()}
        for name, tensor in self.blocks.items():
            matrix = torch.from_numpy(dequantize_blocks(tensor))
            weights[f"{name}.weight"] = matrix.T.contiguous() if is_conv1d(name) else matrix
        return build_gpt2(config, weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, scales and padding included."""
        return sum(t.nbytes for t in self.blocks.values()) + sum(a.nbytes for a in self.floats.values())


def matrix_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """`(module, (N, K))` of every weight matrix and table of a GPT-2, in the model's order."""
    width = config["n_embd"]
    ffn = config.get("n_inner") or 4 * width
    yield "transformer.wte", (config["vocab_size"], width)
    yield "transformer.wpe", (config["n_positions"], width)
    shapes = ((3 * width, width), (width, width), (ffn, width), (width, ffn))
    for layer in range(config["n_layer"]):
        yield from ((f"transformer.h.{layer}.{name}", shape) for name, shape in zip(_LINEARS, shapes, strict=True))
    if not config.get("tie_word_embeddings", True):
        yield "lm_head", (config["vocab_size"], width)


def is_conv1d(module: str) -> bool:
    """Whether transformers keeps this module's weight as [in, out]."""
    return module.endswith(_LINEARS)


def save_quantized(
    folder: Path, checkpoint: QuantizedCheckpoint, stage: Stage, parent: str | Path | None = None
) -> None:
    """Write a quantized checkpoint and its lineage into `folder`, which exists and is empty (a staging folder)."""
    tensors: dict[str, NDArray[Any]] = dict(checkpoint.floats)
    for name, tensor in checkpoint.blocks.items():
        tensors |= {f"{name}.qweight": tensor.q, f"{name}.scales": tensor.scales}
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )
    config = {**checkpoint.config, "architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    checkpoint.tokenizer.save_pretrained(folder)
    known = Path(parent) if parent is not None and Path(parent).is_dir() else None
    write_lineage(folder, stage, parent=known)


def load_quantized(folder: str | Path) -> QuantizedCheckpoint:
    """Read what `save_quantized` wrote.

    Raises `BadInput` for a folder that is missing, incomplete, altered, not quantized, or quantized by other tools.
    """
    config = read_config(folder)
    quantization = config.get("quantization_config")
    if not quantization:
        raise BadInput(f"{folder}: is not quantized; make it so with `compress quantize`")
    if quantization.get("quant_method") != QUANT_METHOD:
        raise BadInput(f"{folder}: was quantized by {quantization.get('quant_method')!r}; give the float checkpoint")
    try:
        tensors = load_file(Path(folder) / WEIGHTS)
    except Exception as error:  # safetensors raises its own, OSError and ValueError
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{folder}/{WEIGHTS}: cannot be read ({reason}); make the folder again") from error
    blocks = {}
    for name, (rows, columns) in matrix_shapes(config):
        try:
            q, scales = tensors.pop(f"{name}.qweight"), tensors.pop(f"{name}.scales")
            bits = q.shape[2] * 8 // quantization["block_size"]
            blocks[name] = BlockTensor(q, scales, columns, bits, quantization["block_size"])
        except (KeyError, IndexError, ValueError) as error:
            raise BadInput(f"{folder}/{WEIGHTS}: {name} does not fit config.json ({error}); make it again") from error
        if q.shape[0] != rows:
            raise BadInput(f"{folder}/{WEIGHTS}: {name} has {q.shape[0]} rows, config.json says {rows}; make it again")
    return QuantizedCheckpoint(config, blocks, tensors, load_tokenizer(folder))
