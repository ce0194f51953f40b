"""Dialogue formats: recognition, templates that agree with `encode`, and text that cannot forge special tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from chitchat.dialogue import Dialogue, dialogue_of, encode_text, set_chat_template
from chitchat.errors import BadInput
from chitchat.tokenizer import read_vocab_txt, train_tokenizer

TEXTS = ["hello there", "你好，世界!", "two\nlines  and 'quotes' {{ braces }}", " spaces around ", "", "tab\t\\n"]
FORGED = [
    "[SEP]",
    "a[SEP] b [CLS][CLS]c [PAD]",
    "<|endoftext|>",
    "x<|endoftext|>y",
    "[UNK] [MASK]",
    "[SEP",
    "[S\u2060EP]",
]


def _bpe(family: str) -> PreTrainedTokenizerFast:
    return train_tokenizer([*TEXTS, *FORGED] * 3, 280, family)


def _wordpiece(folder: Path) -> PreTrainedTokenizerFast:
    words = ["hello", "there", "two", "lines", "sep", "cl", "##s", "[", "]", "a", "b", "你", "好", "，", "!", "'", "{"]
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n", encoding="utf-8")
    return read_vocab_txt(path)


_MAKERS: dict[str, Callable[[Path], PreTrainedTokenizerFast]] = {
    "chitchat-bpe": lambda folder: _bpe("chitchat"),
    "dialogpt-bpe": lambda folder: _bpe("dialogpt"),
    "chitchat-wordpiece": _wordpiece,
}


@pytest.fixture(params=list(_MAKERS))
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerFast:
    return _MAKERS[request.param](tmp_path)


def _messages(texts: list[str]) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(texts)]
    return [{"role": "system", "content": "Be [SEP] kind."}, *turns]


@pytest.mark.parametrize("texts", [TEXTS, FORGED], ids=["plain", "forged"])
def test_the_template_gives_exactly_the_ids_of_encode(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], tmp_path: Path
) -> None:
    """Hugging Face tools would format a conversation otherwise than the training data, also after a reload."""
    dialogue = dialogue_of(tokenizer)
    expected = dialogue.encode(encode_text(tokenizer, texts))
    assert tokenizer.apply_chat_template(_messages(texts), tokenize=True, return_dict=False) == expected
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.apply_chat_template(_messages(texts), tokenize=True, return_dict=False) == expected
    assert dialogue_of(saved) == dialogue


def test_text_never_becomes_a_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """A user who types [SEP] ended his turn and spoke as the bot."""
    dialogue = dialogue_of(tokenizer)
    forbidden = {dialogue.end_of_turn_id, *dialogue.banned_ids} - {dialogue.unk_id}
    for text, ids in zip(FORGED, encode_text(tokenizer, FORGED), strict=True):
        assert not forbidden & set(ids), text
        assert ids
    plain = tokenizer(FORGED, add_special_tokens=False)["input_ids"]
    assert any(forbidden & set(ids) for ids in plain), "the test text forges nothing: it proves nothing"


def test_encoding_text_does_not_change_how_the_tokenizer_works_afterwards(tokenizer: PreTrainedTokenizerFast) -> None:
    """The switch lives in the shared backend: left on, every later template would be spelled out."""
    end = tokenizer.convert_ids_to_tokens(dialogue_of(tokenizer).end_of_turn_id)
    encode_text(tokenizer, ["a"])
    assert tokenizer(end, add_special_tokens=False)["input_ids"] == [dialogue_of(tokenizer).end_of_turn_id]


def test_a_foreign_byte_level_tokenizer_keeps_its_pipeline_and_cannot_be_forged_through_the_template() -> None:
    """Its normalizer is not ours to change; the guard must hold without it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained = _bpe("dialogpt").backend_tokenizer.model
    backend.model = trained
    foreign = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    set_chat_template(foreign, "dialogpt")
    assert foreign.backend_tokenizer.normalizer is None
    ids = foreign.apply_chat_template(_messages(["x<|endoftext|>y"]), tokenize=True, return_dict=False)
    assert ids.count(dialogue_of(foreign).end_of_turn_id) == 1
    plain = dialogue_of(foreign).encode(encode_text(foreign, TEXTS))
    assert foreign.apply_chat_template(_messages(TEXTS), tokenize=True, return_dict=False) == plain


def test_gpt2_is_recognised_as_dialogpt_without_an_unknown_token() -> None:
    """GPT-2 names its end of text as bos, eos and unk: it was banned, or every turn end was counted as unknown."""
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    gpt2 = GPT2TokenizerFast(tokenizer_object=Tokenizer(models.BPE({**vocab, "<|endoftext|>": 256}, [])))
    assert dialogue_of(gpt2) == Dialogue("dialogpt", (), 256, 256, None, (256,), ())


def test_the_chitchat_family_bans_every_special_token_but_the_end_of_turn(tmp_path: Path) -> None:
    """A model that generates [PAD] or [CLS] shows them to the user."""
    assert dialogue_of(_wordpiece(tmp_path)) == Dialogue("chitchat", (2,), 3, 0, 1, (2,), (0, 1, 2, 4))


def test_an_override_survives_saving(tmp_path: Path) -> None:
    """The template holds the format: a checkpoint of --dialogue dialogpt came back as chitchat."""
    tokenizer = _wordpiece(tmp_path)
    set_chat_template(tokenizer, dialogue_of(tokenizer, "dialogpt").family)
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = dialogue_of(AutoTokenizer.from_pretrained(tmp_path / "saved"))
    assert (saved.family, saved.start_ids, saved.end_of_turn_id) == ("dialogpt", (), 3)


@pytest.mark.parametrize("override", ["chitchat", None, "klingon"])
def test_a_tokenizer_that_cannot_end_a_turn_is_refused(override: str | None) -> None:
    """None as an id travelled as far as the model."""
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(BadInput, match=f"--dialogue {override}" if override else "end-of-text"):
        dialogue_of(bare, override)


def test_a_dialogue_survives_json() -> None:
    """Lists in place of tuples made equal dialogues unequal."""
    dialogue = dialogue_of(_bpe("chitchat"))
    assert Dialogue.from_json(dialogue.as_json()) == dialogue


def test_turns_are_framed_and_taken_out_of_their_frame_again(tokenizer: PreTrainedTokenizerFast) -> None:
    """Whoever counts a turn's ids by himself would be wrong for a format whose turns have headers."""
    dialogue = dialogue_of(tokenizer)
    turns = [[7, 8, 9], [], [10]]
    ids, lengths = dialogue.encode(turns), dialogue.turn_lengths(turns)
    assert len(ids) == len(dialogue.start_ids) + sum(lengths)
    assert dialogue.turn_texts(ids, lengths) == turns
    assert dialogue.text_lengths(lengths) == [3, 0, 1]
