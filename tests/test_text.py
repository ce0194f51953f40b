"""Text to ids and back: special tokens stay text, streams join to the whole, Chinese reads as Chinese."""

import random
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from support.tiny_codecs import SENTENCES, SPECIAL, byte_level, word_piece
from tokenizers import Tokenizer, models, pre_tokenizers

from chitchat.tokenizer import read_vocab_txt, train_tokenizer
from serve.errors import BadBundle, BadRequest
from serve.text import StopFilter, TextCodec


def trained() -> TextCodec:
    """A byte-level tokenizer as `compress data` makes it."""
    return TextCodec(Tokenizer.from_str(train_tokenizer(SENTENCES * 5, 400, "dialogpt").backend_tokenizer.to_str()))


def chinese_bert() -> TextCodec:
    """The tokenizer of a Chinese BERT vocab.txt, as `compress data --tokenizer vocab.txt` makes it."""
    letters = sorted({letter for sentence in SENTENCES for letter in unicodedata.normalize("NFD", sentence.lower())})
    words = ["how", "are", "fine", "thank", "##s", "##day", "to", *(f"##{letter}" for letter in "abcdefgh")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        tokens = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters])
        path.write_text("\n".join(token for token in tokens if token.strip()) + "\n", encoding="utf-8")
        return TextCodec(Tokenizer.from_str(read_vocab_txt(path).backend_tokenizer.to_str()))


CODECS = {"bpe": byte_level, "trained-bpe": trained, "wordpiece": word_piece, "chinese-bert": chinese_bert}


@pytest.fixture(scope="module", params=list(CODECS))
def codec(request: pytest.FixtureRequest) -> TextCodec:
    """All kinds of tokenizer in turn."""
    return CODECS[request.param]()


def random_texts(count: int) -> list[str]:
    """Texts of characters that are easily split: 1 to 4 bytes, combining marks, joined emoji, flags."""
    generator = np.random.default_rng(0)
    parts = ["a", " ", "é", "e\u0301", "a\u0300\u0301", "你", "好", "。", "𠀀", "𠮷", "का", "ﷺ", "한", "how", " are"]
    parts += ["😀", "👍🏽", "🇨🇳", "👩\u200d👩\u200d👧\u200d👦", "\ufe0f", "\u200d", "\n", "\U0010ffff", "\x00"]
    return ["".join(generator.choice(parts, generator.integers(1, 20))) for _ in range(count)]


def streamed(codec: TextCodec, ids: list[int]) -> list[str]:
    """The pieces of a stream, its flush included."""
    decoder = codec.stream()
    return [*(decoder.feed(i) for i in ids), decoder.flush()]


def test_streams_of_random_ids_join_to_the_whole(codec: TextCodec) -> None:
    """Stops lost tails: tokenizers' DecodeStream drops bytes that never become a character."""
    generator = random.Random(0)
    for _ in range(2000):
        ids = [generator.randrange(codec.vocab_size) for _ in range(generator.randrange(25))]
        assert "".join(streamed(codec, ids)) == codec.decode(ids)


def test_streams_of_text_never_split_a_character(codec: TextCodec) -> None:
    """Stops half characters in a stream, also where the token limit cuts the reply inside one."""
    for sentence in SENTENCES:
        ids = codec.encode(sentence)
        pieces = streamed(codec, ids)
        assert not any("\ufffd" in piece for piece in pieces)
        for cut in range(len(ids)):
            *complete, tail = streamed(codec, ids[:cut])
            assert not any("\ufffd" in piece for piece in complete)
            assert "".join([*complete, tail]) == codec.decode(ids[:cut])


def test_streams_of_any_text_cut_anywhere_give_whole_characters_that_join_to_it(codec: TextCodec) -> None:
    """Stops a piece that ends in a half of a 4-byte character, and complete ones that wait for no reason."""
    generator = np.random.default_rng(1)
    for text in random_texts(300):
        ids = codec.encode(text)
        ids = ids[: generator.integers(1, len(ids) + 1)] if ids else ids
        *pieces, tail = streamed(codec, ids)
        whole = codec.decode(ids)
        assert "\ufffd" not in "".join(pieces)
        assert "".join([*pieces, tail]) == whole
        assert set(tail) <= {"\ufffd"}, "the flush held more than an incomplete character"
        for piece in pieces:
            piece.encode()  # no half of a surrogate pair


def test_a_complete_character_does_not_wait_for_the_one_that_begins_in_the_same_token() -> None:
    """Stops a reply that shows a token late wherever a merge ends inside a character."""
    codec = byte_level()
    tokenizer = codec._tokenizer
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("x你")[0][0]
    tokenizer.add_tokens([letters[:2], letters[2:]])  # "x" with the first byte of 你, and the rest of it
    first, second = (tokenizer.token_to_id(token) for token in (letters[:2], letters[2:]))
    assert streamed(codec, [first, second]) == ["x", "你", ""]
    assert streamed(codec, [first]) == ["x", "\ufffd"]


def test_byte_level_text_survives_the_round_trip() -> None:
    """Stops any loss in encode or decode, of text that spells a special token too."""
    codec = byte_level()
    for sentence in [*SENTENCES, *SPECIAL, "a[SEP]b", "", " ", "\n\n", "\x00", "a\tb", "\ufffd", "x" * 500]:
        assert codec.decode(codec.encode(sentence)) == sentence
        assert "".join(streamed(codec, codec.encode(sentence))) == sentence


@pytest.mark.parametrize("text", [*SPECIAL, "hi[SEP]you", " [CLS] ", "<|endoftext|><|endoftext|>", "[SEP][PAD]"])
def test_text_cannot_forge_a_special_token(codec: TextCodec, text: str) -> None:
    """Stops a user from ending a turn, or speaking as the bot, by writing a special token (more: test_forgery.py)."""
    special = {codec._tokenizer.token_to_id(token) for token in SPECIAL} - {codec._tokenizer.token_to_id("[UNK]")}
    assert special.isdisjoint(codec.encode(text))
    assert special.isdisjoint(codec.encode(f"before {text} after"))


def test_a_vocabulary_that_only_splits_at_spaces_cannot_be_used_to_forge_one_either() -> None:
    """Stops the model itself, not the added-token parser, from finding [SEP] as a word of its vocabulary."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "hi", "you"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    assert TextCodec(tokenizer).encode("hi [SEP] you") == [5, 1, 6]


def test_a_tokenizer_that_truncates_or_pads_is_made_to_do_neither() -> None:
    """Stops tokenizer.json's own settings from silently cutting a prompt."""
    tokenizer = byte_level()._tokenizer
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    codec = TextCodec(tokenizer)
    assert codec.decode(codec.encode("longer than four tokens")) == "longer than four tokens"


def test_chinese_from_a_wordpiece_vocabulary_has_no_spaces_between_characters() -> None:
    """Stops the WordPiece decoder's spaces from reaching the reader; Latin words keep theirs."""
    codec = word_piece()
    assert codec.decode(codec.encode("你好，今天天气怎么样？")) == "你好，今天天气怎么样？"
    assert codec.decode(codec.encode("how are you")) == "how are you"
    assert codec.decode(codec.encode("你好 you 好")) == "你好 you 好"


def test_a_piece_of_a_word_that_opens_a_reply_has_no_mark_whole_or_streamed() -> None:
    """A reply that a model began in the middle of a word was shown as "##day"."""
    codec = chinese_bert()
    ids = {name: codec._tokenizer.token_to_id(name) for name in ("##s", "##day", "fine", "[SEP]", "#")}
    for begin in ([ids["##day"]], [ids["[SEP]"], ids["##day"]]):
        assert codec.decode([*begin, ids["##s"], ids["fine"]]) == "days fine"
        assert "".join(streamed(codec, [*begin, ids["##s"], ids["fine"]])) == "days fine"
    generator = random.Random(0)
    for codec in (chinese_bert(), word_piece()):
        pieces = [i for i in range(codec.vocab_size) if codec._tokenizer.id_to_token(i).startswith("##")]
        for _ in range(200):
            reply = [generator.choice(pieces), *(generator.randrange(5, codec.vocab_size) for _ in range(5))]
            assert "##" not in "".join(streamed(codec, reply))
            assert "".join(streamed(codec, reply)) == codec.decode(reply)


def test_half_a_surrogate_pair_is_refused(codec: TextCodec) -> None:
    """Stops JSON's \\ud800 from becoming an internal error."""
    with pytest.raises(BadRequest, match="not valid Unicode"):
        codec.encode("a\ud800b")


def test_a_file_that_is_no_tokenizer_is_a_bad_bundle(tmp_path: Path) -> None:
    """Stops tokenizers' bare Exception from becoming a traceback."""
    for content in ("", "{}", "[" * 10_000):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(BadBundle, match=r"tokenizer\.json"):
            TextCodec.open(tmp_path / "tokenizer.json")
    with pytest.raises(BadBundle):
        TextCodec.open(tmp_path / "missing.json")


def cut(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first."""
    places = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(places)[1]] if places else text


def test_stop_strings_cut_and_never_leak_a_beginning() -> None:
    """Stops the start of a stop string from going out when it is split, and a cut that depends on the pieces."""
    generator = random.Random(0)
    for _ in range(5000):
        text = "".join(generator.choice("ab") for _ in range(generator.randrange(16)))
        stops = ["".join(generator.choice("ab") for _ in range(generator.randrange(1, 5))) for _ in range(2)]
        stops = stops[: generator.randrange(3)]
        filtered, sent, place = StopFilter(stops), "", 0
        expected = cut(text, stops)
        while place < len(text):
            step = generator.randrange(1, 4)
            sent += filtered.feed(text[place : place + step])
            place += step
            assert expected.startswith(sent), "more went out than comes before the stop string"
        if not filtered.hit:
            sent += filtered.flush()
        assert (sent, filtered.hit) == (expected, any(stop in text for stop in stops))


def test_stop_strings_in_token_streams_leak_nothing(codec: TextCodec) -> None:
    """Stops a stop string that is split over tokens, or inside a character, from going out in part.

    Several at once, which overlap and begin alike; what went out must be before the first that is complete.
    """
    generator = np.random.default_rng(2)
    hits = 0
    for text in random_texts(300):
        ids = codec.encode(text)
        whole = codec.decode(ids)
        stops = []
        for _ in range(generator.integers(0, 5)):
            place = int(generator.integers(0, len(whole) + 1))
            stop = whole[place : place + int(generator.integers(1, 6))] + ("!" if generator.random() < 0.3 else "")
            stops += [stop] if stop else []
        expected = cut(whole, stops)
        decoder, filtered, sent = codec.stream(), StopFilter(stops), ""
        for token in ids:
            sent += filtered.feed(decoder.feed(token))
            assert expected.startswith(sent), "more went out than comes before the stop string"
            if filtered.hit:
                break
        else:
            sent += filtered.feed(decoder.flush()) + filtered.flush()
        assert sent == expected
        hits += filtered.hit
    assert hits > 100
