"""Tokenizers: trained, read from a vocab.txt, taken from a checkpoint; saved, loaded again, decoded in a stream."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from chitchat.dialogue import encode_text
from chitchat.errors import BadInput
from chitchat.tokenizer import open_tokenizer, read_vocab_txt, train_tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHINESE = "我喜欢你好年月日用吗。，！？“”"


def _vocab_txt(folder: Path, words: list[str], specials: list[str] = SPECIALS, end: str = "\n") -> Path:
    path = folder / "vocab.txt"
    path.write_bytes(end.join([*specials, *words, ""]).encode())
    return path


def _chinese(folder: Path) -> PreTrainedTokenizerFast:
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for prefix in ("", "##")]
    return read_vocab_txt(_vocab_txt(folder, [*CHINESE, *letters, "iphone", "hello", "there", ".", "!"]))


def _streamed(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    stream = DecodeStream(skip_special_tokens=True)
    return "".join(stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids)


def test_a_trained_tokenizer_has_its_special_tokens_first_and_knows_all_text() -> None:
    """Special tokens at the end move with the vocabulary size, and a byte that is missing is text that is lost."""
    tokenizer = train_tokenizer(["hello hello there"] * 4, 270)
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]"]) == [0, 1, 2]
    assert tokenizer.unk_token is None
    text = "hello 你好 \U0001f600\x00\x7f é\n"
    assert tokenizer.decode(encode_text(tokenizer, [text])[0]) == text
    assert train_tokenizer(["a"], 257, "dialogpt").eos_token_id == 0


def test_training_twice_gives_the_same_tokenizer() -> None:
    """A hash map's order in the alphabet made two builds of one corpus differ."""
    texts = [f"turn {number} of {number * 7919 % 1000} words" for number in range(500)]
    one, other = (train_tokenizer(texts, 400).backend_tokenizer.to_str() for _ in range(2))
    assert one == other


def test_training_stops_reading_where_distinct_words_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Chinese clause is one word to byte-level BPE: 16 MB of them took 2 GB. Words that repeat cost nothing."""
    monkeypatch.setattr("chitchat.tokenizer.DISTINCT_BYTES", 300)
    read = []
    clauses = ("你好" * 5 + chr(0x4E00 + number) for number in range(100))
    train_tokenizer((read.append(text) or text for text in clauses), 270)
    assert len(read) == 10  # 33 bytes each
    read.clear()
    train_tokenizer((read.append(text) or text for text in ["hello there"] * 100), 270)
    assert len(read) == 100


@pytest.mark.parametrize(
    ("size", "family", "least"), [(258, "chitchat", 259), (256, "dialogpt", 257), (-1, "chitchat", 259)]
)
def test_a_vocabulary_too_small_for_the_bytes_is_refused(size: int, family: str, least: int) -> None:
    """The trainer gives more tokens than were asked for and says nothing."""
    with pytest.raises(BadInput, match=f"--vocab-size {size}: .* at least {least}"):
        train_tokenizer(["a"], size, family)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_vocab_txt_gives_the_ids_of_transformers_bert_tokenizer(tmp_path: Path, end: str) -> None:
    """A vocabulary read otherwise than the model was trained with is noise to the model."""
    path = _vocab_txt(tmp_path, [*CHINESE, "hello", "##s", "un", "##known"], end=end)
    text = "我喜欢hellos, Unknown  HÉLLOs你好！klingon"
    ours = encode_text(read_vocab_txt(path), [text])[0]
    assert (
        ours
        == BertTokenizer(vocab=str(_vocab_txt(tmp_path, [*CHINESE, "hello", "##s", "un", "##known"])))(
            text, add_special_tokens=False
        )["input_ids"]
    )


def test_a_vocabulary_with_capitals_keeps_capitals(tmp_path: Path) -> None:
    """Lower case turned every name in a cased vocabulary into an unknown token."""
    tokenizer = read_vocab_txt(_vocab_txt(tmp_path, ["Paris", "paris"]))
    assert tokenizer.convert_ids_to_tokens(encode_text(tokenizer, ["Paris paris"])[0]) == ["Paris", "paris"]


def test_chinese_is_decoded_without_spaces_and_the_stream_gives_the_same(tmp_path: Path) -> None:
    """BERT's decoder puts a space between any two tokens; a stream that differs shows text that is not the reply."""
    tokenizer = _chinese(tmp_path)
    for text in ("你好！我喜欢iphone吗？“hello there.”", "2019年06月25日，hello there", "hello 你好 there! 我"):
        ids = encode_text(tokenizer, [text])[0]
        assert tokenizer.unk_token_id not in ids
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert whole == text.replace(" 你好 ", "你好").replace("! 我", "!我")
        assert _streamed(tokenizer, ids) == whole


def test_any_tokenizer_streams_as_it_decodes() -> None:
    """A character of several bytes that a stream splits comes out as U+FFFD."""
    tokenizer = train_tokenizer(["你好 there"], 260)
    ids = encode_text(tokenizer, ["你好 \U0001f600 there"])[0]
    assert _streamed(tokenizer, ids) == tokenizer.decode(ids) == "你好 \U0001f600 there"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "bert-folder"])
def test_a_saved_tokenizer_is_loaded_unchanged_by_transformers(kind: str, tmp_path: Path) -> None:
    """What AutoTokenizer makes of the folder is what every other tool will use."""
    if kind == "bpe":
        tokenizer = train_tokenizer(["hello there"] * 3, 300)
    elif kind == "wordpiece":
        tokenizer = _chinese(tmp_path)
    else:
        (tmp_path / "foreign").mkdir()
        words = [*CHINESE, "hello", "there"]
        BertTokenizer(vocab=str(_vocab_txt(tmp_path, words))).save_pretrained(tmp_path / "foreign")
        tokenizer = open_tokenizer(str(tmp_path / "foreign"))
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.is_fast
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert str(tmp_path) not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    text = "你好！ hello there"
    assert encode_text(loaded, [text]) == encode_text(tokenizer, [text])
    ids = encode_text(tokenizer, [text])[0]
    edge = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert edge.decode(ids) == loaded.decode(ids) == tokenizer.decode(ids)
    assert loaded.decode(ids).replace(" hello", "hello") == "你好！hello there"


def test_the_vocabulary_of_a_checkpoint_is_taken_as_it_is(tmp_path: Path) -> None:
    """A tokenizer with one token more than the model's table crashes in the middle of training."""
    train_tokenizer(["hello there"] * 3, 300).save_pretrained(tmp_path / "model")
    vocab = json.loads((tmp_path / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    assert open_tokenizer(str(tmp_path / "model")).get_vocab() == vocab


def _refusal(spec: str, dialogue: str | None = None) -> str:
    with pytest.raises(BadInput) as error:
        open_tokenizer(spec, dialogue)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_path_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    """Each of these ended in a traceback of transformers that spoke of the hub."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "words.json").write_text("{}")
    assert "holds no tokenizer" in _refusal(str(tmp_path / "empty"))
    assert "cannot be read" in _refusal(str(tmp_path / "broken"))
    assert "neither a vocab.txt nor a folder" in _refusal(str(tmp_path / "words.json"))
    assert "no such file or folder" in _refusal(str(tmp_path / "gone"))
    for case in ("empty", "broken", "words.json", "gone"):
        assert f"--tokenizer {tmp_path / case}" in _refusal(str(tmp_path / case))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"hello\nthere\n", "no [PAD], [UNK], [CLS], [SEP]"),
        ("\n".join([*SPECIALS, "a", "b", "a"]).encode(), "the token 'a' twice"),
        ("\n".join([*SPECIALS, "你"]).encode("gb18030"), "line 6: is not UTF-8"),
        (b"", "no [PAD]"),
    ],
)
def test_a_text_file_that_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    """Any text file was taken for a vocabulary, and all text was unknown."""
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    assert what in _refusal(str(path))
    assert str(path) in _refusal(str(path))


def test_a_dialogue_format_that_the_tokenizer_cannot_write_is_refused(tmp_path: Path) -> None:
    """--dialogue chitchat on a tokenizer without [CLS] trained a model that no turn ends for."""
    train_tokenizer(["hello"] * 3, 260, "dialogpt").save_pretrained(tmp_path / "model")
    assert "--dialogue chitchat" in _refusal(str(tmp_path / "model"), "chitchat")
