"""The portable flavour: what optimum wrote, optimum runs, with torch's tokens."""

from pathlib import Path

import onnx
import pytest
import torch

from chitchat.checkpoint import load_model, load_tokenizer
from chitchat.errors import WorkFailed
from export.parity import parity_prompts
from export.portable import check_portable, export_portable, open_portable


@pytest.fixture(scope="module")
def portable(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable")
    export_portable(load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint), folder)
    return folder


def test_it_uses_standard_operators_only(portable: Path) -> None:
    """One fused operator, and it runs in onnxruntime alone."""
    assert {node.domain for node in onnx.load(portable / "model.onnx").graph.node} == {""}


def test_optimum_generates_the_tokens_of_torch(portable: Path, tiny_checkpoint: Path) -> None:
    """The proof that the export stands on."""
    model = load_model(tiny_checkpoint)
    prompts, origin = parity_prompts(None, model.config.vocab_size, model.config.n_positions, count=5)
    parity = check_portable(portable, model, prompts, origin)
    parity.require()
    assert parity.figures["greedy_prompts"] == 5
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(model.transformer.wpe.weight.roll(3, 0) * 3)
    with pytest.raises(WorkFailed, match="greedy_diverged"):
        check_portable(portable, model, prompts, origin).require()


def test_the_graph_takes_a_growing_past(portable: Path) -> None:
    """Without it every token costs the whole conversation again."""
    names = [item.name for item in open_portable(portable).session.get_inputs()]
    assert "past_key_values.1.value" in names


def test_optimum_prints_nothing(tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`--json` promises that stdout ends in one JSON line, and tracer warnings frighten for nothing."""
    export_portable(load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint), tmp_path)
    assert capfd.readouterr().out == ""
