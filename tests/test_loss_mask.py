"""The loss mask of a turn, from the corpus to every place where a loss or a figure is taken."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, load_from_disk
from transformers import GPT2LMHeadModel

from bench.evaluate.other_tokenizer import retokenized
from chitchat.data.builder import build_dataset
from chitchat.data.dataset import ChatData, open_dataset
from chitchat.data.options import DataOptions
from chitchat.errors import BadInput
from chitchat.lineage import Stage, write_lineage
from chitchat.score import score, torch_scorer
from compress.calibrate.batches import calibration_batches
from compress.distill.samples import teacher_conversations
from compress.prune.retokenize import retokenize
from compress.prune.vocabulary import choose_vocabulary, trim_tokenizer, used_ids


def _corpus(path: Path, count: int = 40) -> str:
    """Conversations of four turns; the second one does not count, and in every third one only the last one does."""
    rows = []
    for number in range(count):
        weights = [0, 0, 0, 1] if number % 3 == 0 else [1, 0, 1, 1]
        roles = ["user", "assistant"] * 2
        said = [f"{role} {number} says thing {place} of it" for place, role in enumerate(roles)]
        rows.append({"messages": [
            {"role": role, "content": text, "weight": weight}
            for role, text, weight in zip(roles, said, weights, strict=True)
        ]})  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> ChatData:
    folder = tmp_path_factory.mktemp("masked")
    build_dataset([_corpus(folder / "c.jsonl")], folder / "data", DataOptions(vocab_size=300, validation=0.25))
    return open_dataset(folder / "data")


def _older(data: ChatData, folder: Path) -> ChatData:
    """The data set as one from before there was a mask: the column is gone."""
    shutil.copytree(data.path, folder)
    (folder / "lineage.json").unlink()
    for split in ("train", "validation"):
        rows = load_from_disk(str(folder / split)).remove_columns("counts")
        kept = Dataset(pa.table(rows.data.table.combine_chunks()))
        shutil.rmtree(folder / split)
        kept.save_to_disk(str(folder / split))
    write_lineage(folder, Stage("data", {}, seed=0))
    return open_dataset(folder)


@pytest.mark.parametrize("replies_only", [False, True])
@pytest.mark.parametrize("context", [9, 16, 64])
def test_only_turns_that_count_have_labels_and_bytes(masked: ChatData, context: int, replies_only: bool) -> None:
    """Answers that OpenAI's weights exclude were learned, and bits per byte were divided by their bytes as well."""
    windows = masked.windows("train", context, replies_only)
    labels = bytes_of = 0
    for row in masked.train:
        counts = zip(row["counts"], row["replies"], row["turn_lengths"], row["turn_bytes"], strict=True)
        for counted, reply, length, size in counts:
            if counted and (reply or not replies_only):
                labels, bytes_of = labels + length, bytes_of + size
    found = [sum(label != -100 for label in windows[number]["labels"]) for number in range(len(windows))]
    assert sum(found) == labels
    assert all(found), "a window without a label teaches nothing, and a batch of them divides by zero"
    assert windows.text_bytes.sum() == bytes_of
    for number in range(len(windows)):
        window = windows[number]
        row = masked.train[int(windows.conversation[number])]
        assert window["input_ids"][1:] == row["input_ids"][1:][: len(window["input_ids"]) - 1] or context < 64


def test_the_report_tells_how_many_turns_do_not_count(masked: ChatData, capsys: pytest.CaptureFixture[str]) -> None:
    """A mask in the wrong field, all zero or all one, must be seen before hours of training."""
    uncounted = sum(not counted for row in [*masked.train, *masked.validation] for counted in row["counts"])
    assert masked.report["uncounted_turns"] == uncounted > 50
    assert masked.report["train"]["uncounted_turns"] + masked.report["validation"]["uncounted_turns"] == uncounted
    folder = masked.path.parent
    build_dataset([str(folder / "c.jsonl")], folder / "again", DataOptions(vocab_size=300, validation=0.25))
    assert f"not in the loss: {uncounted} of 160 turns (weight 0)" in capsys.readouterr().err
    assert open_dataset(folder / "again").identity == masked.identity


def test_a_split_without_a_turn_that_counts_is_refused(tmp_path: Path) -> None:
    """Training divided by zero labels; the held-out figures were `nan`."""
    (tmp_path / "c.tsv").write_text("0.0 a\t0.0 b\n0.0 c\t0.0 d\n0.0 e\t0.0 f\n")
    with pytest.raises(BadInput, match="no turn of the train split counts in the loss, all 4 have weight 0"):
        build_dataset([str(tmp_path / "c.tsv")], tmp_path / "data", DataOptions(vocab_size=300))
    assert not (tmp_path / "data").exists()


def test_in_an_older_data_set_every_turn_counts(masked: ChatData, tmp_path: Path) -> None:
    """A data set from before there was a mask must go on working, in every figure."""
    older = _older(masked, tmp_path / "older")
    windows = older.windows("train", 64)
    assert windows.text_bytes.sum() == sum(map(sum, older.train["turn_bytes"][:]))
    assert all(
        window["labels"][1:] == window["input_ids"][1:] for window in map(windows.__getitem__, range(len(windows)))
    )


def test_the_score_counts_masked_turns_neither_in_nats_nor_in_bytes(
    masked: ChatData, tiny_model: GPT2LMHeadModel
) -> None:
    """Bits per byte of another text than the one that is scored."""
    found = score(torch_scorer(tiny_model), masked.windows("validation", 64))
    expected = [
        (length, size)
        for row in masked.validation
        for length, size, counted in zip(row["turn_lengths"], row["turn_bytes"], row["counts"], strict=True)
        if counted
    ]
    assert found.tokens == sum(length for length, _ in expected)
    assert found.bytes == sum(size for _, size in expected)


def test_calibration_takes_its_losses_where_there_are_labels(masked: ChatData) -> None:
    """Importance by gradients would have been that of turns which are not learned."""
    batches = calibration_batches(masked.windows("train", 64), masked.dialogue.pad_id, 2_000)
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            wanted = labels != -100
            assert wanted.any()
            assert (labels[wanted] == ids[wanted]).all()
    assert sum(int((batch["labels"] != -100).sum()) for batch in batches) < sum(
        int(batch["attention_mask"].sum()) for batch in batches
    )


def test_a_teacher_goes_on_from_a_turn_that_does_not_count_without_a_label_on_it(
    masked: ChatData, tiny_model: GPT2LMHeadModel
) -> None:
    """Healing learned first turns by heart that the corpus excludes."""
    written = teacher_conversations(tiny_model, masked, 32, 1_000, seed=0)
    excluded = {tuple(row["input_ids"][:7]) for row in masked.train if not row["counts"][0]}
    assert {bool(begin) for begin in written.labelled_from} == {False, True}
    for ids, begin in zip(written.ids, written.labelled_from, strict=True):
        assert bool(begin) == (tuple(ids[:7]) in excluded)


@pytest.mark.parametrize("older", [False, True])
def test_a_trimmed_vocabulary_keeps_the_mask(masked: ChatData, tmp_path: Path, older: bool) -> None:
    """Healing after --vocab read a copy of the data set whose mask was gone."""
    data = _older(masked, tmp_path / "older") if older else masked
    keep = choose_vocabulary(data.tokenizer, used_ids(data))
    copy = retokenize(data, trim_tokenizer(data.tokenizer, keep), tmp_path / "copy")
    for split in ("train", "validation"):
        before, after = getattr(masked, split), getattr(copy, split)
        counts = [[True] * len(turns) for turns in before["counts"][:]] if older else before["counts"][:]
        assert after["counts"][:] == counts
    assert copy.report["uncounted_turns"] == (0 if older else masked.report["uncounted_turns"])


def test_another_tokenizers_copy_keeps_sides_and_mask(masked: ChatData, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A bench row of another tokenizer was measured on other turns than the rows beside it."""
    model: Any = SimpleNamespace(folder=tiny_checkpoint)
    copy = open_dataset(retokenized(masked, model, tmp_path / "copy"))

    def told(data: ChatData) -> list[list[tuple[bool, bool, int]]]:
        rows = data.validation
        return sorted(list(zip(row["replies"], row["counts"], row["turn_bytes"], strict=True)) for row in rows)

    assert told(copy) == told(masked)
    assert np.isclose(
        copy.windows("validation", 256).text_bytes.sum(), masked.windows("validation", 256).text_bytes.sum()
    )
