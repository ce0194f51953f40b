"""The float16 graph for CUDA: types, kernels, numbers on the CPU provider, and a run on CUDA where there is one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.bundles import random_gpt2, random_ids, weights_of
from support.cuda import why_not_cuda
from support.direct import Direct

from chitchat.errors import BadInput
from export.bundle import write_graph
from export.graph.builder import build_graph, graph_spec
from export.parity import check_parity, grade_of, parity_prompts, torch_logits
from export.weights import half_weights

# Kernels of the CUDA execution provider, by the input types that the graph uses, from onnxruntime's
# docs/OperatorKernels.md ("Operators implemented by CUDAExecutionProvider", commit 001d12d) at opset 21. None is an
# input that may be left out. MatMulNBits' bias is newer than some releases that users have, so it is not here.
HALF, BYTES, INT, LONG = "float16", "uint8", "int32", "int64"
KERNELS: dict[str, list[tuple[str | None, ...]]] = {
    "Add": [(HALF, HALF)],
    "Cast": [(HALF,)],
    "Concat": [(LONG, LONG)],
    "Gather": [(HALF, LONG)],
    "GatherND": [(HALF, LONG)],
    "Gemm": [(HALF, HALF)],
    "MatMul": [(HALF, HALF)],
    "Pad": [(HALF, LONG)],
    "Relu": [(HALF,)],
    "Reshape": [(HALF, LONG)],
    "Shape": [(HALF,)],
    "Slice": [(HALF, LONG, LONG, LONG)],
    "Unsqueeze": [(HALF, LONG), (LONG, LONG)],
    "com.microsoft.BiasGelu": [(HALF, HALF)],
    "com.microsoft.FastGelu": [(HALF, HALF)],
    "com.microsoft.GatherBlockQuantized": [(BYTES, LONG, HALF)],
    "com.microsoft.GroupQueryAttention": [(HALF, None, None, HALF, HALF, INT, INT)],
    "com.microsoft.MatMulNBits": [(HALF, BYTES, HALF)],
    "com.microsoft.SkipLayerNormalization": [(HALF,) * 4, (HALF,) * 5],
}
SHAPES = {
    "plain": {},
    "untied, padded heads, exact gelu": {
        "tie_word_embeddings": False,
        "n_embd": 60,
        "n_head": 3,
        "activation_function": "gelu",
    },
    "relu": {"activation_function": "relu"},
}


def write(folder: Path, bits: int | None, **options):
    """A cuda graph of a random model; the model is given what the integers stand for."""
    model = random_gpt2(**options)
    weights = half_weights(weights_of(model, bits))
    spec = graph_spec(model.config, weights.formats, target="cuda")
    return model, spec, write_graph(build_graph(spec, weights), folder)  # checked by ONNX, shapes inferred


def types_of(path: Path) -> tuple[onnx.GraphProto, dict[str, str]]:
    """The graph, and the element type of its values, as inferred by ONNX and, behind fused operators, by hand."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    name = onnx.TensorProto.DataType.Name
    known = [*graph.input, *graph.output, *graph.value_info]
    types = {value.name: name(value.type.tensor_type.elem_type).lower() for value in known}
    types |= {tensor.name: name(tensor.data_type).lower() for tensor in graph.initializer}
    for node in graph.node:
        for output in node.output:
            if output not in types:
                like = node.input[2 if node.op_type == "GatherBlockQuantized" else 0]
                types[output] = LONG if node.op_type in ("Constant", "Shape", "Concat") else types[like]
    return graph, types


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_every_node_has_a_cuda_kernel_for_its_types(options: dict, bits: int | None, tmp_path: Path) -> None:
    """A node without one is moved to the CPU, with a copy of its tensors each way: slower than no GPU, and no error."""
    graph, types = types_of(write(tmp_path, bits, **options)[2])
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        kernel = f"{node.domain}.{node.op_type}".lstrip(".")
        inputs = tuple(types[name] if name else None for name in node.input)
        assert inputs in KERNELS.get(kernel, []), f"{kernel} {inputs}"


def test_weights_activations_and_cache_are_float16_and_the_logits_float32(tmp_path: Path) -> None:
    """One float32 tensor among them pulls casts and copies behind it; samplers want float32."""
    graph, types = types_of(write(tmp_path, 8)[2])
    assert {types[tensor.name] for tensor in graph.initializer if tensor.dims} <= {HALF, BYTES, LONG}
    assert types["logits"] == "float"
    assert {types[value.name] for value in graph.input if value.name.startswith("past")} == {HALF}
    assert [value.name for value in graph.input][:5] == [
        "input_ids",
        "position_ids",
        "logits_positions",
        "seqlens_k",
        "total_sequence_length",
    ]
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    assert len(attention.input) == 7  # query_seqlens, the 16th, is unknown to onnxruntime-gpu 1.31


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_its_numbers_on_the_cpu_provider_are_torchs(options: dict, bits: int | None, tmp_path: Path) -> None:
    """What is wrong in the graph itself shows without a GPU; the CPU provider casts where it has no float16 kernel."""
    model, spec, path = write(tmp_path, bits, **options)
    prompts, origin = parity_prompts(None, model.config.vocab_size, model.config.n_positions, count=4)
    assert grade_of(spec) == "rounded"
    parity = check_parity(Direct(path), model, prompts, origin, grade_of(spec))  # type: ignore[arg-type]
    parity.figures["weights_changed"] = 0
    parity.require()


@pytest.mark.cuda
def test_its_numbers_on_cuda_are_torchs(tmp_path: Path) -> None:
    """The graph's kernels on the device that it is for."""
    cause = why_not_cuda()
    if cause:
        pytest.skip(cause)
    model, _, path = write(tmp_path, 8)
    ids = random_ids(model)
    want, got = torch_logits(model, ids), Direct(path, "CUDAExecutionProvider").logits(ids)
    assert np.abs(want - got).max() < 0.02 * np.abs(want).max()


def test_numbers_beyond_float16_are_refused_by_name() -> None:
    """They would become infinite, and every logit NaN."""
    weights = weights_of(random_gpt2())
    big = weights.arrays["transformer.ln_f.weight"] * 1e6
    weights = replace(weights, arrays={**weights.arrays, "transformer.ln_f.weight": big})
    with pytest.raises(BadInput, match=r"--target cuda: transformer\.ln_f\.weight .*65504"):
        half_weights(weights)
