"""Text to ids and back: special tokens stay text, streams join to the whole, Chinese reads as Chinese."""

import random
from pathlib import Path

import pytest
from tiny_codecs import SENTENCES, SPECIAL, byte_level, word_piece
from tokenizers import Tokenizer, models, pre_tokenizers

from serve.errors import BadBundle, BadRequest
from serve.text import StopFilter, TextCodec


@pytest.fixture(scope="module", params=[byte_level, word_piece], ids=["bpe", "wordpiece"])
def codec(request: pytest.FixtureRequest) -> TextCodec:
    """Both kinds of tokenizer in turn."""
    return request.param()


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


def test_byte_level_text_survives_the_round_trip() -> None:
    """Stops any loss in encode or decode, of text that spells a special token too."""
    codec = byte_level()
    for sentence in [*SENTENCES, *SPECIAL, "a[SEP]b", "", " ", "\n\n", "\x00", "a\tb", "\ufffd", "x" * 500]:
        assert codec.decode(codec.encode(sentence)) == sentence
        assert "".join(streamed(codec, codec.encode(sentence))) == sentence


@pytest.mark.parametrize("text", [*SPECIAL, "hi[SEP]you", " [CLS] ", "<|endoftext|><|endoftext|>", "[SEP][PAD]"])
def test_text_cannot_forge_a_special_token(codec: TextCodec, text: str) -> None:
    """Stops a user from ending a turn, or speaking as the bot, by writing a special token."""
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


def test_stop_strings_cut_and_never_leak_a_beginning() -> None:
    """Stops the start of a stop string from going out when it is split, and a cut that depends on the pieces."""
    generator = random.Random(0)
    for _ in range(5000):
        text = "".join(generator.choice("ab") for _ in range(generator.randrange(16)))
        stops = ["".join(generator.choice("ab") for _ in range(generator.randrange(1, 5))) for _ in range(2)]
        stops = stops[: generator.randrange(3)]
        filtered, sent, place = StopFilter(stops), "", 0
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = text[: min(places)[1]] if places else text
        while place < len(text):
            step = generator.randrange(1, 4)
            sent += filtered.feed(text[place : place + step])
            place += step
            assert expected.startswith(sent), "more went out than comes before the stop string"
        if not filtered.hit:
            sent += filtered.flush()
        assert (sent, filtered.hit) == (expected, bool(places))
