"""A table with more rows than the tokenizer has tokens, as tables are padded for speed: the others are never said."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bench.evaluate.measure import evaluate
from bench.evaluate.options import EvalOptions
from bench.models.open import open_model
from chitchat.checkpoint import load_tokenizer, save_checkpoint
from chitchat.data.dataset import open_dataset
from chitchat.dialogue import unassigned_ids
from chitchat.lineage import Stage
from chitchat.system.folder import staged_folder
from compress.distill.samples import teacher_conversations
from export.stage import export
from serve.options import SamplingOptions

TOKENS, ROWS = 300, 320


@pytest.fixture(scope="module")
def padded(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that would say nothing but rows without a token: its last hidden state points at them."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=ROWS, n_layer=1, n_embd=32, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight[TOKENS:] = 1.0
        model.transformer.ln_f.bias.fill_(1.0)
    assert int(model(torch.tensor([[5, 6]])).logits[0, -1].argmax()) >= TOKENS
    out = tmp_path_factory.mktemp("padded") / "it"
    with staged_folder(out, "checkpoint") as staging:
        save_checkpoint(staging, model, load_tokenizer(tiny_data), Stage("train", {}, seed=0))
    return out


def test_the_rows_that_are_no_token_are_known(tiny_data: Path) -> None:
    """Of a data set's own vocabulary there are none."""
    tokenizer = load_tokenizer(tiny_data)
    assert unassigned_ids(tokenizer, ROWS) == tuple(range(TOKENS, ROWS))
    assert unassigned_ids(tokenizer, TOKENS) == ()
    data = open_dataset(tiny_data)
    assert data.banned_ids(TOKENS) == data.dialogue.banned_ids
    assert data.banned_ids(ROWS)[-20:] == tuple(range(TOKENS, ROWS))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_neither_torch_nor_the_bundle_says_them(
    temperature: float, padded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They decode to nothing, so the reply was empty."""
    export(str(padded), tmp_path / "bundle")
    assert "its table has 320 rows for 300 tokens; the others are never generated" in capfd.readouterr().err
    for spec in (padded, tmp_path / "bundle"):
        generator = open_model(str(spec)).generator()
        options = SamplingOptions(temperature=temperature, max_new_tokens=12, min_new_tokens=12, seed=1)
        ids = list(generator.stream([1, 60, 2], options))
        assert len(ids) == 12
        assert max(ids) < TOKENS


def test_replies_that_are_measured_or_healed_on_have_none_of_them(padded: Path, tiny_data: Path) -> None:
    """A student that is healed on them learns to say them."""
    found = evaluate(str(padded), tiny_data, EvalOptions(samples=3))
    assert found["empty_replies"] == 0
    model, data = open_model(str(padded)).torch_model(), open_dataset(tiny_data)
    written = teacher_conversations(model, data, 32, 64, seed=0)
    assert max(max(written[index]["input_ids"]) for index in range(len(written))) < TOKENS
