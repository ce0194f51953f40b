"""A BERT vocab.txt is read as the model was trained with it: in lower case unless the vocabulary is cased."""

import json
from pathlib import Path

import pytest
from transformers import BertTokenizer

from chitchat.dialogue import encode_text
from chitchat.formats.wordpiece import is_cased, read_wordpiece

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SMALL = list("abcdefghijklmnopqrstuvwxyz")
CAPITALS = [letter.upper() for letter in SMALL]
CYRILLIC = list("абвгдежзиклмн")
CHINESE = list("你好密码股我")


@pytest.mark.parametrize(
    ("words", "cased"),
    [
        ([*CHINESE, *SMALL, "<S>", "<T>"], False),  # both published vocabularies of GPT2-chitchat
        ([*CHINESE, *SMALL, "Ⅱ", "Ω", "℃", "Ａ"], False),
        ([*CHINESE, *SMALL, "[unused1]", "[EOS]", "<UNK>", "<|endoftext|>"], False),
        ([*CHINESE, *SMALL, "T恤", "K歌", "KTV", "A", "B"], False),
        ([*CHINESE, "Ω", "Ⅱ"], False),
        ([*CHINESE, "wifi", "ok"], False),
        (CHINESE, False),
        ([*SMALL, *CAPITALS, "Paris"], True),
        ([*SMALL, *(f"##{letter}" for letter in CAPITALS)], True),
        (["Paris", "paris"], True),
        (["Hello", "World", "##s"], True),
        ([*CYRILLIC, *(letter.upper() for letter in CYRILLIC)], True),
        (CYRILLIC, False),
    ],
)
def test_a_vocabulary_is_cased_where_most_letters_have_their_capital(words: list[str], cased: bool) -> None:
    """`<S>`, `Ⅱ` or `Ω` made one cased, and `WIFI`, `OK` and `QQ` became [UNK] in silence."""
    assert is_cased([*SPECIALS, *words]) is cased


@pytest.mark.parametrize("odd", [["<S>", "<T>"], ["Ⅱ"], ["Ω"], ["T恤"]])
def test_text_in_capitals_and_with_accents_is_known_to_a_vocabulary_of_small_letters(
    odd: list[str], tmp_path: Path
) -> None:
    """`WIFI密码` was `[UNK] 密 码` where the source gives `wifi 密 码`."""
    words = [*SPECIALS, *odd, *CHINESE, *SMALL, *(f"##{letter}" for letter in SMALL), "wifi", "ok", "qq", "cafe"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = read_wordpiece(tmp_path / "vocab.txt")
    theirs = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    for text in ("WIFI密码", "OK", "QQ", "A股", "café", "Hello OK", "Ⅱ", "ÀÉ", "T恤"):
        ids = encode_text(tokenizer, [text])[0]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
    assert tokenizer.convert_ids_to_tokens(encode_text(tokenizer, ["WIFI密码"])[0]) == ["wifi", "密", "码"]


@pytest.mark.parametrize(("said", "tokens"), [(True, ["paris"]), (False, ["Paris"])])
def test_a_tokenizer_config_beside_the_vocabulary_decides(said: bool, tokens: list[str], tmp_path: Path) -> None:
    """A guess never stands against what the files say."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "Paris", "paris"]), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": said}))
    tokenizer = read_wordpiece(tmp_path / "vocab.txt")
    assert tokenizer.convert_ids_to_tokens(encode_text(tokenizer, ["Paris"])[0]) == tokens
