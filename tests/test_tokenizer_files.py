"""A tokenizer is its files: which class and which version wrote them changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from chitchat.checkpoint import load_tokenizer
from chitchat.dialogue import dialogue_of, encode_text
from chitchat.errors import BadInput
from chitchat.formats.tokenizer_files import read_tokenizer, save_tokenizer
from chitchat.tokenizer import open_tokenizer, tokenizer_of

TEXT = "hello, how are you? 你好 <|endoftext|> HÉLLO"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<S>", "<T>", *"你好", *"abcdefghijklmnopqrstuvwxyz", "hello", "##lo"]


def _json(path: Path, **changes: object) -> None:
    record = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**record, **changes}))


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path) -> Path:
    """The tokenizer of the tiny data set in a folder of its own."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "it").mkdir(exist_ok=True)
        shutil.copy(tiny_data / name, tmp_path / "it" / name)
    return tmp_path / "it"


@pytest.fixture
def vocab_txt(tmp_path: Path) -> Path:
    """A vocabulary as GPT2-chitchat publishes it: without [MASK]."""
    (tmp_path / "chinese").mkdir()
    (tmp_path / "chinese" / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return tmp_path / "chinese" / "vocab.txt"


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True},  # transformers 5
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True},
        {"tokenizer_class": None},
        {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["code.MyTokenizer", None]}},
        {"extra_special_tokens": ["[CLS]"]},
        {"extra_special_tokens": {"image_token": "[CLS]"}, "additional_special_tokens": ["[SEP]"]},
        {"mask_token": "[MASK]", "additional_special_tokens": ["<speaker1>"]},
        {"cls_token": {"content": "[CLS]", "lstrip": False, "__type": "AddedToken"}},
        {"model_max_length": 1e30},
    ],
)
def test_whoever_wrote_the_folder_the_ids_are_the_same(changes: dict, folder: Path) -> None:
    """A folder saved by transformers 5 was refused with a line about path and network."""
    plain = read_tokenizer(folder)
    _json(folder / "tokenizer_config.json", **changes)
    found = read_tokenizer(folder)
    assert encode_text(found, [TEXT]) == encode_text(plain, [TEXT])
    assert found.get_vocab() == plain.get_vocab()
    assert dialogue_of(found) == dialogue_of(plain)


def test_a_tokenizer_json_alone_is_enough(folder: Path) -> None:
    """Without a class transformers raised a TypeError; the roles are those of the names that everybody uses."""
    plain = dialogue_of(read_tokenizer(folder))
    for path in folder.iterdir():
        if path.name != "tokenizer.json":
            path.unlink()
    assert dialogue_of(read_tokenizer(folder)) == plain


def test_a_vocabulary_without_mask_gets_none(vocab_txt: Path, tmp_path: Path) -> None:
    """transformers appends it with an id past the model's table, and three stages refused the model's own tokenizer."""
    (vocab_txt.parent / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": len(WORDS)}))
    assert load_tokenizer(vocab_txt.parent).get_vocab() == {word: index for index, word in enumerate(WORDS)}


def test_a_token_that_transformers_appended_is_left_out_where_the_table_has_no_row(
    vocab_txt: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same fault once saved: tokenizer.json holds [MASK] with the id that follows the vocabulary."""
    theirs = BertTokenizer(vocab=str(vocab_txt))
    theirs.save_pretrained(tmp_path / "saved")
    assert theirs.convert_tokens_to_ids("[MASK]") == len(WORDS)
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": len(WORDS)}))
    found = load_tokenizer(tmp_path / "saved")
    assert len(found) == len(WORDS)
    assert "[MASK] left out, since the model's table has 36 rows" in capfd.readouterr().err
    assert encode_text(found, ["hello 你"]) == encode_text(load_tokenizer(vocab_txt.parent), ["hello 你"])
    assert (found.cls_token, found.sep_token, found.mask_token) == ("[CLS]", "[SEP]", None)


def test_a_tokenizer_with_words_past_the_table_is_refused(folder: Path) -> None:
    """Those are read from text, and their rows are not there."""
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 250}))
    with pytest.raises(BadInput, match=r"has 300 tokens and the model's table 250 rows.*--tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2s_files_in_either_naming_give_gpt2s_ids(names: tuple[str, str], tmp_path: Path) -> None:
    """openai/gpt-2 calls them encoder.json and vocab.bpe."""
    model = json.loads(_gpt2(tmp_path).backend_tokenizer.to_str())["model"]
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / names[0]).write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "it" / names[1]).write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    theirs = GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    for spec in (tmp_path / "it", tmp_path / "it" / names[0]):
        found = open_tokenizer(str(spec))
        assert encode_text(found, ["hello there\n  you"])[0] == theirs("hello there\n  you")["input_ids"]
        assert dialogue_of(found).family == "dialogpt"
    (tmp_path / "it" / names[1]).unlink()
    with pytest.raises(BadInput, match=f"has {names[0]} and lacks {names[1]}"):
        open_tokenizer(str(tmp_path / "it"))


def _gpt2(tmp_path: Path) -> PreTrainedTokenizerFast:
    from chitchat.tokenizer import train_tokenizer

    return train_tokenizer(["hello there you"] * 3, 280, "dialogpt")


def test_tokens_of_added_tokens_json_have_the_ids_that_it_says(vocab_txt: Path) -> None:
    """GPT2-chitchat's forks add speakers there."""
    added = {"[speaker2]": len(WORDS) + 1, "[speaker1]": len(WORDS)}
    (vocab_txt.parent / "added_tokens.json").write_text(json.dumps(added))
    found = read_tokenizer(vocab_txt.parent)
    assert {token: found.convert_tokens_to_ids(token) for token in added} == added
    (vocab_txt.parent / "added_tokens.json").write_text(json.dumps({"[speaker1]": 99}))
    with pytest.raises(BadInput, match=r"\[speaker1\] has id 99, which does not follow"):
        read_tokenizer(vocab_txt.parent)


def test_saving_what_was_loaded_gives_the_same_bytes_and_opens_in_transformers(folder: Path, tmp_path: Path) -> None:
    """transformers notes where it loaded from, so the same data set had two hashes; and version 4 must read it too."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    save_tokenizer(read_tokenizer(folder), tmp_path / "one")
    save_tokenizer(read_tokenizer(tmp_path / "one"), tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    config = json.loads((tmp_path / "one" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    theirs = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert theirs(TEXT)["input_ids"] == read_tokenizer(folder)(TEXT)["input_ids"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tokenizer.json": "{"}, r"tokenizer\.json: cannot be read"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json: cannot be read"),
        ({"tokenizer.model": "x"}, "SentencePiece"),
        ({"vocab_small.txt": "x"}, r"but vocab_small\.txt\); give --tokenizer"),
        ({"vocab.json": "[]", "merges.txt": ""}, r"vocab\.json: holds a list"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "not a byte-level vocabulary"),
        ({"vocab.txt": "a\nb\n"}, r"not a BERT vocabulary \(no \[PAD\]"),
    ],
)
def test_what_is_no_tokenizer_is_one_line_that_names_the_file(files: dict[str, str], says: str, tmp_path: Path) -> None:
    """Each ended in a traceback, or in a line about the network."""
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=says) as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_tokenizer_takes_the_given_one_or_the_data_sets(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """GPT2-chitchat's own layout, `model/epoch40/`, has the vocabulary elsewhere."""
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_checkpoint / name, tmp_path / "bare" / name)
    own = read_tokenizer(folder)
    assert tokenizer_of(tmp_path / "bare", str(folder)).get_vocab() == own.get_vocab()
    assert capfd.readouterr().err == ""
    assert tokenizer_of(tmp_path / "bare", None, own) is own
    assert "holds no tokenizer; that of the data set is taken" in capfd.readouterr().err
    with pytest.raises(BadInput, match=r"holds no tokenizer.*give --tokenizer"):
        tokenizer_of(tmp_path / "bare")


def test_special_tokens_without_a_role_are_written_under_the_name_that_both_versions_read(
    folder: Path, tmp_path: Path
) -> None:
    """transformers 4 takes a list under version 5's name for a mapping, and ends in an AttributeError."""
    tokenizer = read_tokenizer(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<S>", "<T>"]})
    save_tokenizer(tokenizer, tmp_path / "to")
    written = json.loads((tmp_path / "to" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert written["additional_special_tokens"] == ["<S>", "<T>"]
    assert not isinstance(written.get("extra_special_tokens"), list)
    for again in (read_tokenizer(tmp_path / "to"), AutoTokenizer.from_pretrained(tmp_path / "to")):
        assert list(again.extra_special_tokens) == ["<S>", "<T>"]
        assert again.encode("a<S>b") == tokenizer.encode("a<S>b")
