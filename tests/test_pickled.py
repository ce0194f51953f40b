"""GPT2-chitchat's train.pkl: ids are unchanged, and the file can run nothing."""

import gzip
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chitchat.data.conversation import ReadStats, Turn
from chitchat.data.corpora import open_corpus
from chitchat.data.dataset import build_dataset, open_dataset
from chitchat.data.options import DataOptions
from chitchat.data.pickled import id_lists
from chitchat.errors import BadInput
from chitchat.formats.wordpiece import read_wordpiece

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你好吗我很", "hi", "##s", "。", *"一二三四五六七八九十"]
CLS, SEP, UNK = 2, 3, 1
GOOD = [[CLS, 5, 6, 7, SEP, 8, 9, 6, SEP], [CLS, 10, 11, SEP, UNK, 5, SEP, 6, SEP], [CLS, 5, SEP]]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return path


def _read(path: Path, content: bytes, vocabulary: Path, stats: ReadStats | None = None) -> list[list[Turn]]:
    path.write_bytes(content)
    corpus = open_corpus(str(path)).read_by(None, read_wordpiece(vocabulary))
    return list(corpus.conversations(stats or ReadStats()))


def _refusal(path: Path, content: bytes, vocabulary: Path) -> str:
    with pytest.raises(BadInput) as error:
        _read(path, content, vocabulary)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_turns_are_the_ids_between_the_ends_of_turns(tmp_path: Path, vocabulary: Path, protocol: int) -> None:
    """Every protocol writes lists in another way; the old ones are text."""
    stats = ReadStats()
    first, second = _read(tmp_path / "train.pkl", pickle.dumps(GOOD, protocol), vocabulary, stats)
    assert first == [Turn("你好吗", False, ids=(5, 6, 7)), Turn("我很好", True, ids=(8, 9, 6))]
    assert [turn.ids for turn in second] == [(10, 11), (UNK, 5), (6,)]
    assert second[1].text == "\ufffd你"
    assert stats.short_conversations == 1


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_lists_longer_than_a_batch_of_the_pickler_come_whole(tmp_path: Path, protocol: int) -> None:
    """The pickler writes lists a thousand items at a time: ids of one batch became a conversation of their own."""
    chance = random.Random(0)
    lengths = [2500 if index % 300 == 0 else chance.choice((1, 5)) for index in range(2300)]
    lists = [[chance.randrange(70_000) for _ in range(length)] for length in lengths]
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(lists, protocol))
    assert list(id_lists(tmp_path / "c.pkl")) == lists
    (tmp_path / "c.pkl.gz").write_bytes(gzip.compress(pickle.dumps(lists[:50], protocol)))
    assert list(id_lists(tmp_path / "c.pkl.gz")) == lists[:50]


def test_the_ids_are_stored_as_they_are(tmp_path: Path, vocabulary: Path) -> None:
    """Ids that were decoded and encoded again lose what the tokenizer splits or spells otherwise."""
    chance = random.Random(0)
    given = []  # with `##s` at the start of turns, which no encoding of a text gives
    for _ in range(60):
        turns = [chance.choices([UNK, *range(5, len(TOKENS))], k=chance.randint(1, 6)) for _ in range(3)]
        given.append([CLS, *(each for turn in turns for each in [*turn, SEP])])
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(given))
    report = build_dataset(
        [str(tmp_path / "train.pkl")], tmp_path / "data", DataOptions(tokenizer=str(vocabulary), validation=0.2)
    )
    data = open_dataset(tmp_path / "data")
    stored = [row["input_ids"] for row in [*data.train, *data.validation]]
    assert {tuple(row) for row in stored} <= {tuple(row) for row in given}
    assert len(stored) == 60 - report["duplicates"]
    assert report["duplicates"] <= 2, "only texts that are alike in all but case and white space are repetitions"
    for row in data.train:
        assert sum(row["turn_lengths"]) + 1 == len(row["input_ids"])
        assert all(size > 0 for size in row["turn_bytes"])


def test_a_repeated_list_object_is_a_duplicate(tmp_path: Path, vocabulary: Path) -> None:
    """The pickler writes a repeated list as a reference; keeping all lists would need memory for the whole file."""
    talk, stats = [CLS, 5, SEP, 6, SEP], ReadStats()
    read = _read(tmp_path / "c.pkl", pickle.dumps([talk, talk, [CLS, 7, SEP, 6, SEP]]), vocabulary, stats)
    assert len(read) == 2
    assert stats.repeated_lists == 1


def test_what_is_left_out_of_a_conversation_is_counted(tmp_path: Path, vocabulary: Path) -> None:
    """The model would learn to end a turn where it was truncated."""
    stats = ReadStats()
    [read] = _read(tmp_path / "c.pkl", pickle.dumps([[CLS, 5, 0, SEP, SEP, 6, 4, SEP, 7]]), vocabulary, stats)
    assert [turn.ids for turn in read] == [(5,), (6,)]
    assert (stats.special_ids, stats.empty_turns, stats.cut_turns) == (2, 1, 1)


def test_a_tokenizer_is_asked_for_before_anything_is_read(tmp_path: Path) -> None:
    """Ids without their vocabulary are numbers."""
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(GOOD))
    with pytest.raises(BadInput, match=r"train\.pkl: holds token ids; give --tokenizer"):
        build_dataset([str(tmp_path / "train.pkl")], tmp_path / "data")


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["BOMB"],)


SELF: list[Any] = []
SELF.append([SELF])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([[CLS, 50, SEP]], "conversation 1: id 50 is beyond the vocabulary of 23 tokens"),
        ([GOOD[0], [SEP, 5, SEP]], "conversation 2: begins with [3], not with [CLS] (id 2)"),
        ([[]], "begins with []"),
        ([[CLS, -1, SEP]], "holds -1"),
        ([[CLS, True, SEP]], "true or false"),
        ([[CLS, 1 << 40, SEP]], "holds 1099511627776"),
        ([[CLS, 1 << 9000, SEP]], "a huge number"),
        ([(CLS, 5, SEP)], "a tuple"),
        (([CLS, 5, SEP],), "is a list of ids"),
        ({"a": [CLS]}, "a dict"),
        ([{"a": 1}], "a dict"),
        ([[CLS, [SEP]]], "lists within a conversation"),
        ([CLS, 5, SEP], "is a list of ids, not a list of conversations"),
        ("x", "text"),
        ([[CLS, "x"]], "text"),
        ([[CLS, 1.5]], "something else"),
        (None, "something else"),
        (5, "is not a list of conversations"),
        (SELF, "lists within a conversation"),
        ([np.array([CLS, 5, SEP])], "object"),
        ([_Bomb()], ""),
        (_Bomb(), ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, value: Any, what: str, protocol: int
) -> None:
    """A pickle can run any program when it is loaded; a corpus from elsewhere must not."""
    if protocol == 0 and what == "a huge number":
        pytest.skip("protocol 0 cannot write a number of so many digits")
    monkeypatch.setenv("BOMB", str(tmp_path / "trace"))
    assert what in _refusal(tmp_path / "c.pkl", pickle.dumps(value, protocol), vocabulary)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b".", b"\x80\x04.", b"(.", b"]", b"]](K\x02e", b"aaaa", b"(l", b"cos\nsystem\n(S'x'\ntR.", b"PK\x03\x04a",
        b"T\xff\xff\xff\x7fabc", b"\x8d" + b"\xff" * 8, b"I1" + b"0" * 100_000, b"L" + b"9" * 50_000 + b"L\n.",
        b"\x8b\xff\xff\xff\x7f", b"]" * 100_000, b"(" * 100_000, pickle.dumps(GOOD)[:-3],
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_one_line(tmp_path: Path, vocabulary: Path, content: bytes) -> None:
    """pickletools raises five exceptions for damage; some opcodes request gigabytes of memory."""
    _refusal(tmp_path / "c.pkl", content, vocabulary)


def test_any_changed_byte_gives_turns_or_a_line(tmp_path: Path, vocabulary: Path) -> None:
    """A fuzz: nothing but `BadInput` may come out of a pickle with wrong bytes in it."""
    chance, refused = random.Random(0), 0
    (tmp_path / "c.pkl").touch()
    corpus = open_corpus(str(tmp_path / "c.pkl")).read_by(None, read_wordpiece(vocabulary))
    for _ in range(1500):
        content = bytearray(pickle.dumps(GOOD, chance.randrange(6)))
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        (tmp_path / "c.pkl").write_bytes(content)
        try:
            list(corpus.conversations(ReadStats()))
        except BadInput:
            refused += 1
    assert refused > 1000
