"""Stand-ins of the three families, as they are published, through every verb; of one in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.checkpoint import load_model
from compress.prune.options import PruneOptions
from compress.prune.stage import prune
from compress.quantize.options import QuantizeOptions
from compress.quantize.stage import quantize
from export.stage import export

WALK = Path(__file__).parent / "field" / "walk.py"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["chitchat", "dialogpt", "gpt2"])
def test_a_published_checkpoint_goes_the_whole_way(family: str, tmp_path: Path) -> None:
    """Each of the three stopped at a verb of its own: at `info`, at the first save, or at its vocabulary."""
    command = [sys.executable, str(WALK), "--family", family, "--out", str(tmp_path)]
    if family != "chitchat":
        command.append("--in-process")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((tmp_path / family / "figures.json").read_text(encoding="utf-8"))
    assert figures["info"]["layers"] == 3
    assert figures["data"]["conversations"] > 200
    assert figures["data"]["unknown_tokens"] == 0
    assert figures["train"]["perplexity"] < figures["eval"]["perplexity"], "it learnt something"
    assert figures["prune"]["parameters"] < 0.71 * figures["info"]["parameters"]
    assert figures["export fp32"]["perplexity"] == pytest.approx(figures["eval"]["perplexity"], rel=1e-4)
    assert figures["eval w8"]["top1"] > 0.9
    assert figures["eval"]["empty_replies"] == 0
    assert figures["chat"]["replies"] == 1
    assert figures["serve"]["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("activation", "dtype"), [("relu", torch.bfloat16), ("gelu", torch.float16)])
def test_a_head_of_its_own_and_another_activation_go_the_whole_way(
    activation: str, dtype: torch.dtype, tiny_data: Path, tmp_path: Path
) -> None:
    """A stage that takes the head for the table, or the activation for gelu_new, ends at the parity check."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=304, n_layer=2, n_embd=32, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
        activation_function=activation,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    head = torch.randn(304, 32) * 0.1
    weights = {**model.state_dict(), "lm_head.weight": head}  # beside a config.json that ties it
    (tmp_path / "it").mkdir()
    config.save_pretrained(tmp_path / "it")
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    save_file(stored, tmp_path / "it" / "model.safetensors")
    options = PruneOptions(keep=0.85, candidates=1, heal_minutes=0)
    prune(str(tmp_path / "it"), tiny_data, tmp_path / "pruned", options)
    pruned = load_model(tmp_path / "pruned")
    assert not pruned.config.tie_word_embeddings
    assert pruned.config.activation_function == activation
    for scheme in ("w8", "w4"):
        quantize(str(tmp_path / "pruned"), tiny_data, tmp_path / scheme, QuantizeOptions(scheme=scheme, method="rtn"))
        figures = export(str(tmp_path / scheme), tmp_path / f"bundle-{scheme}", data=tiny_data)
        assert figures["parity"]["weights_changed"] == 0
