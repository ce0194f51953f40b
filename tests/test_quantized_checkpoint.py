"""The quantized checkpoint: what lies in the folder, and that it comes back as it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.rounded import rounded_checkpoint
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from chitchat.architectures.registry import architecture_of, geometry_of
from chitchat.checkpoint import load_model, load_tokenizer
from chitchat.errors import BadInput
from chitchat.lineage import Stage, read_lineage
from chitchat.system.folder import staged_folder
from compress.calibrate.ranges import input_ranges
from compress.quantize.blockwise import BlockTensor, dequantize_blocks, quantize_blocks
from compress.quantize.channelwise import ChannelTensor, dequantize_channels, quantize_channels
from compress.quantize.checkpoint import WEIGHTS, load_quantized, save_quantized


def make_model(tied: bool = True, width: int = 40) -> GPT2LMHeadModel:
    """A width of 40 leaves the second block of 32 mostly empty."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_layer=2, n_embd=width, n_head=4, n_inner=72, n_positions=24, tie_word_embeddings=tied
    )
    return GPT2LMHeadModel(config).eval()


def save(
    out: Path, model: GPT2LMHeadModel, data: Path, scheme: str = "w8", sizes: dict[str, int] | None = None
) -> Path:
    ranges = input_ranges(model, [list(range(20))])
    quantized = rounded_checkpoint(model, load_tokenizer(data), scheme, 32, sizes, ranges)
    with staged_folder(out, "checkpoint") as staging:
        save_quantized(staging, quantized, Stage("quantize", {"scheme": scheme}, seed=0))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    return save(tmp_path_factory.mktemp("quantized") / "q", make_model(), tiny_data)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("scheme", "bits"), [("w8", 8), ("w4", 4)])
def test_the_loaded_model_is_the_rounded_one(
    tmp_path: Path, tiny_data: Path, tied: bool, scheme: str, bits: int
) -> None:
    """Stops a transposed Conv1D, a head that is not the table, and 4-bit tables in w4."""
    model = make_model(tied)
    loaded = load_quantized(save(tmp_path / "q", model, tiny_data, scheme))
    back = loaded.dequantized_model()
    for name, module in (
        ("attn.c_attn", back.transformer.h[1].attn.c_attn),
        ("mlp.c_fc", back.transformer.h[1].mlp.c_fc),
    ):
        original = model.get_submodule(f"transformer.h.1.{name}").weight.detach().numpy()
        expected = dequantize_blocks(quantize_blocks(original.T, bits, 32)).T
        np.testing.assert_array_equal(module.weight.detach().numpy(), expected)
    table = dequantize_blocks(quantize_blocks(model.transformer.wte.weight.detach().numpy(), 8, 32))
    np.testing.assert_array_equal(back.transformer.wte.weight.detach().numpy(), table)
    assert (back.lm_head.weight is back.transformer.wte.weight) == tied
    assert {tensor.bits for name, tensor in loaded.matrices.items() if ".h." in name} == {bits}
    assert ("lm_head" in loaded.matrices) != tied
    assert torch.equal(back.transformer.ln_f.weight, model.transformer.ln_f.weight)


def test_the_folder_holds_integers_and_scales_under_the_documented_names(folder: Path) -> None:
    """Stops a format that drifts from what the exporter reads, and a table that is stored twice."""
    tensors = load_file(folder / WEIGHTS)
    assert tensors["transformer.h.0.attn.c_attn.qweight"].shape == (120, 2, 32)
    assert tensors["transformer.h.0.attn.c_attn.qweight"].dtype == np.uint8
    assert tensors["transformer.h.0.attn.c_attn.scales"].dtype == np.float32
    assert tensors["transformer.wte.qweight"].shape == (300, 2, 32)
    assert tensors["transformer.h.1.ln_1.bias"].dtype == np.float32
    assert not [name for name in tensors if name.startswith("lm_head")]
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "compress",
        "scheme": "w8",
        "method": "rtn",
        "bits": 8,
        "table_bits": 8,
        "block_size": 32,
        "symmetric": True,
    }
    assert read_lineage(folder)[-1]["stage"] == "quantize"


def test_integers_scales_and_input_grids_of_w8a8_come_back_as_decided(tmp_path: Path, tiny_data: Path) -> None:
    """Stops a scale or zero point of the activations that is lost or cast between quantizer and exporter."""
    model = make_model(tied=False)
    ranges = input_ranges(model, [list(range(20))])
    loaded = load_quantized(save(tmp_path / "q", model, tiny_data, "w8a8"))
    back = loaded.dequantized_model()
    linears = [matrix.module for matrix in architecture_of(model).matrices(geometry_of(model)) if not matrix.table]
    assert len(linears) == 8
    for name in linears:
        original = model.get_submodule(name).weight.detach().numpy()
        decided, found = quantize_channels(original.T, *ranges[name]), loaded.matrices[name]
        assert isinstance(found, ChannelTensor)
        for part in ("q", "scales", "input_scale", "input_zero_point"):
            np.testing.assert_array_equal(getattr(found, part), getattr(decided, part))
            assert getattr(found, part).dtype == getattr(decided, part).dtype
        expected = dequantize_channels(decided).T
        np.testing.assert_array_equal(back.get_submodule(name).weight.detach().numpy(), expected)
    assert isinstance(loaded.matrices["transformer.wte"], BlockTensor)
    assert isinstance(loaded.matrices["lm_head"], BlockTensor)
    quantization = loaded.config["quantization_config"]
    assert (quantization["scheme"], quantization["activation_bits"], quantization["kernel"]) == ("w8a8", 8, "u8u8")


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_modules_keep_block_sizes_of_their_own(tmp_path: Path, tiny_data: Path, scheme: str) -> None:
    """Stops 4-bit blocks of 32 from being read as 8-bit blocks of 16, which have the same bytes."""
    model, name = make_model(), "transformer.h.1.mlp.c_fc"
    sizes = {name: 16, "transformer.wte": 128, "transformer.h.0.attn.c_proj": 32}
    loaded = load_quantized(save(tmp_path / "q", model, tiny_data, scheme, sizes))
    assert loaded.config["quantization_config"]["block_sizes"] == {name: 16, "transformer.wte": 128}
    bits = 4 if scheme == "w4" else 8
    expected = quantize_blocks(model.get_submodule(name).weight.detach().numpy().T, bits, 16)
    found = loaded.matrices[name]
    assert isinstance(found, BlockTensor)
    assert (found.bits, found.block_size, found.shape) == (bits, 16, (72, 40))
    np.testing.assert_array_equal(found.q, expected.q)
    np.testing.assert_array_equal(
        loaded.dequantized_model().get_submodule(name).weight.detach().numpy(), dequantize_blocks(expected).T
    )
    others = {tensor.block_size for each, tensor in loaded.matrices.items() if each not in sizes}
    assert others == {32}


@pytest.mark.parametrize("damage", ["input_scale", "columns"])
def test_channels_that_do_not_fit_the_config_are_refused(tmp_path: Path, tiny_data: Path, damage: str) -> None:
    """Stops a traceback, or a smaller matrix, out of a damaged w8a8 folder; the line names the tensor."""
    copy = foreign_copy(save(tmp_path / "q", make_model(), tiny_data, "w8a8"), tmp_path)
    tensors, name = load_file(copy / WEIGHTS), "transformer.h.0.mlp.c_fc"
    if damage == "input_scale":
        del tensors[f"{name}.input_scale"]
    else:
        tensors[f"{name}.qweight"] = np.ascontiguousarray(tensors[f"{name}.qweight"][:-1])
    save_file(tensors, copy / WEIGHTS)
    with pytest.raises(BadInput, match=r"mlp\.c_fc"):
        load_quantized(copy)


def test_the_integers_on_disk_are_the_ones_that_were_decided(folder: Path) -> None:
    """Stops any rounding between the quantizer and the exporter."""
    model, loaded = make_model(), load_quantized(folder)
    for matrix in architecture_of(model).matrices(geometry_of(model)):
        name, shape = matrix.module, (matrix.rows, matrix.columns)
        weight = model.get_submodule(name).weight.detach().numpy()
        decided = quantize_blocks(
            weight if loaded.matrices[name].shape == weight.shape and ".h." not in name else weight.T, 8, 32
        )
        np.testing.assert_array_equal(loaded.matrices[name].q, decided.q)
        np.testing.assert_array_equal(loaded.matrices[name].scales, decided.scales)
        assert loaded.matrices[name].shape == shape


def test_every_parameter_of_the_model_is_in_the_checkpoint(folder: Path) -> None:
    """Stops a parameter that is lost because it is neither matrix nor listed float."""
    loaded, model = load_quantized(folder), make_model()
    names = {f"{name}.weight" for name in loaded.matrices} | set(loaded.floats)
    assert names == {name for name, _ in model.named_parameters()}


def test_float_loaders_refuse_it(folder: Path) -> None:
    """Stops a quantized folder from being read as a float one with fresh random weights."""
    with pytest.raises(BadInput, match="already quantized"):
        load_model(folder)
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_float_checkpoint_is_refused(tiny_checkpoint: Path) -> None:
    """Stops a KeyError where the user gave the wrong folder."""
    with pytest.raises(BadInput, match="is not quantized"):
        load_quantized(tiny_checkpoint)


def test_another_tools_integers_are_refused(tmp_path: Path, folder: Path) -> None:
    """Stops GPTQ's or bitsandbytes' layout from being read as ours."""
    copy = foreign_copy(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gptq"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="'gptq'"):
        load_quantized(copy)


@pytest.mark.parametrize("damage", ["missing", "rows", "blocks", "truncated"])
def test_tensors_that_do_not_fit_the_config_are_refused(tmp_path: Path, folder: Path, damage: str) -> None:
    """Stops a traceback, or a smaller matrix, out of a damaged folder; the line names the tensor."""
    copy = foreign_copy(folder, tmp_path)
    tensors = load_file(copy / WEIGHTS)
    name = "transformer.h.0.mlp.c_fc"
    if damage == "missing":
        del tensors[f"{name}.scales"]
    elif damage == "rows":
        for part in ("qweight", "scales"):
            tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][:-1]
    elif damage == "blocks":
        tensors[f"{name}.qweight"] = np.ascontiguousarray(tensors[f"{name}.qweight"][:, :1])
    save_file(tensors, copy / WEIGHTS)
    if damage == "truncated":
        (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(BadInput, match="cannot be read" if damage == "truncated" else "mlp.c_fc"):
        load_quantized(copy)


def test_an_altered_file_is_refused(tmp_path: Path, folder: Path) -> None:
    """Stops weights that are not the measured ones."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = bytearray((copy / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (copy / WEIGHTS).write_bytes(weights)
    with pytest.raises(BadInput, match="sha256"):
        load_quantized(copy)


def foreign_copy(folder: Path, tmp_path: Path) -> Path:
    """A copy without a lineage, so that only the content is there to be checked."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "lineage.json").unlink()
    return copy


@pytest.mark.parametrize("name", ["transformer.ln_f.weight", "transformer.h.1.mlp.c_fc.scales"])
def test_a_number_that_is_not_finite_is_told_with_its_tensor(tmp_path: Path, folder: Path, name: str) -> None:
    """Every reader of weights names it: a scale that is not a number makes a whole block so."""
    shutil.copytree(folder, tmp_path / "q")
    (tmp_path / "q" / "lineage.json").unlink()
    tensors = load_file(tmp_path / "q" / WEIGHTS)
    tensors[name].flat[0] = np.nan
    save_file(tensors, tmp_path / "q" / WEIGHTS, {"format": "pt"})
    with pytest.raises(BadInput, match=f"{name} has numbers that are NaN or infinite"):
        load_quantized(tmp_path / "q")
