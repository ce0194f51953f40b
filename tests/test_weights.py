"""The table from checkpoint names to graph parameters."""

from pathlib import Path

import numpy as np
import pytest
from support.bundles import random_gpt2, weights_of

from chitchat.errors import BadInput
from export.bundle import write_graph
from export.graph.builder import build_graph, graph_spec
from export.parity import changed_weights
from export.weights import GraphWeights


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_file_holds_every_tensor_bit_for_bit(bits: int | None, tmp_path: Path) -> None:
    """An exporter that quantizes again, or stores float16, ships another model than was measured."""
    model = random_gpt2(tie_word_embeddings=False)
    weights = weights_of(model, bits)
    path = write_graph(build_graph(graph_spec(model.config, weights.formats), weights), tmp_path)
    assert changed_weights(path, weights) == 0


def test_one_changed_integer_is_seen(tmp_path: Path) -> None:
    """The comparison of integers must not be a comparison of shapes."""
    model = random_gpt2()
    weights = weights_of(model, 8)
    path = write_graph(build_graph(graph_spec(model.config, weights.formats), weights), tmp_path)
    other = weights.arrays["transformer.h.1.mlp.c_proj.qweight"].copy()
    other[3, 1, 5] ^= 1
    arrays = {**weights.arrays, "transformer.h.1.mlp.c_proj.qweight": other}
    assert changed_weights(path, GraphWeights(arrays, weights.formats)) == 1


def test_a_tied_head_is_no_weight_of_its_own() -> None:
    """State dicts list a tied head as well; taken, the table is stored twice."""
    assert "lm_head.weight" not in weights_of(random_gpt2()).arrays
    assert "lm_head.weight" in weights_of(random_gpt2(tie_word_embeddings=False)).arrays


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda arrays: arrays.pop("transformer.ln_f.bias"), r"missing \['transformer.ln_f.bias'\]"),
        (lambda arrays: arrays.update(extra=np.zeros(3, np.float32)), r"left over \['extra'\]"),
        (
            lambda arrays: arrays.update({"transformer.ln_f.bias": np.zeros(31, np.float32)}),
            r"ln_f.bias is float32\[31\]",
        ),
        (lambda arrays: arrays.update({"transformer.ln_f.bias": np.zeros(32)}), r"ln_f.bias is float64\[32\]"),
    ],
)
def test_tensors_that_do_not_fit_the_configuration_are_named(damage, message: str) -> None:
    """The builder would broadcast or fail deep inside, without saying which tensor."""
    model = random_gpt2()
    weights = weights_of(model)
    damage(weights.arrays)
    with pytest.raises(BadInput, match=message):
        build_graph(graph_spec(model.config), weights)
