"""A quantized checkpoint: an ordinary folder whose weight matrices are integers and scales.

In `model.quantized.safetensors`, for every weight matrix and table the name of its module with `.qweight` (uint8) and
`.scales` (float32), laid out as `blockwise.BlockTensor` says: [N, K] is [out, in], so that matrices which a
model keeps as [in, out] stand transposed. The linear layers of scheme w8a8 are laid out as `channelwise.ChannelTensor`
says, with `.input_scale` and `.input_zero_point` beside them. Norms and biases stay float32 under their own names.
Which modules there are, and in which order, is the architecture's (`Architecture.matrices`); a tied head is its table.

`config.json` has `quantization_config`: {"quant_method": "compress", "scheme", "method", "bits", "table_bits",
"block_size", "symmetric": true}; "block_sizes" {module: size} for those that differ; in w8a8 "activation_bits" and
"kernel", the product that the integers are exact on. The bits of each tensor follow from its shape. The exporter copies
these integers; torch runs a model of what they stand for (weights only: the rounding of activations is the graph's and
is measured there). transformers finds no weights in the folder and refuses it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chitchat.architectures.registry import architecture_of, geometry_of
from chitchat.checkpoint import load_tokenizer, read_config
from chitchat.errors import BadInput
from chitchat.formats.tokenizer_files import save_tokenizer
from chitchat.lineage import Stage, write_lineage
from compress.quantize.blockwise import BlockTensor, dequantize_blocks
from compress.quantize.channelwise import ChannelTensor, dequantize_channels

# Not `model.safetensors`: transformers only warns of a method that it does not know, and would then find none of the
# names that it looks for and go on with random weights. So it finds no weights and says so.
WEIGHTS = "model.quantized.safetensors"
QUANT_METHOD = "compress"

QuantizedTensor = BlockTensor | ChannelTensor


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """config: `config.json` as a dict. matrices: by module name. floats: float32, by parameter name."""

    config: dict[str, Any]
    matrices: dict[str, QuantizedTensor]
    floats: dict[str, NDArray[np.float32]]
    tokenizer: PreTrainedTokenizerFast

    def dequantized_model(self) -> PreTrainedModel:
        """The float32 model that the integers stand for, in eval mode; a tied head is tied to the same table.

        Activations are not rounded in it: of a w8a8 checkpoint it shows the weights' share of the loss.
        """
        architecture = architecture_of(self.config)
        weights = {name: torch.from_numpy(array.copy()) for name, array in self.floats.items()}
        for name, tensor in self.matrices.items():
            matrix = torch.from_numpy(dequantize(tensor))
            weights[f"{name}.weight"] = matrix.T.contiguous() if architecture.is_transposed(name) else matrix
        return architecture.build(architecture.to_config(self.config), weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, scales and padding included."""
        return sum(t.nbytes for t in self.matrices.values()) + sum(a.nbytes for a in self.floats.values())


def dequantize(tensor: QuantizedTensor) -> NDArray[np.float32]:
    """The float32 `[N, K]` matrix that a tensor of either layout stands for."""
    return dequantize_blocks(tensor) if isinstance(tensor, BlockTensor) else dequantize_channels(tensor)


def save_quantized(
    folder: Path, checkpoint: QuantizedCheckpoint, stage: Stage, parent: str | Path | None = None
) -> None:
    """Write a quantized checkpoint and its lineage into `folder`, which exists and is empty (a staging folder)."""
    tensors: dict[str, NDArray[Any]] = dict(checkpoint.floats)
    for name, tensor in checkpoint.matrices.items():
        tensors |= named_arrays(name, tensor)
    # safetensors wants rows to be contiguous; np.ascontiguousarray would make a scalar an array of one.
    rows = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    save_file(rows, folder / WEIGHTS, {"format": "pt"})
    config = {**checkpoint.config, "architectures": [architecture_of(checkpoint.config).class_name]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tokenizer(checkpoint.tokenizer, folder)
    known = Path(parent) if parent is not None and Path(parent).is_dir() else None
    write_lineage(folder, stage, parent=known)


def load_quantized(folder: str | Path, tokenizer: PreTrainedTokenizerFast | None = None) -> QuantizedCheckpoint:
    """Read what `save_quantized` wrote; the `tokenizer` too, unless it is open already.

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
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadInput(f"{folder}/{WEIGHTS}: {name} has numbers that are NaN or infinite; make the folder again")
    matrices = {}
    for matrix in architecture_of(config).matrices(geometry_of(config)):
        name, shape = matrix.module, (matrix.rows, matrix.columns)
        try:
            matrices[name] = _take(tensors, name, matrix.columns, quantization)
        except (KeyError, IndexError, ValueError) as error:
            raise BadInput(f"{folder}/{WEIGHTS}: {name} does not fit config.json ({error}); make it again") from error
        if matrices[name].shape != shape:
            raise BadInput(
                f"{folder}/{WEIGHTS}: {name} is {list(matrices[name].shape)}, config.json says {list(shape)}; "
                "make it again"
            )
    return QuantizedCheckpoint(config, matrices, tensors, load_tokenizer(folder) if tokenizer is None else tokenizer)


def named_arrays(module: str, tensor: QuantizedTensor) -> dict[str, NDArray[Any]]:
    """The arrays of a tensor under the names that the checkpoint and the graph have for them."""
    arrays: dict[str, NDArray[Any]] = {f"{module}.qweight": tensor.q, f"{module}.scales": tensor.scales}
    if isinstance(tensor, ChannelTensor):
        arrays |= {f"{module}.input_scale": tensor.input_scale, f"{module}.input_zero_point": tensor.input_zero_point}
    return arrays


def _take(
    tensors: dict[str, NDArray[Any]], module: str, columns: int, quantization: Mapping[str, Any]
) -> QuantizedTensor:
    """Remove the arrays of one module from `tensors`; the dimensions of `qweight` tell its layout.

    Raises KeyError, IndexError or ValueError for arrays that are missing or of no layout.
    """
    q, scales = tensors.pop(f"{module}.qweight"), tensors.pop(f"{module}.scales")
    if q.ndim == 2:
        return ChannelTensor(q, scales, tensors.pop(f"{module}.input_scale"), tensors.pop(f"{module}.input_zero_point"))
    block_size = quantization.get("block_sizes", {}).get(module, quantization["block_size"])
    return BlockTensor(q, scales, columns, q.shape[2] * 8 // block_size, block_size)
