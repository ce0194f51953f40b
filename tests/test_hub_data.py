"""`hf:` data sets, by the real `datasets`: folders of files and saved ones, splits, columns, and no network."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from chitchat.data.builder import build_dataset
from chitchat.data.columns import parse_columns
from chitchat.data.conversation import ReadStats
from chitchat.data.corpora import open_corpus
from chitchat.data.dataset import open_dataset
from chitchat.data.hub import HubData
from chitchat.data.options import DataOptions
from chitchat.errors import BadInput

SIDES = (("user", "hi"), ("assistant", "yo"))
ROWS = [{"messages": [{"role": role, "content": f"{text} {n}"} for role, text in SIDES]} for n in range(5)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local data sets in several forms."""
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("hub")
    for name, rows in (("train", ROWS), ("test", ROWS[:2])):
        (folder / "files").mkdir(exist_ok=True)
        (folder / "files" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    DatasetDict({"train": Dataset.from_list(ROWS), "validation": Dataset.from_list(ROWS[:3])}).save_to_disk(
        folder / "splits"
    )
    (folder / "parquet").mkdir()
    rows = [{"q": "hi", "a": "yo", "turns_of": ["x", "y", "z"], "n": 1}] * 3
    Dataset.from_list(rows).to_parquet(folder / "parquet" / "train-00000.parquet")
    (folder / "rows").mkdir()
    said = [(1, "A", "x"), (1, "B", "y"), (2, "A", "z"), (2, "B", "w")]
    Dataset.from_list([{"c": c, "who": who, "text": text} for c, who, text in said]).to_parquet(
        folder / "rows" / "data.parquet"
    )
    (folder / "broken").mkdir()
    (folder / "broken" / "train.jsonl").write_text('{"messages": [\n')
    (folder / "nothing").mkdir()
    return folder


def _read(spec: str, columns: str | None = None) -> list[list[str]]:
    corpus = open_corpus(spec).read_by(parse_columns(columns) if columns else None, None)
    return [[turn.text for turn in each] for each in corpus.conversations(ReadStats())]


def _refusal(spec: str, columns: str | None = None) -> str:
    with pytest.raises(BadInput) as error:
        _read(spec, columns)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "columns", "first", "count"),
    [
        ("files", None, ["hi 0", "yo 0"], 5),
        ("files:test", None, ["hi 0", "yo 0"], 2),
        ("saved", None, ["hi 0", "yo 0"], 5),
        ("splits", None, ["hi 0", "yo 0"], 5),
        ("splits:validation", None, ["hi 0", "yo 0"], 3),
        ("parquet", "q,a", ["hi", "yo"], 3),
        ("parquet", "turns_of", ["x", "y", "z"], 3),
        ("rows", "conversation=c,speaker=who,text=text", ["x", "y"], 2),
    ],
)
def test_a_data_set_on_disk_is_read_by_its_columns(
    place: Path, name: str, columns: str | None, first: list[str], count: int
) -> None:
    """`load_dataset` refuses the output of `save_to_disk`, which users without a network have."""
    read = _read(f"hf:{place}/{name}", columns)
    assert read[0] == first
    assert len(read) == count


@pytest.mark.parametrize(
    ("name", "columns", "what"),
    [
        ("files:nope", None, "no split nope; "),
        ("saved:test", None, "one data set without splits"),
        ("parquet", None, "(its fields are q, a, turns_of, n); say with --columns"),
        ("parquet", "q,z", "--columns z: "),
        ("parquet", "turns_of,q", "column turns_of holds list, not text; name it alone"),
        ("nothing", None, "`datasets` cannot read it"),
        ("broken", None, "`datasets` cannot read it (JSON parse error"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_one_line(place: Path, name: str, columns: str | None, what: str) -> None:
    """`datasets` raises a different exception for each of these."""
    assert what in _refusal(f"hf:{place}/{name}", columns)


def test_a_name_without_a_folder_fails_at_once_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network `datasets` tries for half a minute and prints a line for each try."""
    assert "HF_HUB_OFFLINE is set" in _refusal("hf:nobody/nothing:train")
    assert "no such folder" in _refusal("hf:./gone")
    assert "no such folder or name of the hub" in _refusal("hf:no such name!")
    for spec in ("hf:", "hf:a:", "hf:a:b:c:d"):
        assert "write hf:NAME" in _refusal(spec)


def test_a_name_may_have_a_configuration_and_a_folder_colons(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hf:/data/a:b` was split at its own colon."""
    found = HubData.parse("hf:user/name:cfg:test")
    assert (found.name, found.config, found.split) == ("user/name", "cfg", "test")
    (place / "a:b").mkdir()
    monkeypatch.chdir(place)
    assert HubData.parse("hf:a:b").split is None
    assert HubData.parse("hf:a:b:test").split == "test"
    assert open_corpus(f"hf:{place}/files:test").name == "hf:files:test"


def test_a_built_data_set_does_not_depend_on_where_its_source_lies(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path or a cache in the result would run every later stage again on another machine."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    first = build_dataset([f"hf:{place}/files"], tmp_path / "one", DataOptions(vocab_size=280))
    (tmp_path / "moved").mkdir()
    (place / "files").rename(tmp_path / "moved" / "files")
    try:
        second = build_dataset([f"hf:{tmp_path}/moved/files"], tmp_path / "two", DataOptions(vocab_size=280))
    finally:
        (tmp_path / "moved" / "files").rename(place / "files")
    assert first == second
    assert open_dataset(tmp_path / "one").identity == open_dataset(tmp_path / "two").identity
    assert not (tmp_path / "home").exists(), "something was cached in the home folder"


def test_reading_is_a_stream(tmp_path: Path) -> None:
    """A data set of the hub is larger than memory; the first rows must come without the last ones."""
    (tmp_path / "big").mkdir()
    rows = [ROWS[0], *({"messages": [{"role": "user", "content": "x" * 1_000_000}]} for _ in range(25))]
    (tmp_path / "big" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"messages": [broken\n')
    conversations = open_corpus(f"hf:{tmp_path}/big").conversations(ReadStats())
    assert next(conversations)[0].text == "hi 0"
    with pytest.raises(BadInput):
        list(conversations)
