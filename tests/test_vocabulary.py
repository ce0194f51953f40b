"""Vocabulary and positions: what stays, that it stays bit for bit, and that text is tokenised as before."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import conversations
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    PreTrainedTokenizerFast,
)

from chitchat.data.dataset import open_dataset
from chitchat.dialogue import dialogue_of, encode_text
from chitchat.errors import BadInput
from chitchat.tokenizer import read_vocab_txt, train_tokenizer
from compress.prune.vocabulary import choose_vocabulary, trim_positions, trim_tokenizer, trim_vocabulary, used_ids

TEXTS = [turn for turns in conversations(40) for turn in turns]
RARE = ["unbelievable weather, isn't it?", "Übermut 你好 \U0001f600", "raining cats and dogs"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
CHINESE = "我喜欢你好年月日用吗天气。，！"
WORDS = ["hello", "hell", "there", "rain", "##ing", "weather"]


def byte_level(family: str = "chitchat") -> PreTrainedTokenizerFast:
    return train_tokenizer([*TEXTS, *RARE * 3], 400, family)


def gpt2(folder: Path) -> GPT2TokenizerFast:
    """A tokenizer of GPT-2's own class and files: vocab.json and merges.txt, the end of text last."""
    model = json.loads(train_tokenizer([*TEXTS, *RARE * 3], 400, "dialogpt").backend_tokenizer.to_str())["model"]
    names = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])][1:]
    vocab = {token: index for index, token in enumerate([*names, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def vocab_txt(folder: Path) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *CHINESE, *WORDS, *LETTERS]) + "\n", encoding="utf-8")
    return path


def make(kind: str, folder: Path) -> PreTrainedTokenizerFast:
    if kind == "byte-level":
        return byte_level()
    if kind == "gpt2":
        return gpt2(folder)
    if kind == "bert":
        return BertTokenizerFast(str(vocab_txt(folder)))
    return read_vocab_txt(vocab_txt(folder))


KINDS = ("byte-level", "gpt2", "wordpiece", "bert")


def count(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    ids = [index for turn in encode_text(tokenizer, texts) for index in turn]
    return np.bincount(ids, minlength=len(tokenizer))


def make_model(rows: int = 400, tied: bool = True, width: int = 32, **ids: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=rows,
        n_layer=2,
        n_embd=width,
        n_head=4,
        n_positions=96,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        **ids,
    )
    model = GPT2LMHeadModel(config).eval()
    if not tied:
        torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    return model


def kept_rows(rows: int, count: int) -> list[int]:
    return sorted(np.random.default_rng(rows + count).choice(rows, count, replace=False).tolist())


def test_ids_are_counted_over_the_training_split_alone(tiny_data: Path) -> None:
    """Held-out text that had a say in the vocabulary would be held out no more."""
    data = open_dataset(tiny_data)
    expected = np.bincount(np.concatenate([row["input_ids"] for row in data.train]), minlength=300)
    counts = used_ids(data)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, expected)
    assert counts.sum() == data.report["train"]["tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_text_whose_tokens_all_stay_is_tokenised_as_before(kind: str, tmp_path: Path) -> None:
    """A token that stays without its merges is never made again, and the text that had it is spelled in letters."""
    tokenizer = make(kind, tmp_path)
    counts = count(tokenizer, [*TEXTS, "hello there 你好。"])
    least = _least(tokenizer, counts)
    for size in (None, least, least + 7, least + 30, len(tokenizer)):
        if size is not None and size > len(tokenizer):
            continue
        keep = choose_vocabulary(tokenizer, counts, size)
        small = trim_tokenizer(tokenizer, keep)
        assert keep == sorted(set(keep))
        assert len(small) == len(keep) == (size or len(keep))
        assert [small.convert_ids_to_tokens(new) for new in range(len(keep))] == tokenizer.convert_ids_to_tokens(keep)
        new_id = {old: new for new, old in enumerate(keep)}
        unchanged = 0
        for text, old in zip([*TEXTS, *RARE], encode_text(tokenizer, [*TEXTS, *RARE]), strict=True):
            if all(index in new_id for index in old):
                unchanged += 1
                assert encode_text(small, [text])[0] == [new_id[index] for index in old], text
        assert size is not None or unchanged >= len(TEXTS)


def _least(tokenizer: PreTrainedTokenizerFast, counts: np.ndarray) -> int:
    """The smallest size, as the refusal of 1 tells it."""
    with pytest.raises(BadInput, match="--vocab 1: ") as error:
        choose_vocabulary(tokenizer, counts, 1)
    return int(str(error.value).split("choose ")[1].split(" to ")[0])


@pytest.mark.parametrize("kind", ["byte-level", "gpt2"])
def test_the_smallest_byte_level_vocabulary_still_spells_everything(kind: str, tmp_path: Path) -> None:
    """A byte that the corpus does not have is in the first emoji that a user types."""
    tokenizer = make(kind, tmp_path)
    counts = count(tokenizer, TEXTS)
    specials = len(tokenizer.all_special_ids)
    assert _least(tokenizer, counts) == 256 + specials
    for size in (256 + specials, 300):
        small = trim_tokenizer(tokenizer, choose_vocabulary(tokenizer, counts, size))
        for text in [*RARE, *TEXTS[:5], "我喜欢你\x00\x7f é\n"]:
            assert small.decode(encode_text(small, [text])[0]) == text
    assert json.loads(small.backend_tokenizer.to_str())["model"]["merges"]


def test_wordpiece_keeps_the_letters_of_words_and_the_chinese_characters_that_are_used(tmp_path: Path) -> None:
    """A word whose piece goes must be spelled, not unknown; a character that nobody writes need not stay."""
    tokenizer = make("wordpiece", tmp_path)
    counts = count(tokenizer, ["你好！ hello", "你 rain", "你好"])
    small = trim_tokenizer(tokenizer, choose_vocabulary(tokenizer, counts))
    assert "喜" not in small.get_vocab()
    assert {"你", "好", "！", "hello", "rain", "[UNK]", "[MASK]"} <= small.get_vocab().keys()
    spelled = small.convert_ids_to_tokens(encode_text(small, ["weather 你喜"])[0])
    assert spelled == ["w", "##e", "##a", "##t", "##h", "##e", "##r", "你", "[UNK]"]
    assert small.decode(encode_text(small, ["你好！hello rain"])[0]) == "你好！hello rain"
    least = choose_vocabulary(tokenizer, counts, _least(tokenizer, counts) + 1)
    tokens = set(tokenizer.convert_ids_to_tokens(least))
    assert tokens & set(CHINESE) == {"你"}  # the most frequent
    assert not tokens & set(WORDS)


def test_the_rarest_token_goes_first_and_its_parts_take_over_its_count() -> None:
    """By its own count alone a part looks unused, although all that it is left for is what will use it."""
    vocab = {token: index for index, token in enumerate(["a", "b", "c", "d", "ab", "cd", "abc"])}
    merges = [("a", "b"), ("c", "d"), ("ab", "c")]
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    counts = np.array([5, 0, 0, 0, 1, 9, 10])
    # ab is rarer than cd, but abc is made of it; once abc is gone, ab counts 11.
    assert choose_vocabulary(tokenizer, counts, 6) == [0, 1, 2, 3, 4, 6]
    assert choose_vocabulary(tokenizer, np.array([5, 0, 0, 0, 1, 9, 8]), 6) == [0, 1, 2, 3, 4, 5]
    assert choose_vocabulary(tokenizer, np.array([5, 0, 0, 0, 1, 9, 7]), 5) == [0, 1, 2, 3, 5]
    assert choose_vocabulary(tokenizer, np.array([5, 0, 0, 0, 1, 9, 9]), 5) == [0, 1, 2, 3, 4]
    assert choose_vocabulary(tokenizer, np.array([0, 0, 0, 0, 0, 0, 1])) == [0, 1, 2, 3, 4, 6]
    small = trim_tokenizer(tokenizer, [0, 1, 2, 3, 4, 6])
    tokenizer.add_tokens(["abc"])  # an added token stays, and so do its parts
    assert choose_vocabulary(tokenizer, np.array([5, 0, 0, 0, 0, 9, 0]), 6) == [0, 1, 2, 3, 4, 6]
    assert encode_text(small, ["abc cd ab"])[0] == [5, 2, 3, 4]


def test_a_token_that_two_merges_make_keeps_both() -> None:
    """Trainers write such merges; text that the second one spelled came out otherwise when only the first stayed."""
    tokens = ["a", "b", "c", "ab", "bc", "abc", "cc", "abcc", "bcc", "abccc"]
    merges = [("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    counts = np.zeros(len(tokens), dtype=np.int64)
    counts[tokens.index("abc")] = 3
    assert tokenizer.convert_ids_to_tokens(choose_vocabulary(tokenizer, counts)) == ["a", "b", "c", "ab", "bc", "abc"]


@pytest.mark.parametrize(
    ("size", "what"),
    [
        (10, "--vocab 10: the tokenizer has 300 tokens, 259 of them .* choose 259 to 300"),
        (301, "--vocab 301: .* choose 259 to 300"),
        (-3, "--vocab -3: .* choose 259 to 300"),
    ],
)
def test_a_size_that_cannot_be_had_is_refused_with_those_that_can(size: int, what: str) -> None:
    """A vocabulary without the bytes turns text into nothing; one that grows is not what was asked for."""
    with pytest.raises(BadInput, match=what) as error:
        choose_vocabulary(train_tokenizer(TEXTS, 300), np.ones(300, dtype=np.int64), size)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    """A Unigram vocabulary segments by probabilities: text changes although all its tokens stay."""
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    with pytest.raises(BadInput, match="--vocab 2: the tokenizer is a Unigram model"):
        choose_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend), np.ones(3, dtype=np.int64), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trimmed_tokenizer_is_loaded_unchanged_by_transformers(kind: str, tmp_path: Path) -> None:
    """Old ids that are left in any of the files put special tokens where words are."""
    tokenizer = make(kind, tmp_path)
    before = tokenizer.backend_tokenizer.to_str()
    small = trim_tokenizer(tokenizer, choose_vocabulary(tokenizer, count(tokenizer, TEXTS[:20])))
    assert tokenizer.backend_tokenizer.to_str() == before
    small.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(tokenizer)
    assert loaded.backend_tokenizer.to_str() == small.backend_tokenizer.to_str()
    assert loaded.chat_template == small.chat_template == tokenizer.chat_template
    assert loaded.special_tokens_map == small.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.all_special_ids == small.all_special_ids
    assert loaded.added_tokens_decoder == small.added_tokens_decoder
    assert loaded.model_max_length == tokenizer.model_max_length
    texts = [*TEXTS[:20], *RARE]
    assert encode_text(loaded, texts) == encode_text(small, texts)
    specials = {token: small.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    assert small.convert_ids_to_tokens(list(specials.values())) == list(specials)
    assert dialogue_of(loaded).as_json() == dialogue_of(small).as_json()


def test_special_tokens_that_are_put_around_text_have_their_new_ids(tmp_path: Path) -> None:
    """BERT's post-processor holds ids, not names: [CLS] of the old vocabulary is some character of the new one."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", *CHINESE, "[UNK]", *LETTERS, "[CLS]", "[SEP]", "hello", "[MASK]"]) + "\n")
    tokenizer = BertTokenizerFast(str(path))
    small = trim_tokenizer(tokenizer, choose_vocabulary(tokenizer, count(tokenizer, ["hello 你好"])))
    ids = small("hello 你好")["input_ids"]
    assert small.convert_ids_to_tokens(ids) == ["[CLS]", "hello", "你", "好", "[SEP]"]
    template = Tokenizer.from_str(small.backend_tokenizer.to_str())
    assert template.encode("你").tokens == ["[CLS]", "你", "[SEP]"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "sequence"])
def test_every_post_processor_is_renumbered(kind: str) -> None:
    """Each of them spells its ids in a way of its own; a sequence hides them one level deeper."""
    vocab = {token: index for index, token in enumerate(["x", "y", "[CLS]", "a", "[SEP]", "[UNK]"])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    pair = (("[SEP]", 4), ("[CLS]", 2))
    bert = processors.BertProcessing(*pair)
    backend.post_processor = {
        "bert": bert,
        "roberta": processors.RobertaProcessing(*pair),
        "sequence": processors.Sequence([processors.ByteLevel(), bert]),
    }[kind]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    assert trim_tokenizer(tokenizer, [2, 3, 4, 5])("a")["input_ids"] == [0, 1, 2]


def test_tokens_that_were_added_to_a_vocabulary_stay_and_move_up(tmp_path: Path) -> None:
    """Fine-tuners add speaker tokens behind the vocabulary; their rows are the ones that training made."""
    tokenizer = gpt2(tmp_path)
    end = len(tokenizer) - 1
    tokenizer.add_tokens(["<speaker1>"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    keep = choose_vocabulary(tokenizer, count(tokenizer, TEXTS[:5]), 300)
    tokenizer.backend_tokenizer.enable_padding(pad_id=tokenizer.pad_token_id, pad_token="<pad>")
    small = trim_tokenizer(tokenizer, keep)
    assert keep[-3:] == [end, end + 1, end + 2]
    assert small.convert_tokens_to_ids(["<|endoftext|>", "<speaker1>", "<pad>"]) == [297, 298, 299]
    assert small.pad_token_id == 299
    assert small.backend_tokenizer.padding["pad_id"] == 299
    assert small("hello<speaker1>")["input_ids"][-1] == 298


def test_ids_that_no_token_has_are_closed_up(tmp_path: Path) -> None:
    """A vocab.txt with a line twice leaves a gap; counts by the number of tokens then lack the last id."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, "hello", "hello", "there"]) + "\n")
    tokenizer = BertTokenizerFast(str(path))
    counts = np.bincount([6, 7], minlength=8)
    small = trim_tokenizer(tokenizer, choose_vocabulary(tokenizer, counts))
    assert small.convert_tokens_to_ids(["[MASK]", "hello", "there"]) == [4, 5, 6]
    assert encode_text(small, ["there hello"]) == [[6, 5]]


def test_a_special_token_cannot_be_left_out() -> None:
    """A tokenizer without its end of turn talks for ever."""
    with pytest.raises(ValueError, match=r"\[SEP\]"):
        trim_tokenizer(byte_level(), [0, 1, *range(3, 300)])
    with pytest.raises(ValueError, match="ascending"):
        trim_tokenizer(byte_level(), [2, 1, 0])


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_that_stay_give_the_same_bits(tied: bool) -> None:
    """A cut that touches a weight is not exact. The matrix product is compared at equal size, the dropped rows zero,
    since with fewer columns it may add up in another order."""
    for rows, count_kept, width in ((400, 259, 32), (50, 17, 64), (4096, 3000, 320)):
        model = make_model(rows, tied, width)
        keep = kept_rows(rows, count_kept)
        small = trim_vocabulary(model, keep)
        assert (small.lm_head.weight is small.transformer.wte.weight) == tied
        assert small.config.vocab_size == small.lm_head.out_features == count_kept
        assert model.config.vocab_size == rows
        for length in (1, 2, 7, 64):
            new = torch.randint(0, count_kept, (2, length), generator=torch.Generator().manual_seed(length))
            old = torch.tensor(keep)[new]
            with torch.no_grad():
                states, full_states = small.transformer(new)[0], model.transformer(old)[0]
                full = model(old).logits[..., keep]
                padded = torch.zeros_like(model.lm_head.weight)
                padded[keep] = small.lm_head.weight
                assert torch.equal(states, full_states)
                assert torch.equal(torch.nn.functional.linear(states, padded)[..., keep], full)
                torch.testing.assert_close(small(new).logits, full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "count_kept", "width"), [(400, 259, 32), (4096, 3000, 320), (13317, 5001, 96)])
def test_logits_of_whole_windows_are_bit_identical(rows: int, count_kept: int, width: int) -> None:
    """What the cut promises to people who compare outputs, where the processor's matrix product allows it."""
    draw = torch.Generator().manual_seed(0)
    keep = kept_rows(rows, count_kept)
    table, states = torch.randn(rows, width, generator=draw), torch.randn(64, width, generator=draw)
    if not torch.equal((states @ table.T)[:, keep], states @ table[keep].T.contiguous()):
        pytest.skip("this processor's matrix product adds up in another order when it has fewer columns")
    model = make_model(rows, width=width)
    new = torch.randint(0, count_kept, (1, 64), generator=draw)
    with torch.no_grad():
        assert torch.equal(trim_vocabulary(model, keep)(new).logits, model(torch.tensor(keep)[new]).logits[..., keep])


def test_no_token_becomes_less_likely() -> None:
    """The softmax over fewer ids can only give each of them more; a wrong row would not."""
    model = make_model(400)
    keep = kept_rows(400, 300)
    small = trim_vocabulary(model, keep)
    new = torch.randint(0, 300, (8, 48), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(each(ids).logits[:, :-1].mT.double(), ids[:, 1:], reduction="none")
            for each, ids in ((small, new), (model, torch.tensor(keep)[new]))
        ]
    assert (losses[0] <= losses[1] + 1e-5).all()
    assert losses[0].mean() < losses[1].mean() - 0.05


def test_ids_in_the_configurations_follow_their_tokens(tmp_path: Path) -> None:
    """An old end of text in the generation configuration lets transformers' generate run past every turn."""
    model = make_model(400, bos_token_id=10, eos_token_id=20, pad_token_id=0)
    model.generation_config.eos_token_id = [20, 30, 31]
    model.generation_config.suppress_tokens = [31]
    keep = [0, *range(10, 31)]
    trim_vocabulary(model, keep).save_pretrained(tmp_path)
    small = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert (small.config.bos_token_id, small.config.eos_token_id, small.config.pad_token_id) == (1, 11, 0)
    assert small.generation_config.eos_token_id == [11, 21]
    assert small.generation_config.suppress_tokens is None
    assert small.generation_config.pad_token_id == 0
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (20, [20, 30, 31])


def test_an_id_that_the_table_never_had_is_unset(tmp_path: Path) -> None:
    """GPT2-chitchat's configuration names GPT-2's end of text, 50256, with a vocabulary of 13,317."""
    model = make_model(400)
    assert model.config.eos_token_id == 50256
    trim_vocabulary(model, list(range(300))).save_pretrained(tmp_path)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert loaded.config.bos_token_id is None
    assert loaded.config.eos_token_id is None
    assert loaded.generation_config.eos_token_id is None


@pytest.mark.parametrize(
    ("keep", "what"), [([], "at least one"), ([3, 3], "ascending"), ([-1, 2], "ascending"), ([1, 400], "id 400 .* 400")]
)
def test_rows_that_there_are_not_are_refused(keep: list[int], what: str) -> None:
    """Negative and repeated indices select rows without a word."""
    with pytest.raises(ValueError, match=what):
        trim_vocabulary(make_model(400), keep)


@pytest.mark.parametrize("tied", [True, False])
def test_a_shorter_context_changes_no_bit_within_it(tied: bool, tmp_path: Path) -> None:
    """A table cut at the wrong end gives the first word the place of a later one."""
    model = make_model(tied=tied)
    small = trim_positions(model, 40)
    small.save_pretrained(tmp_path)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    for length in (1, 5, 40):
        ids = torch.randint(0, 400, (3, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = model(ids).logits
            assert torch.equal(small(ids).logits, expected)
            assert torch.equal(loaded(ids).logits, expected)
    assert (small.config.n_positions, model.config.n_positions) == (40, 96)
    assert len(small.transformer.wpe.weight) == 40
    assert (small.lm_head.weight is small.transformer.wte.weight) == tied
    assert small.num_parameters() == model.num_parameters() - 56 * 32


@pytest.mark.parametrize("asked", [0, 97])
def test_a_context_that_cannot_be_had_is_refused(asked: int) -> None:
    """Slicing takes any number, and a longer context has no positions to read."""
    with pytest.raises(BadInput, match=f"--context {asked}: the model has 96; choose 1 to 96"):
        trim_positions(make_model(), asked)


def test_the_weights_of_a_cut_model_are_its_own() -> None:
    """Tables that share memory with the teacher's are healed together with them."""
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for small in (trim_vocabulary(model, list(range(300))), trim_positions(model, 40)):
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
