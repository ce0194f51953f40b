"""Models of different tokenizers in one run: the same texts, each in its own ids."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.in_process import bench_in_process
from transformers import GPT2LMHeadModel

from bench.evaluate.other_tokenizer import retokenized, turns_of
from bench.report.notes import notes
from bench.run.options import BenchOptions
from bench.run.stage import bench
from chitchat.checkpoint import load_tokenizer, save_checkpoint
from chitchat.data.builder import build_dataset
from chitchat.data.dataset import open_dataset
from chitchat.data.options import DataOptions
from chitchat.lineage import Stage


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_checkpoint: Path) -> Path:
    """The tiny model's shape with a tokenizer that was trained to another size."""
    folder = tmp_path_factory.mktemp("other")
    build_dataset([str(tiny_corpus)], folder / "data", DataOptions(vocab_size=280))
    tokenizer = load_tokenizer(folder / "data")
    model = GPT2LMHeadModel.from_pretrained(tiny_checkpoint)
    model.resize_token_embeddings(len(tokenizer))
    model.config.vocab_size = len(tokenizer)
    (folder / "model").mkdir()
    save_checkpoint(folder / "model", model, tokenizer, Stage("train", {}, 0))
    return folder / "model"


def test_turns_are_cut_where_the_data_set_says() -> None:
    """Stops a border of a turn in the text of a turn."""
    assert turns_of({"turn_lengths": [3, 2], "input_ids": [5, 6, 2, 7, 2]}, 2) == [[5, 6], [7]]


@given(turns=st.lists(st.lists(st.integers(3, 9), max_size=6), min_size=1, max_size=8))
def test_turns_come_back_from_the_row_that_holds_them(turns: list[list[int]]) -> None:
    """A turn without ids, or the border of the one before, moved everything after it."""
    lengths = [len(turn) + 1 for turn in turns]
    row = {"input_ids": [token for turn in turns for token in (*turn, 2)], "turn_lengths": lengths}
    assert turns_of(row, 2) == turns


def test_the_same_conversations_stand_in_other_ids(tiny_data: Path, other: Path, tmp_path: Path) -> None:
    """Stops a score of other texts, which bits per byte would compare all the same."""
    from types import SimpleNamespace

    data = open_dataset(tiny_data)
    model: Any = SimpleNamespace(folder=other)
    again = open_dataset(retokenized(data, model, tmp_path / "again"))
    assert len(again.validation) == len(data.validation)
    assert again.vocab_size != data.vocab_size
    said = [sorted(sum(row["turn_bytes"]) for row in each.validation) for each in (data, again)]
    assert said[0] == said[1]


def test_only_bits_per_byte_compare_between_tokenizers(
    tiny_data: Path, tiny_checkpoint: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a KL between ids that mean different things, and a perplexity of larger tokens that looks worse."""
    work = BenchOptions(prompt_tokens=20, new_tokens=8, repetitions=2, threads=1)
    bench_in_process(monkeypatch)
    report = bench([str(tiny_checkpoint), str(other)], tmp_path / "out", tiny_data, work)
    first, second = report["rows"]
    assert second["error"] is None
    assert (second["kl"], second["top1"], second["perplexity"], second["token_accuracy"]) == (None,) * 4
    assert second["bits_per_byte"] > 0
    assert second["perplexity_ratio"] is None
    assert any(line.startswith(f"{second['name']}: another tokenizer than {first['name']}'s") for line in notes(report))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows"][1]["kl"] is None
