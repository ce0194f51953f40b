"""Tiny bundles of random models for the tests of the graph, the engine and the bundle."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from compress.quantize.blockwise import dequantize_blocks, quantize_blocks
from export.bundle import write_graph, write_manifest
from export.graph import build_graph, graph_names, graph_spec
from export.weights import GraphWeights, float_weights, quantized_weights
from serve.bundle import GRAPH, Bundle, Graph, Manifest
from serve.sampler import SamplingOptions

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


def weights_of(model: GPT2LMHeadModel, bits: int | None = None, block_size: int = 32) -> GraphWeights:
    """The graph's weights of a model. With `bits` they are quantized, and the model is given what they stand for."""
    if bits is None:
        return float_weights(model)
    tied = model.config.tie_word_embeddings
    blocks, floats = {}, {}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if value.ndim != 2:
            floats[name] = array
        elif not (tied and name == "lm_head.weight"):
            table = name.startswith(("transformer.wte", "transformer.wpe", "lm_head"))
            tensor = quantize_blocks(array if table else np.ascontiguousarray(array.T), bits, block_size)
            blocks[name.removesuffix(".weight")] = tensor
            stands_for = torch.from_numpy(dequantize_blocks(tensor))
            value.copy_(stands_for if table else stands_for.T)
    return quantized_weights(blocks, floats, tied=tied)


def exported(model: GPT2LMHeadModel, folder: Path, bits: int | None = None, **changes: Any) -> Bundle:
    """Write a bundle of `model` into an empty folder, and open it. `changes` replace fields of the manifest."""
    weights = weights_of(model, bits)
    spec = graph_spec(model.config, weights.formats)
    write_graph(build_graph(spec, weights), folder)
    (folder / "tokenizer.json").write_text("{}")
    fields: dict[str, Any] = {
        "graphs": {"cpu": Graph(GRAPH, *graph_names(spec.geometry.layers), weights.nbytes)},
        "scheme": f"w{bits}" if bits else "fp32",
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
