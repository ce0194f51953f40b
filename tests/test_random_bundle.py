"""Bundles of random weights: the same graph, the same bytes as a trained model's."""

import math
from pathlib import Path

import numpy as np
import pytest
from support.bundles import random_gpt2, random_ids
from support.families import tiny_family
from support.rounded import rounded_checkpoint

from bench.cost.random_bundle import MANIFEST_BYTES, bundle_bytes, random_weights, write_random_bundle
from chitchat.architectures.registry import count_parameters, geometry_of
from chitchat.checkpoint import load_tokenizer, read_config
from compress.calibrate.ranges import input_ranges
from compress.quantize.schemes import SCHEMES
from export.weights import GraphWeights, float_weights, quantized_weights
from serve.bundle import Bundle
from serve.engine import Engine
from serve.geometry import Geometry

# Rows that blocks of 128 do not divide, an FFN that none divides, an odd vocabulary.
ODD = Geometry(layers=3, heads=3, head_dim=32, ffn=90, vocab=301, context=48)
SHAPES = [ODD, Geometry(layers=1, heads=2, head_dim=64, ffn=512, vocab=300, context=64, tied=False)]
EVERY = ("fp32", *SCHEMES)


def _real_weights(shape: Geometry, scheme: str, data: Path) -> GraphWeights:
    """What `compress quantize` and `compress export` make of a model of the shape."""
    model = random_gpt2(
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        n_inner=shape.ffn,
        vocab_size=shape.vocab,
        n_positions=shape.context,
        tie_word_embeddings=shape.tied,
    )
    if scheme == "fp32":
        return float_weights(model)
    ranges = input_ranges(model, [random_ids(model)]) if SCHEMES[scheme].static_inputs else None
    rounded = rounded_checkpoint(model, load_tokenizer(data), scheme, ranges=ranges)
    return quantized_weights(rounded.matrices, rounded.floats, tied=shape.tied)


@pytest.mark.parametrize("scheme", EVERY)
@pytest.mark.parametrize("shape", SHAPES, ids=["odd", "untied"])
def test_the_arrays_are_those_of_a_real_export(shape: Geometry, scheme: str, tiny_data: Path) -> None:
    """A shape was timed with other blocks, a padded matrix or without its biases, and came out too fast."""
    drawn, real = random_weights(shape, scheme, np.random.default_rng(0)), _real_weights(shape, scheme, tiny_data)
    assert drawn.formats == real.formats
    layout = {name: (array.shape, array.dtype) for name, array in real.arrays.items()}
    assert {name: (array.shape, array.dtype) for name, array in drawn.arrays.items()} == layout
    assert drawn.nbytes == real.nbytes


@pytest.mark.parametrize("scheme", EVERY)
@pytest.mark.parametrize("shape", SHAPES, ids=["odd", "untied"])
def test_the_predicted_bytes_are_those_that_are_written(shape: Geometry, scheme: str, tmp_path: Path) -> None:
    """A size budget that is missed by the scales of the blocks: 3 % at 8 bits, 12 % at 4."""
    write_random_bundle(shape, scheme, tmp_path)
    written = sum(path.stat().st_size for path in tmp_path.glob("model.onnx*"))
    predicted = bundle_bytes(shape, scheme, tokenizer_bytes=0) - MANIFEST_BYTES
    assert predicted == pytest.approx(written, abs=40 * shape.layers + 100)


def test_the_prediction_holds_for_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Above 50 MB the weights lie beside the graph, aligned to pages."""
    shape = Geometry(layers=2, heads=10, head_dim=64, ffn=640, vocab=17_000, context=64)
    write_random_bundle(shape, "fp32", tmp_path)
    assert (tmp_path / "model.onnx.data").is_file()
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert bundle_bytes(shape, "fp32", tokenizer_bytes=2) == pytest.approx(written, rel=2e-3)


def test_the_prediction_is_the_size_of_a_bundle_that_was_made_step_by_step(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_data: Path
) -> None:
    """The plan promised another size than `compress export` then wrote."""
    bundle = tiny_family(tmp_path_factory, tiny_checkpoint, tiny_data)["bundle-w8"]
    shape = geometry_of(read_config(str(tiny_checkpoint)))
    predicted = bundle_bytes(shape, "w8", (bundle / "tokenizer.json").stat().st_size)
    written = sum(path.stat().st_size for path in bundle.iterdir())
    assert predicted == pytest.approx(written, abs=4000), "bundle.json is estimated, the rest is not"


def test_the_engine_runs_what_is_written_and_its_logits_are_numbers(tmp_path: Path) -> None:
    """Random scales that overflow end in NaN, and a kernel that meets them takes another path."""
    for scheme in EVERY:
        folder = tmp_path / scheme
        folder.mkdir()
        write_random_bundle(ODD, scheme, folder)
        bundle = Bundle.open(folder)
        logits = Engine(bundle, threads=1).logits(list(range(40)))
        assert np.isfinite(logits).all()
        assert logits.std() > 1e-3
        assert bundle.geometry.ffn == ODD.ffn
        assert bundle.manifest.parameters == count_parameters(ODD)


def test_more_of_anything_weighs_more() -> None:
    """Layers are counted once and multiplied; a wrong factor shows where two shapes should differ by one layer."""
    sizes = [bundle_bytes(Geometry(layers, 12, 64, 3072, 13_317, 300), "w8", 0) for layers in range(1, 13)]
    steps = np.diff(sizes)
    assert (steps == steps[0]).all()
    layer = 12 * 768 * 768  # weights of a layer's matrices, a byte each
    assert math.isclose(steps[0], layer * (1 + 4 / 128), rel_tol=0.01)
