"""What integers cost on a trained model: held-out conversations, through the graph that ships."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.direct import Direct
from support.outliers import with_outliers
from support.rounded import rounded_checkpoint
from transformers import GPT2LMHeadModel

from chitchat.architectures.registry import geometry_of
from chitchat.checkpoint import load_model, load_tokenizer
from chitchat.data.windows import collate
from chitchat.divergence import compare_logits
from compress.calibrate.ranges import calibrate_kv, input_ranges
from compress.quantize.model import calibrate_model, checkpoint_of
from compress.quantize.schemes import grids
from export.bundle import write_graph
from export.graph.builder import build_graph, graph_spec
from export.parity import torch_logits
from export.weights import GraphWeights, float_weights, quantized_weights, with_kv_scales

Scored = tuple[list[int], np.ndarray]  # ids and torch's logits


def conversations(path: Path, tokenizer, tokens: int) -> list[list[int]]:
    """The first conversations of a corpus file as [CLS]turn[SEP]turn[SEP], cut at the context of 256."""
    found: list[list[int]] = []
    for text in path.read_text(encoding="utf-8").split("\n\n"):
        turns = [tokenizer.encode(turn, add_special_tokens=False) for turn in text.splitlines() if turn]
        ids = [tokenizer.cls_token_id, *(token for turn in turns for token in [*turn, tokenizer.sep_token_id])]
        found.append(ids[:256])
        if sum(map(len, found)) > tokens:
            return found
    return found


@pytest.fixture(scope="module")
def trained(shared: Path):
    """The trained model, held-out conversations with torch's logits, and training ones to calibrate on."""
    folder = shared / "models" / "byu-9m"
    if not folder.is_dir():
        pytest.skip(f"no trained model at {folder}")
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    calibration = conversations(folder / "train.txt", tokenizer, 4000)
    held_out = [(ids, torch_logits(model, ids)) for ids in conversations(folder / "validation.txt", tokenizer, 1200)]
    return model, tokenizer, held_out, calibration


@pytest.mark.parametrize(
    ("scheme", "kv", "kl"),
    [
        pytest.param("fp32", "int8", 5e-5, marks=pytest.mark.slow),
        pytest.param("w8", "float32", 2.5e-4, marks=pytest.mark.slow),
        ("w8", "int8", 3e-4),
        ("w8a8", "float32", 1e-3),
    ],
)
def test_integers_cost_next_to_nothing_on_held_out_conversations(
    trained, scheme: str, kv: str, kl: float, tmp_path: Path
) -> None:
    """Random models forgive scales that trained ones, with their few large channels, do not."""
    model, tokenizer, held_out, calibration = trained
    weights = float_weights(model)
    if scheme != "fp32":
        stored = rounded_checkpoint(model, tokenizer, scheme, 128, ranges=input_ranges(model, calibration))
        weights = quantized_weights(stored.matrices, stored.floats, tied=True)
    if kv == "int8":
        weights = with_kv_scales(weights, calibrate_kv(model, calibration))
    want, got = through_graph(model, weights, held_out, tmp_path, kv)
    assert 0 < compare_logits(want, got)[0].mean() < kl
    assert np.abs(loss(got, held_out) - loss(want, held_out)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "kl"), [("w8", 2.5e-4), ("w4", 1.5e-3), ("w8a8", 1e-3)])
def test_outlier_channels_are_folded_away(trained, scheme: str, kl: float, tmp_path: Path) -> None:
    """GPT-2 has LayerNorm channels a thousand times as large as others; one scale for all of them loses the rest."""
    model, tokenizer, held_out, calibration = trained
    wild, chosen = with_outliers(model), grids(geometry_of(model), scheme)
    batches = [collate([{"input_ids": ids, "labels": ids}], tokenizer.pad_token_id) for ids in calibration]
    rounded = calibrate_model(wild, chosen, "gptq", batches, calibration)
    stored = checkpoint_of(rounded, tokenizer, chosen, scheme, "gptq")
    weights = quantized_weights(stored.matrices, stored.floats, tied=True)
    want, got = through_graph(model, weights, held_out, tmp_path)
    assert 0 < compare_logits(want, got)[0].mean() < kl


def through_graph(
    model: GPT2LMHeadModel, weights: GraphWeights, held_out: list[Scored], folder: Path, kv: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [tokens, vocab] of torch and of the graph."""
    direct = Direct(write_graph(build_graph(graph_spec(model.config, weights.formats, kv=kv), weights), folder))
    want = np.concatenate([logits for _, logits in held_out])
    return want, np.concatenate([direct.logits(ids) for ids, _ in held_out])


def loss(logits: np.ndarray, held_out) -> float:
    """Nats per token."""
    rows = torch.from_numpy(logits).split([len(ids) for ids, _ in held_out])
    parts = [
        torch.nn.functional.cross_entropy(row[:-1], torch.tensor(ids[1:]))
        for row, (ids, _) in zip(rows, held_out, strict=True)
    ]
    return float(torch.stack(parts).mean())
