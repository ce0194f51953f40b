"""Tiny bundles of random models for the tests of the graph, the engine and the bundle."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.architectures.registry import architecture_of
from compress.calibrate.ranges import calibrate_kv, input_ranges
from compress.quantize.blockwise import quantize_blocks
from compress.quantize.channelwise import quantize_channels
from compress.quantize.checkpoint import QuantizedTensor, dequantize
from export.bundle import write_graph, write_manifest
from export.graph.builder import build_graph, graph_spec
from export.graph.spec import graph_names
from export.weights import GraphWeights, float_weights, quantized_weights, with_kv_scales
from serve.bundle import GRAPH, Bundle, Graph, Manifest
from serve.options import SamplingOptions

DIALOGUE = {
    "family": "chitchat",
    "start_ids": [1],
    "end_of_turn_id": 2,
    "pad_id": 0,
    "unk_id": None,
    "blank_ids": [1],
    "banned_ids": [0, 1],
}


def random_gpt2(seed: int = 0, **options: Any) -> GPT2LMHeadModel:
    """A random model: 2 layers, 32 wide, 4 heads, context 64, 101 tokens, spread wide enough that logits differ."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": 101}
    config = GPT2Config(**{**shape, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, **options})
    config._attn_implementation = "eager"  # the others ignore the options on attention scales
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # they begin at zero, and a forgotten one would not show
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def weights_of(model: GPT2LMHeadModel, bits: int | str | None = None, block_size: int = 32) -> GraphWeights:
    """The graph's weights of a model. With `bits` (8, 4 or "w8a8") they are quantized, and the model is given what they
    stand for."""
    if bits is None:
        return float_weights(model)
    tied = model.config.tie_word_embeddings
    ranges = input_ranges(model, [random_ids(model)]) if bits == "w8a8" else {}
    matrices: dict[str, QuantizedTensor] = {}
    floats = {}
    for name, value in model.state_dict().items():
        array, module = value.numpy(), name.removesuffix(".weight")
        if value.ndim != 2:
            floats[name] = array
        elif not (tied and name == "lm_head.weight"):
            matrix = np.ascontiguousarray(array.T) if architecture_of(model).is_transposed(module) else array
            if module in ranges:
                matrices[module] = quantize_channels(matrix, *ranges[module])
            else:
                matrices[module] = quantize_blocks(matrix, 8 if isinstance(bits, str) else bits, block_size)
            stands_for = torch.from_numpy(dequantize(matrices[module]))
            value.copy_(stands_for.T if architecture_of(model).is_transposed(module) else stands_for)
    return quantized_weights(matrices, floats, tied=tied)


def random_ids(model: GPT2LMHeadModel, seed: int = 0) -> list[int]:
    """As many ids as the context holds."""
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, size=model.config.n_positions)
    return [int(token) for token in ids]


def exported(
    model: GPT2LMHeadModel,
    folder: Path,
    bits: int | str | None = None,
    block_size: int = 32,
    kv: str = "float32",
    **changes: Any,
) -> Bundle:
    """Write a bundle of `model` into an empty folder, and open it. `changes` replace fields of the manifest."""
    weights = weights_of(model, bits, block_size)
    if kv == "int8":
        weights = with_kv_scales(weights, calibrate_kv(model, [random_ids(model)]))
    spec = graph_spec(model.config, weights.formats, kv=kv)
    write_graph(build_graph(spec, weights), folder)
    (folder / "tokenizer.json").write_text("{}")
    fields: dict[str, Any] = {
        "graphs": {"cpu": Graph(GRAPH, *graph_names(spec.geometry.layers), weights.nbytes, kv)},
        "scheme": "fp32" if bits is None else str(bits) if isinstance(bits, str) else f"w{bits}",
        "geometry": spec.geometry,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dialogue": DIALOGUE,
        "sampling": asdict(SamplingOptions()),
        "cpu_features": (),
        "lineage": (),
        "parity": {},
        "quality": {},
        "latency": {},
    }
    write_manifest(Manifest(**{**fields, **changes}), folder)
    return Bundle.open(folder)
