"""Retokenizing: the same conversations in the ids of a trimmed tokenizer."""

import filecmp
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import conversations
from tokenizers.models import WordPiece
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.data.dataset import ChatData, build_dataset, open_dataset
from chitchat.data.options import DataOptions
from chitchat.dialogue import encode_text
from chitchat.errors import BadInput
from chitchat.score import score, torch_scorer
from chitchat.tokenizer import train_tokenizer
from compress.prune.retokenize import TokenRemapper, retokenize
from compress.prune.vocabulary import choose_vocabulary, trim_tokenizer, trim_vocabulary, used_ids

CHINESE = [
    ["你好，今天天气怎么样？", "今天天气好！我喜欢天气 Hello there。", "helloing THERE 2019年，好"],
    ["我喜欢你", "好。。。喜欢weather吗？\U0001f600 天", "rainings rain"],
    ["天气好吗？", "好", "龘龘好there"],
    ["你喜欢天气吗", "喜欢", "there's rain, isn't there?"],
]


def vocab_txt(folder: Path) -> Path:
    characters = sorted({letter for turns in CHINESE for turn in turns for letter in turn if ord(letter) > 0x2000})
    characters = [letter for letter in characters if letter not in "龘\U0001f600"]
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for prefix in ("", "##")]
    words = ["hello", "##ing", "##ings", "there", "weather", "rain", "2019", "'", ",", "?", "年号"]
    path = folder / "vocab.txt"
    lines = ["[PAD]", *words, "[UNK]", *characters, "[CLS]", *letters, "[SEP]", "[MASK]"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_data(folder: Path, kind: str) -> tuple[ChatData, list[list[str]]]:
    """A data set of the kind and the conversations that it holds, in the order of the file."""
    talks = CHINESE if kind == "wordpiece" else [*conversations(40), ["Übermut 你好 \U0001f600", "it's unbelievable"]]
    corpus = folder / "talk.txt"
    corpus.write_text("\n\n".join("\n".join(turns) for turns in talks) + "\n", encoding="utf-8")
    tokenizer = str(vocab_txt(folder)) if kind == "wordpiece" else None
    dialogue = None if kind == "wordpiece" else kind
    build_dataset(
        [str(corpus)],
        folder / "data",
        DataOptions(tokenizer=tokenizer, vocab_size=340, dialogue=dialogue, validation=0.3),
    )
    return open_dataset(folder / "data"), talks


def turns_of(data: ChatData) -> list[list[list[int]]]:
    """The ids of every turn, without the end of turn, conversation by conversation; the format is checked."""
    found = []
    start = list(data.dialogue.start_ids)
    for split in (data.train, data.validation):
        for row in split:
            ids = row["input_ids"]
            assert ids[: len(start)] == start
            turns = [
                each.tolist() for each in np.split(np.array(ids[len(start) :]), np.cumsum(row["turn_lengths"])[:-1])
            ]
            assert all(turn[-1] == data.dialogue.end_of_turn_id for turn in turns)
            found.append([turn[:-1] for turn in turns])
    return found


def cut_size(data: ChatData) -> int:
    """A size at which some turns lose tokens and some do not."""
    with pytest.raises(BadInput) as error:
        choose_vocabulary(data.tokenizer, used_ids(data), 1)
    least = int(str(error.value).split("choose ")[1].split(" to ")[0])
    return (
        least + 8 if isinstance(data.tokenizer.backend_tokenizer.model, WordPiece) else (least + data.vocab_size) // 2
    )


@pytest.mark.parametrize("kind", ["chitchat", "dialogpt", "wordpiece"])
def test_every_turn_has_the_ids_that_encoding_its_text_gives(kind: str, tmp_path: Path) -> None:
    """Training on one spelling and talking in another was the damage of a vocabulary cut."""
    data, talks = make_data(tmp_path, kind)
    tokenizer = trim_tokenizer(data.tokenizer, choose_vocabulary(data.tokenizer, used_ids(data), cut_size(data)))
    trimmed = retokenize(data, tokenizer, tmp_path / "work" / "trimmed")
    old = turns_of(data)
    by_ids = {str([encode_text(data.tokenizer, turns)]): turns for turns in talks}
    expected = [encode_text(tokenizer, by_ids[str([turns])]) for turns in old]
    assert turns_of(trimmed) == expected
    assert 0 < trimmed.report["respelled"]["turns"] < data.report["turns"]
    assert trimmed.report["tokens"] > trimmed.report["respelled"]["tokens_before"] == data.report["tokens"]
    assert max(index for row in trimmed.train for index in row["input_ids"]) < len(tokenizer)


@pytest.mark.parametrize("kind", ["chitchat", "wordpiece"])
def test_split_order_turns_and_bytes_stay(kind: str, tmp_path: Path) -> None:
    """Bits per byte are compared across vocabularies: another split or other bytes compare apples with pears."""
    data, _ = make_data(tmp_path, kind)
    tokenizer = trim_tokenizer(data.tokenizer, choose_vocabulary(data.tokenizer, used_ids(data), cut_size(data)))
    trimmed = retokenize(data, tokenizer, tmp_path / "trimmed")
    for split in ("train", "validation"):
        before, after = getattr(data, split), getattr(trimmed, split)
        assert after.features == before.features
        assert after["replies"][:] == before["replies"][:]
        assert after["turn_bytes"][:] == before["turn_bytes"][:]
        assert [len(turns) for turns in after["turn_lengths"]] == [len(turns) for turns in before["turn_lengths"]]
        assert [sum(lengths) for lengths in after["turn_lengths"]] == [
            len(ids) - len(trimmed.dialogue.start_ids) for ids in after["input_ids"]
        ]
    assert trimmed.report["conversations"] == data.report["conversations"]
    assert trimmed.report["tokens"] == sum(len(row["input_ids"]) for row in [*trimmed.train, *trimmed.validation])
    assert trimmed.report["corpora"] == data.report["corpora"]
    assert trimmed.report["vocab_size"] == trimmed.vocab_size == len(tokenizer)


@pytest.mark.parametrize("kind", ["chitchat", "dialogpt", "wordpiece"])
def test_the_dialogue_format_is_the_old_one_in_new_ids(kind: str, tmp_path: Path) -> None:
    """A turn that ends with what is now a letter never ends."""
    data, _ = make_data(tmp_path, kind)
    tokenizer = trim_tokenizer(data.tokenizer, choose_vocabulary(data.tokenizer, used_ids(data)))
    old, new = data.dialogue.as_json(), retokenize(data, tokenizer, tmp_path / "trimmed").dialogue.as_json()
    assert new["family"] == old["family"]
    for name in old.keys() - {"family"}:
        before, after = (value if isinstance(value, list) else [value] for value in (old[name], new[name]))
        names = [None if index is None else data.tokenizer.convert_ids_to_tokens(index) for index in before]
        assert [None if index is None else tokenizer.convert_ids_to_tokens(index) for index in after] == names, name


def test_the_same_input_gives_the_same_bytes_and_another_identity_than_its_source(tmp_path: Path) -> None:
    """A resumed healing refuses a data set whose identity moved; a cache by identity must not take it for the old."""
    data, _ = make_data(tmp_path, "chitchat")
    tokenizer = trim_tokenizer(data.tokenizer, choose_vocabulary(data.tokenizer, used_ids(data), 280))
    one, other = (retokenize(data, tokenizer, tmp_path / name) for name in ("one", "other"))
    assert one.identity == other.identity != data.identity
    names = [path.relative_to(one.path) for path in one.path.rglob("*") if path.is_file()]
    _, different, missing = filecmp.cmpfiles(one.path, other.path, [str(name) for name in names], shallow=False)
    assert (different, missing) == ([], [])
    assert retokenize(data, tokenizer, tmp_path / "one").identity == one.identity  # in the place of an earlier one
    assert not list(tmp_path.glob(".*"))


def test_what_training_reads_of_it_fits_the_trimmed_checkpoint(tiny_corpus: Path, tmp_path: Path) -> None:
    """Healing after a cut: tokenizer, table and data must agree, and text that is spelled as before is no harder."""
    train_tokenizer(["the tokens of another corpus, which this one never says"] * 9, 340).save_pretrained(
        tmp_path / "t"
    )
    build_dataset([str(tiny_corpus)], tmp_path / "data", DataOptions(tokenizer=str(tmp_path / "t"), validation=0.2))
    data = open_dataset(tmp_path / "data")
    keep = choose_vocabulary(data.tokenizer, used_ids(data))
    tokenizer = trim_tokenizer(data.tokenizer, keep)
    trimmed = retokenize(data, tokenizer, tmp_path / "trimmed")
    trimmed.check_tokenizer(tokenizer, "trimmed")
    with pytest.raises(BadInput, match="tokenised by another tokenizer"):
        data.check_tokenizer(tokenizer, "trimmed")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=data.vocab_size, n_layer=1, n_embd=32, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    before = score(torch_scorer(model), data.windows("train", 64))
    after = score(torch_scorer(trim_vocabulary(model, keep)), trimmed.windows("train", 64))
    assert len(keep) < data.vocab_size
    assert (after.tokens, after.bytes) == (before.tokens, before.bytes)
    assert after.nll_per_token < before.nll_per_token
    assert after.bits_per_byte < before.bits_per_byte


def test_an_unknown_word_stays_unknown_and_its_neighbours_are_respelled(tmp_path: Path) -> None:
    """Decoding wrote [UNK] out, and its letters became words."""
    data, _ = make_data(tmp_path, "wordpiece")
    old = data.tokenizer
    gone = {"hello", "there", "##ings", "2019"}
    keep = [index for token, index in sorted(old.get_vocab().items(), key=lambda item: item[1]) if token not in gone]
    new = trim_tokenizer(old, keep)
    turns = [np.array(ids) for ids in encode_text(old, ["你龘hello 龘there, 2019年rainings！", "好"])]
    assert "[UNK]" in old.convert_ids_to_tokens(turns[0].tolist())
    speller = TokenRemapper(old, new)
    spelled = speller.remap(turns)
    assert spelled == encode_text(new, ["你龘hello 龘there, 2019年rainings！", "好"])
    assert new.convert_ids_to_tokens(spelled[0])[:7] == ["你", "[UNK]", "h", "##e", "##l", "##l", "##o"]
    assert speller.respelled == 1


def test_characters_that_become_unknown_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Chinese vocabulary cut short looks better in perplexity: what it cannot write is one easy token."""
    data, _ = make_data(tmp_path, "wordpiece")
    size = cut_size(data)
    tokenizer = trim_tokenizer(data.tokenizer, choose_vocabulary(data.tokenizer, used_ids(data), size))
    capsys.readouterr()
    trimmed = retokenize(data, tokenizer, tmp_path / "trimmed")
    unknown = [index == trimmed.dialogue.unk_id for turns in turns_of(trimmed) for turn in turns for index in turn]
    assert trimmed.report["unknown_tokens"] == sum(unknown) > data.report["unknown_tokens"]
    assert f"--vocab {size}: {np.mean(unknown):.1%} of the tokens are unknown now" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_cut_from_the_data_sets_own_is_refused(tmp_path: Path) -> None:
    """Ids of a stranger's vocabulary were mapped by chance where two tokens have one spelling."""
    data, _ = make_data(tmp_path, "chitchat")
    keep = choose_vocabulary(data.tokenizer, used_ids(data), 280)
    small = retokenize(data, trim_tokenizer(data.tokenizer, keep), tmp_path / "small")
    with pytest.raises(ValueError, match="tokens that are new"):
        retokenize(small, data.tokenizer, tmp_path / "back")
    stranger, _ = make_data(_folder(tmp_path / "stranger"), "dialogpt")
    with pytest.raises(ValueError, match=r"new: \['<\|endoftext\|>'|special token"):
        retokenize(data, stranger.tokenizer, tmp_path / "other")
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "other").exists()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
