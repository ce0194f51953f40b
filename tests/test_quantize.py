"""`compress quantize`: figures, refusals, and nothing left behind."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from chitchat.architectures.registry import geometry_of
from chitchat.checkpoint import load_model, load_tokenizer, save_checkpoint
from chitchat.data.dataset import build_dataset
from chitchat.data.options import DataOptions
from chitchat.errors import BadInput, WorkFailed
from chitchat.lineage import Stage, identity, read_lineage
from compress.quantize import stage
from compress.quantize.checkpoint import load_quantized
from compress.quantize.model import round_model
from compress.quantize.options import QuantizeOptions
from compress.quantize.schemes import fitting_blocks, grids
from compress.quantize.stage import count_weight_bytes, quantize
from export.stage import export


def test_quantizing_writes_a_checkpoint_and_says_what_it_cost(
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_data: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stops a stage whose figures are not of the model that it wrote."""
    out = tmp_path / "q"
    with caplog.at_level(logging.INFO, logger="chitchat_compress"):
        figures = quantize(str(tiny_checkpoint), tiny_data, out)
    model = load_model(tiny_checkpoint)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    assert f"{weights:,} of {weights:,} weight bytes quantized" in caplog.messages
    assert figures["weight_bytes_quantized"] == figures["weight_bytes"] == weights
    assert figures["perplexity"] == pytest.approx(figures["perplexity_before"], rel=1e-3)
    assert 0 < figures["kl"] < 1e-3
    assert figures["top1"] > 0.9
    json.dumps(figures)
    before, after = read_lineage(out)
    assert (before["stage"], after["stage"]) == ("train", "quantize")
    assert after["parent_sha256"] == identity(tiny_checkpoint)
    assert after["data_sha256"] == identity(tiny_data)
    assert after["metrics"]["after"]["perplexity"] == figures["perplexity"]
    assert (out / "generation_config.json").is_file()
    assert load_quantized(out).dequantized_model().num_parameters() == model.num_parameters()


def test_fewer_bits_cost_more(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a w4 that is w8 under another name, and a distance that measures nothing."""
    eight = quantize(str(tiny_checkpoint), tiny_data, tmp_path / "w8", QuantizeOptions(scheme="w8", method="rtn"))
    four = quantize(str(tiny_checkpoint), tiny_data, tmp_path / "w4", QuantizeOptions(scheme="w4", method="rtn"))
    assert four["kl"] > 5 * eight["kl"]
    assert four["file_mb"] < eight["file_mb"]


def test_w8a8_calibrates_on_the_training_part_and_ships(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a scheme that is quantized and cannot be exported, or whose figures are not of what ships."""
    figures = quantize(str(tiny_checkpoint), tiny_data, tmp_path / "q", QuantizeOptions(scheme="w8a8"))
    assert figures["scheme"] == "w8a8"
    assert figures["weight_bytes_quantized"] == figures["weight_bytes"]
    assert 0 < figures["kl"] < 1e-3
    exported = export(str(tmp_path / "q"), tmp_path / "bundle", data=tiny_data)
    assert exported["scheme"] == "w8a8"
    assert exported["parity"]["weights_changed"] == 0
    assert 0 < exported["parity"]["kl_prefill"] < 3e-3


def test_the_same_input_gives_the_same_folder(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a stage that a pipeline could never find finished."""
    for name in ("a", "b"):
        quantize(str(tiny_checkpoint), tiny_data, tmp_path / name)
    assert identity(tmp_path / "a") == identity(tmp_path / "b")


def test_what_the_quantizer_does_not_know_shows_in_the_count(tiny_model: GPT2LMHeadModel, tiny_data: Path) -> None:
    """Stops integers that silently skip matrices: bytes are counted on the model, not on the quantizer's own list."""
    blocks = round_model(tiny_model, grids(geometry_of(tiny_model), "w8", 32), "rtn").matrices
    del blocks["transformer.wte"]
    done, total = count_weight_bytes(tiny_model, blocks)
    assert total - done == 4 * 300 * 32


def test_a_half_quantized_model_is_no_result(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a checkpoint that is called quantized and is not (users see int8 files as large as float ones)."""
    monkeypatch.setattr(stage, "count_weight_bytes", lambda model, blocks: (94, 100))
    with pytest.raises(WorkFailed, match=r"94.0%"):
        quantize(str(tiny_checkpoint), tiny_data, tmp_path / "q")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "w3"}, r"--scheme w3: give w8, w8a8, w4 or auto"),
        ({"method": "awq"}, r"--method awq: .*give rtn, mse, gptq or kd"),
        ({"scheme": "auto"}, r"--scheme auto: .*--max-kl"),
        ({"max_kl": 0.1}, r"--max-kl 0.1: .*--scheme auto"),
        ({"scheme": "auto", "max_kl": 0.0}, r"--max-kl 0: .*above 0"),
        ({"scheme": "w8a8", "method": "kd"}, r"--method kd --scheme w8a8: .*w4 or w8"),
        ({"method": "kd", "kd_minutes": 0.0}, r"--kd-minutes 0: .*above 0"),
        ({"block_size": 48}, r"--block-size 48: .*16, 32"),
    ],
)
def test_what_does_not_exist_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, options: dict[str, str], message: str
) -> None:
    """Stops a scheme that falls back to another one in silence; the line says which exist."""
    with pytest.raises(BadInput, match=message):
        quantize(str(tiny_checkpoint), tiny_data, tmp_path / "q", QuantizeOptions(**options))
    assert not list(tmp_path.iterdir())


def test_what_is_quantized_already_is_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops the loss of two roundings."""
    quantize(str(tiny_checkpoint), tiny_data, tmp_path / "q")
    with pytest.raises(BadInput, match="already quantized"):
        quantize(str(tmp_path / "q"), tiny_data, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("transformer.h.1.mlp.c_fc.weight", float("nan")), ("transformer.ln_f.bias", float("inf"))]
)
def test_a_weight_that_is_not_finite_is_named(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, name: str, value: float
) -> None:
    """Stops NaN from becoming an integer; the line names the tensor."""
    model = load_model(tiny_checkpoint)
    with torch.no_grad():
        model.get_parameter(name).flatten()[3] = value
    broken = tmp_path / "broken"
    broken.mkdir()
    save_checkpoint(broken, model, load_tokenizer(tiny_checkpoint), Stage("train", {}, 0))
    with pytest.raises(BadInput, match=name):
        quantize(str(broken), tiny_data, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_too_few_conversations_to_calibrate_on_are_counted(
    tmp_path: Path, tiny_checkpoint: Path, tiny_corpus: Path
) -> None:
    """Integers fitted to a handful of sentences, or a traceback from a covariance of nothing; rounding needs none."""
    talks = tiny_corpus.read_text(encoding="utf-8").split("\n\n")[:10]
    (tmp_path / "few.txt").write_text("\n\n".join(talks) + "\n", encoding="utf-8")
    build_dataset(
        [str(tmp_path / "few.txt")], tmp_path / "few", DataOptions(tokenizer=str(tiny_checkpoint), validation=0.2)
    )
    message = r"--data .*few: .* \d+ conversations .*--method gptq needs 16 of 1024 tokens .*--method rtn"
    with pytest.raises(BadInput, match=message):
        quantize(str(tiny_checkpoint), tmp_path / "few", tmp_path / "q")
    assert not (tmp_path / "q").exists()
    quantize(str(tiny_checkpoint), tmp_path / "few", tmp_path / "q", QuantizeOptions(scheme="w8", method="rtn"))


def test_another_tokenizers_data_is_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_corpus: Path) -> None:
    """Stops a perplexity of ids that mean other words."""
    other = tmp_path / "other"
    build_dataset([str(tiny_corpus)], other, DataOptions(vocab_size=290, validation=0.2))
    with pytest.raises(BadInput, match=r"--data .*another tokenizer"):
        quantize(str(tiny_checkpoint), other, tmp_path / "q")


def test_a_block_that_does_not_divide_a_row_is_made_smaller(tiny_model: GPT2LMHeadModel) -> None:
    """A width of 320 in blocks of 128 was padded to 384: a fifth of the file and of the work were zeros."""
    config = {**tiny_model.config.to_dict(), "n_embd": 320, "n_inner": 1000, "n_head": 5}
    sizes = fitting_blocks(geometry_of(config), 128)
    assert sizes["transformer.wte"] == sizes["transformer.h.0.attn.c_attn"] == sizes["transformer.h.0.mlp.c_fc"] == 64
    assert "transformer.h.0.mlp.c_proj" not in sizes  # 1000 = 8 * 125: no block divides it, it is padded
    assert fitting_blocks(geometry_of({**config, "n_embd": 256, "n_inner": 1024}), 128) == {}
