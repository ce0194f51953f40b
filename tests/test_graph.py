"""The decoder graph: its shape on disk, odd geometries, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from support.bundles import exported, random_gpt2, random_ids, weights_of
from support.direct import Direct
from transformers import GPT2Config

from chitchat.errors import BadInput
from compress.calibrate.ranges import calibrate_kv
from compress.quantize.blockwise import quantize_blocks
from export.bundle import write_graph
from export.graph.builder import build_graph, graph_spec
from export.graph.layers import Blocks
from export.graph.spec import graph_names
from export.parity import torch_logits
from export.weights import GraphWeights, with_kv_scales
from serve.engine import Engine

ODD = {
    "width 40 is no multiple of 16 or of the block": {"n_embd": 40, "n_head": 5},
    "3 heads of 20 are padded to 24": {"n_embd": 60, "n_head": 3},
    "1 head of 12 is padded to 16": {"n_embd": 12, "n_head": 1},
    "inner width 50 is not 4 x width": {"n_inner": 50},
    "one layer, context 8": {"n_layer": 1, "n_positions": 8},
    "odd vocabulary": {"vocab_size": 77},
    "untied head": {"tie_word_embeddings": False},
    "scaled by inverse layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled attention": {"scale_attn_weights": False},
    "exact gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
}
# Of the largest logit. MatMulNBits rounds activations to int8 by block; w8a8 by one scale a tensor.
CLOSE = {None: 1e-5, 8: 0.05, 4: 0.05, "w8a8": 0.08}


@pytest.mark.parametrize("bits", CLOSE)
@pytest.mark.parametrize("options", ODD.values(), ids=ODD.keys())
def test_an_odd_geometry_gives_the_logits_of_torch(options: dict, bits: int | str | None, tmp_path: Path) -> None:
    """Padded blocks, a wrong attention scale or a forgotten own head would change every reply, and no error tells."""
    model = random_gpt2(**options)
    engine = Engine(exported(model, tmp_path, bits), threads=1)  # de-quantizes `model` in place
    ids = random_ids(model)
    want, got = torch_logits(model, ids), engine.logits(ids)
    assert np.abs(want - got).max() < CLOSE[bits] * np.abs(want).max()
    assert np.abs(engine.prefill(ids[:3]) - want[2]).max() < CLOSE[bits] * np.abs(want).max()
    assert np.abs(engine.step(ids[3]) - want[3]).max() < CLOSE[bits] * np.abs(want).max()


@pytest.mark.parametrize("block_size", [128, 256])
@pytest.mark.parametrize("bits", [8, 4, "w8a8"])
def test_five_heads_of_64_with_blocks_that_do_not_divide_them(bits: int | str, block_size: int, tmp_path: Path) -> None:
    """Wide blocks are the fastest; the last one of a row of 320 is half empty, and its zeros must count for nothing."""
    model = random_gpt2(n_embd=320, n_head=5, n_inner=200, initializer_range=0.05)
    engine = Engine(exported(model, tmp_path, bits, block_size), threads=1)
    ids = random_ids(model)
    want = torch_logits(model, ids)
    assert np.abs(want - engine.logits(ids)).max() < CLOSE[bits] * np.abs(want).max()


@pytest.mark.parametrize("options", [{}, {"n_embd": 60, "n_head": 3}], ids=["heads of 8", "heads of 20"])
@pytest.mark.parametrize("bits", [None, 8])
def test_an_int8_cache_gives_the_logits_of_torch(bits: int | None, options: dict, tmp_path: Path) -> None:
    """Scales of the wrong layer, of keys for values, or in another order give fluent nonsense."""
    model = random_gpt2(**options)
    weights = weights_of(model, bits)
    ids = random_ids(model)
    weights = with_kv_scales(weights, calibrate_kv(model, [ids]))
    path = write_graph(build_graph(graph_spec(model.config, weights.formats, kv="int8"), weights), tmp_path)
    direct = Direct(path)
    assert {array.dtype for array, _ in direct.past.values()} == {np.dtype(np.int8)}
    want = torch_logits(model, ids)
    limit = (0.02 if bits is None else 0.05) * np.abs(want).max()
    assert 0 < np.abs(want - direct.logits(ids)).max() < limit
    steps = [direct.prefill(ids[:5]), *(direct.step(token) for token in ids[5:])]
    assert np.abs(want[4:] - np.stack(steps)).max() < limit
    arrays = dict(weights.arrays)
    arrays |= {name: array / 5 for name, array in arrays.items() if name.endswith("k_scale")}
    clipped = replace(weights, arrays=arrays)
    wrong = write_graph(build_graph(graph_spec(model.config, weights.formats, kv="int8"), clipped), tmp_path)
    assert np.abs(want - Direct(wrong).logits(ids)).max() > limit


def test_the_accuracy_level_and_the_block_size_are_those_of_each_module(tmp_path: Path) -> None:
    """Speed is tuned by matrix; one setting for all would be found only by measuring again."""
    model = random_gpt2()
    weights = weights_of(model, 8)
    name = "transformer.h.1.mlp.c_fc"
    formats = {**weights.formats, name: Blocks(8, 16, accuracy_level=1)}
    tensor = quantize_blocks(model.get_submodule(name).weight.detach().numpy().T, 8, 16)
    arrays = {**weights.arrays, f"{name}.qweight": tensor.q, f"{name}.scales": tensor.scales}
    weights = GraphWeights(arrays, formats)
    path = write_graph(build_graph(graph_spec(model.config, formats), weights), tmp_path)
    found = {
        node.input[1]: {attribute.name: attribute.i for attribute in node.attribute}
        for node in onnx.load(path).graph.node
        if node.op_type == "MatMulNBits"
    }
    assert (found[f"{name}.qweight"]["accuracy_level"], found[f"{name}.qweight"]["block_size"]) == (1, 16)
    others = [found[each] for each in found if each != f"{name}.qweight"]
    assert {(other["accuracy_level"], other["block_size"]) for other in others} == {(4, 32)}
    ids = random_ids(model)
    want = torch_logits(model, ids)
    assert np.abs(want - Direct(path).logits(ids)).max() < 0.05 * np.abs(want).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cuda", "kv": "int8"}, "--kv int8: is for --target cpu"),
        ({"target": "tpu"}, "--target tpu: .*choose cpu or cuda"),
        ({"kv": "int4"}, "--kv int4: .*choose float32 or int8"),
    ],
)
def test_a_graph_that_does_not_exist_is_refused_by_one_line(options: dict, message: str) -> None:
    """Falling back to another graph in silence ships what nobody asked for."""
    with pytest.raises(BadInput, match=message):
        graph_spec(random_gpt2().config, **options)


def test_integer_products_are_refused_for_cuda() -> None:
    """onnxruntime would move every product to the CPU and be slower than no GPU at all."""
    model = random_gpt2()
    with pytest.raises(BadInput, match=r"--target cuda: .*w8a8.*give the float checkpoint"):
        graph_spec(model.config, weights_of(model, "w8a8").formats, target="cuda")


@pytest.mark.parametrize("bits", [None, 8])
def test_the_tied_table_is_in_the_file_once(bits: int | None, tmp_path: Path) -> None:
    """Exporters that transpose the head's weight store the largest table of a small model twice."""
    model = random_gpt2(vocab_size=4000)
    exported(model, tmp_path, bits)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    scales = 1 if bits is None else 1 + 4 / 32
    size = (tmp_path / "model.onnx").stat().st_size
    assert size < numbers * (4 if bits is None else 1) * scales + 30_000
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sum(4000 in tensor.dims for tensor in graph.initializer) == (1 if bits is None else 2)  # integers, scales


def test_embedding_and_head_read_the_same_initializer(tmp_path: Path) -> None:
    """Two equal copies would pass a check of values and double the file."""
    exported(random_gpt2(), tmp_path, 8)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    gather = next(node for node in nodes if node.op_type == "GatherBlockQuantized")
    head = [node for node in nodes if node.op_type == "MatMulNBits"][-1]
    assert gather.input[0] == head.input[1] == "transformer.wte.qweight"


def test_every_quantized_product_names_its_accuracy_level(tmp_path: Path) -> None:
    """Unset, an 8-bit product runs thirty times slower."""
    exported(random_gpt2(), tmp_path, 8)
    nodes = [n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "MatMulNBits"]
    levels = [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "accuracy_level"]
    assert levels == [4] * (4 * 2 + 1)


def test_inputs_and_outputs_are_those_that_the_table_lists(tmp_path: Path) -> None:
    """The engine binds by name; a renamed input is found when the bundle has shipped."""
    exported(random_gpt2(), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    names = tuple(i.name for i in graph.input), tuple(o.name for o in graph.output)
    assert names == graph_names(2)
    assert names[0][:6] == (
        "input_ids",
        "position_ids",
        "logits_positions",
        "seqlens_k",
        "total_sequence_length",
        "past_key_values.0.key",
    )


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    """A bundle that differs from run to run cannot be reproduced or compared."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        exported(random_gpt2(), tmp_path / name, 8)
    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()


def test_large_weights_lie_in_a_file_of_their_own_with_a_relative_name(tmp_path: Path) -> None:
    """A protobuf above 2 GB cannot be written, and an absolute name breaks when the bundle moves."""
    model = random_gpt2()
    weights = weights_of(model)
    first, moved = tmp_path / "first", tmp_path / "moved"
    first.mkdir()
    write_graph(build_graph(graph_spec(model.config), weights), first, external_above=1000)
    first.rename(moved)
    assert (moved / "model.onnx.data").stat().st_size > 0.9 * weights.nbytes
    stored = ir.load(moved / "model.onnx").graph.initializers["transformer.wte.weight"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), model.transformer.wte.weight.detach().numpy())


def test_a_width_that_heads_do_not_divide_is_refused_by_one_line() -> None:
    """transformers refuses it with a traceback; a config.json from elsewhere may hold it."""
    config = GPT2Config(n_embd=60, n_head=7)
    with pytest.raises(BadInput, match=r"n_embd 60 / n_head 7 .*--width") as caught:
        graph_spec(config)
    assert "\n" not in str(caught.value)


def test_an_unknown_activation_is_refused_by_name() -> None:
    """Falling back to another activation gives fluent nonsense."""
    with pytest.raises(BadInput, match=r"'silu'.*known are gelu, gelu_new"):
        graph_spec(random_gpt2(activation_function="silu").config)


def test_chunks_of_a_prompt_give_what_the_whole_gives(tmp_path: Path) -> None:
    """A wrong position or length in a later chunk shows only in prompts longer than one chunk."""
    model = random_gpt2()
    engine = Engine(exported(model, tmp_path), threads=1)
    ids = np.random.default_rng(1).integers(0, 101, size=40).tolist()
    engine.prefill(ids[:7])
    engine.feed(0, ids[7:29])
    engine.step(ids[29])
    last = engine.feed(0, ids[30:])
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0, -1].numpy()
    np.testing.assert_allclose(last, want, atol=1e-5)
