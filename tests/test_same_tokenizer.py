"""One notion of the same tokenizer: the same ids for every text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer

from chitchat.data.dataset import build_dataset, open_dataset
from chitchat.data.options import DataOptions
from chitchat.errors import BadInput
from chitchat.formats.same_tokenizer import tokenizer_differences, tokenizer_identity
from chitchat.tokenizer import read_vocab_txt, train_tokenizer
from chitchat.training.options import TrainOptions
from chitchat.training.train import train

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你好", *"abcdefghijklmnopqrstuvwxyz", "hello", "ok"]


def _record() -> dict[str, Any]:
    return dict(json.loads(train_tokenizer(["hello there you"] * 3, 280).backend_tokenizer.to_str()))


def _without(name: str, record: dict[str, Any]) -> None:
    record[name] = None


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "a token less": (lambda r: r["model"]["vocab"].pop(next(reversed(r["model"]["vocab"]))), ["vocabulary"]),
    "a merge less": (lambda r: r["model"]["merges"].pop(), ["merges"]),
    "no normalizer": (lambda r: _without("normalizer", r), ["normalizer"]),
    "a space in front": (lambda r: r["pre_tokenizer"].update(add_prefix_space=True), ["pre-tokenizer"]),
    "no special token": (lambda r: r["added_tokens"].pop(), ["special tokens"]),
    "no decoder": (lambda r: _without("decoder", r), []),
    "padding": (lambda r: _without("padding", r), []),
    "offsets": (lambda r: r["pre_tokenizer"].update(trim_offsets=False), []),
    "a sequence of one": (lambda r: r.update(normalizer={"type": "Sequence", "normalizers": [r["normalizer"]]}), []),
    "an unknown token that is never written": (lambda r: r["model"].update(unk_token="[PAD]"), []),
    "merges as texts": (lambda r: r["model"].update(merges=[" ".join(pair) for pair in r["model"]["merges"]]), []),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_rules_that_decide_ids_are_compared_and_no_others(change: str) -> None:
    """Three notions of it stood in three rooms: `train` took data that `prune` refused."""
    record, (alter, names) = _record(), CHANGES[change]
    plain = json.dumps(record)
    alter(record)
    assert tokenizer_differences(plain, json.dumps(record)) == names
    assert (tokenizer_identity(plain) == tokenizer_identity(json.dumps(record))) is (not names)


def test_a_vocab_txt_is_the_tokenizer_that_transformers_makes_of_it(tmp_path: Path) -> None:
    """A data set made from the file must fit the checkpoint that transformers saved with it."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    ours, theirs = read_vocab_txt(tmp_path / "vocab.txt"), BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    assert tokenizer_differences(ours.backend_tokenizer.to_str(), theirs.backend_tokenizer.to_str()) == []


def test_the_same_vocabulary_under_another_normalizer_does_not_train(
    tiny_corpus: Path, tmp_path: Path, tiny_model: Any
) -> None:
    """It trained, and the result encoded `Hello OK` as two [UNK]."""
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    build_dataset(
        [str(tiny_corpus)],
        tmp_path / "data",
        DataOptions(tokenizer=str(tmp_path / "lower" / "vocab.txt"), validation=0.2),
    )
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    tiny_model.save_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert config["vocab_size"] > len(WORDS)
    with pytest.raises(BadInput, match=r"another tokenizer .*with another normalizer; make it with .*--tokenizer"):
        train(tmp_path / "data", tmp_path / "out", TrainOptions(init=str(checkpoint), epochs=1))
    (checkpoint / "tokenizer_config.json").unlink()
    from chitchat.checkpoint import load_tokenizer

    open_dataset(tmp_path / "data").check_tokenizer(load_tokenizer(checkpoint), "here")
