"""Data sets: the split, the stored rows, windows, prompts, and that the same input gives the same bytes."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_from_disk

from chitchat.data.conversation import Turn
from chitchat.data.dataset import ChatData, Windows, build_dataset, collate, held_out_prompts, open_dataset
from chitchat.data.figures import percentiles
from chitchat.data.index import TextSample
from chitchat.data.options import DataOptions
from chitchat.dialogue import encode_text
from chitchat.errors import BadInput
from chitchat.lineage import identity

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("CHITCHAT_SHARED", REPOSITORY.parent / "shared"))
WORDS = ["yes", "no", "well", "the", "a", "cat", "dog", "sings", "runs", "now", "here", "你", "好", "why", "tea", "day"]


def _conversations(count: int, seed: int = 0) -> list[list[str]]:
    """Distinct conversations of 2 to 7 turns; some turns are much longer than others."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        lengths = [chance.choice((1, 2, 5, 9, 40)) for _ in range(chance.randint(2, 7))]
        found.append([f"{number} " + " ".join(chance.choices(WORDS, k=length)) for length in lengths])
    return found


def _txt(path: Path, conversations: list[list[str]]) -> str:
    path.write_text("\n\n".join("\n".join(turns) for turns in conversations) + "\n", encoding="utf-8")
    return str(path)


def _build(folder: Path, conversations: list[list[str]], name: str = "data", **options: Any) -> ChatData:
    build_dataset(
        [_txt(folder / "corpus.txt", conversations)], folder / name, DataOptions(**{"vocab_size": 280, **options})
    )
    return open_dataset(folder / name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ChatData:
    return _build(tmp_path_factory.mktemp("data"), _conversations(80), validation=0.25)


def _texts(data: ChatData, split: str) -> list[list[str]]:
    """The turns of each row, decoded."""
    found = []
    for row in getattr(data, split):
        ids, at, turns = row["input_ids"], len(data.dialogue.start_ids), []
        for length in row["turn_lengths"]:
            turns.append(data.tokenizer.decode(ids[at : at + length - 1]))
            assert ids[at + length - 1] == data.dialogue.end_of_turn_id
            at += length
        assert at == len(ids)
        found.append(turns)
    return found


def test_a_data_set_holds_every_conversation_once_and_as_it_was(data: ChatData) -> None:
    """A batch boundary, a wrong offset or a lost last batch changes who says what, and training hides it."""
    stored = _texts(data, "train") + _texts(data, "validation")
    assert sorted(stored) == sorted(_conversations(80))
    assert len(data.validation) == 20
    for row in data.train:
        assert row["replies"] == [turn % 2 == 1 for turn in range(len(row["turn_lengths"]))]
    sizes = [row["turn_bytes"] for row in data.train]
    assert sizes == [[len(turn.encode()) for turn in turns] for turns in _texts(data, "train")]


def test_the_report_tells_what_is_stored(data: ChatData) -> None:
    """Figures counted in another place than the rows drift away from them."""
    report, rows = data.report, [*data.train, *data.validation]
    assert report["conversations"] == 80
    assert report["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert report["turns"] == sum(len(row["turn_lengths"]) for row in rows)
    lengths = sorted(len(row["input_ids"]) for row in rows)
    assert report["conversation_tokens"]["max"] == lengths[-1]
    assert report["conversation_tokens"]["p50"] == lengths[39]
    assert report["vocab_size"] == data.vocab_size
    assert report["unknown_share"] == 0
    corpus = data.path.parent / "corpus.txt"
    assert report["corpora"] == [{"name": "corpus.txt", "sha256": hashlib.sha256(corpus.read_bytes()).hexdigest()}]


def test_percentiles_of_a_histogram_are_those_of_the_lengths() -> None:
    """An off-by-one in a histogram moves every percentile by one token."""
    lengths = np.random.default_rng(0).integers(1, 60, 1001)
    found = percentiles(np.bincount(lengths))
    for share in (5, 50, 90, 95, 99):
        assert found[f"p{share}"] == np.percentile(lengths, share, method="inverted_cdf")
    assert found["max"] == lengths.max()
    assert found["mean"] == round(lengths.mean(), 3)


def test_the_same_input_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    """A random fingerprint, a path or a time in the folder would run every later stage again."""
    conversations = _conversations(40)
    one = _build(tmp_path, conversations, "one", seed=5)
    corpus = tmp_path / "elsewhere"
    corpus.mkdir()
    script = (
        "import sys, pathlib, chitchat.data.builder as b; "
        "b.build_dataset([sys.argv[1]], pathlib.Path(sys.argv[2]), b.DataOptions(vocab_size=280, seed=5))"
    )
    environment = {**os.environ, "HOME": str(corpus / "home"), "PYTHONHASHSEED": "7"}
    arguments = [sys.executable, "-c", script, _txt(corpus / "corpus.txt", conversations), str(corpus / "other")]
    subprocess.run(arguments, check=True, cwd=REPOSITORY, env=environment)
    assert open_dataset(corpus / "other").identity == one.identity == identity(tmp_path / "one")
    assert not (corpus / "home").exists(), "something was cached in the home folder"
    assert {path.suffix for path in (tmp_path / "one").rglob("*") if path.is_file()} == {".arrow", ".json", ".jinja"}


def test_another_seed_holds_out_others_and_the_order_changes_nothing(tmp_path: Path) -> None:
    """A split by position holds out the last topic of a sorted corpus, and moves when a file is added."""
    conversations = _conversations(60)
    one = _build(tmp_path, conversations, "one", validation=0.2)
    turned = _build(tmp_path, conversations[::-1], "turned", validation=0.2)
    other = _build(tmp_path, conversations, "other", validation=0.2, seed=1)
    assert sorted(_texts(one, "validation")) == sorted(_texts(turned, "validation"))
    assert sorted(_texts(one, "validation")) != sorted(_texts(other, "validation"))
    assert one.tokenizer.get_vocab() == turned.tokenizer.get_vocab()


def test_duplicates_are_dropped_counted_and_never_cross_the_split(tmp_path: Path) -> None:
    """A conversation on both sides makes the held-out perplexity look better than it is."""
    conversations = _conversations(30)
    louder = [[turn.upper() + "  " for turn in turns] for turns in conversations]
    data = _build(tmp_path, conversations + louder + conversations[:7], validation=0.5)
    assert (len(data.train), len(data.validation), data.report["duplicates"]) == (15, 15, 37)
    train = {tuple(turn.casefold() for turn in turns) for turns in _texts(data, "train")}
    assert not train & {tuple(turn.casefold() for turn in turns) for turns in _texts(data, "validation")}


@pytest.mark.parametrize(("count", "validation", "held_out"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.05, 1), (20, 0.3, 6)])
def test_the_held_out_count_is_exact_and_no_side_is_empty(
    tmp_path: Path, count: int, validation: float, held_out: int
) -> None:
    """A coin for each conversation leaves a small corpus without a validation split."""
    data = _build(tmp_path, _conversations(count), validation=validation)
    assert (len(data.train), len(data.validation)) == (count - held_out, held_out)


def test_the_tokenizer_learns_nothing_from_held_out_conversations(tmp_path: Path) -> None:
    """A word that only validation has became one token: bits per byte there came out too good."""
    conversations = [[f"{word} " * 9, f"{word} " * 9] for word in ("alphabet", "betatron", "gammaray", "deltoids")]
    data = _build(tmp_path, conversations, validation=0.25, vocab_size=400)
    [[held_out, _]] = _texts(data, "validation")
    lengths = {
        word: len(encode_text(data.tokenizer, [f" {word}"])[0])
        for word in ("alphabet", "betatron", "gammaray", "deltoids")
    }
    assert lengths[held_out.split()[0]] > 1
    assert sorted(lengths.values())[:3] == [1, 1, 1]


def test_a_sample_stays_within_its_limit_and_does_not_see_the_order() -> None:
    """The first megabytes of a corpus sorted by topic are one topic; an unbounded sample is the corpus."""
    conversations = [(key * 7919 % 1000, [Turn("x" * (key % 50 + 1), False)] * 2) for key in range(1000)]
    samples = []
    for order in (conversations, conversations[::-1], conversations * 2):
        sample = TextSample(2000)
        for key, conversation in order:
            sample.add(key, conversation)
        samples.append(sample.texts(above=-1))
    assert samples[0] == samples[1] == samples[2]
    assert 2000 <= sum(map(len, samples[0])) <= 2100


def test_a_vocab_txt_reports_unknown_tokens_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A vocabulary for another language trains a model on [UNK], and nothing says so."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"0123456789", *(f"##{n}" for n in range(10)), *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    fitting = _build(tmp_path, _conversations(20), tokenizer=str(tmp_path / "vocab.txt"))
    assert fitting.report["unknown_share"] == 0
    assert "warning" not in capsys.readouterr().err
    assert fitting.report["vocab_size"] == len(vocabulary)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary[:-2]), encoding="utf-8")
    other = _build(tmp_path, _conversations(20), "other", tokenizer=str(tmp_path / "vocab.txt"))
    tokens = Counter(token for row in [*other.train, *other.validation] for token in row["input_ids"])
    text_tokens = sum(tokens.values()) - tokens[2] - tokens[3]
    assert other.report["unknown_share"] == pytest.approx(tokens[1] / text_tokens)
    assert "unknown to --tokenizer vocab.txt" in capsys.readouterr().err


def test_roles_in_json_decide_which_turns_are_replies(tmp_path: Path) -> None:
    """A conversation that the bot opens had its replies taken for the user's turns."""
    roles = ["assistant", "user", "assistant"]
    rows = [{"messages": [{"role": role, "content": f"{role} {n}"} for role in roles]} for n in range(9)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_dataset([str(tmp_path / "c.jsonl")], tmp_path / "data", DataOptions(vocab_size=280))
    data = open_dataset(tmp_path / "data")
    assert all(row["replies"] == [True, False, True] for row in data.train)
    window = data.windows("train", 64, replies_only=True)[0]
    scored = [token for token, label in zip(window["input_ids"], window["labels"], strict=True) if label != -100]
    assert data.tokenizer.decode(scored, skip_special_tokens=True).count("assistant") == 2
    assert "user" not in data.tokenizer.decode(scored)


# --- a corpus that is held out ---------------------------------------------------------------------------------------


def _build_beside(
    folder: Path, conversations: list[list[str]], held_out: list[list[str]], name: str = "data", **options: Any
) -> ChatData:
    validation = _txt(folder / "talks.txt", held_out)
    return _build(folder, conversations, name, validation=validation, **options)


def test_a_corpus_that_is_held_out_is_the_validation_split_and_the_others_are_trained_on(tmp_path: Path) -> None:
    """A model whose author chose what is held out was measured on conversations that it had been trained on."""
    conversations, held_out = _conversations(40), _conversations(9, seed=1)
    data = _build_beside(tmp_path, conversations, held_out)
    assert sorted(_texts(data, "train")) == sorted(conversations)
    assert sorted(_texts(data, "validation")) == sorted(held_out)
    digest = hashlib.sha256((tmp_path / "talks.txt").read_bytes()).hexdigest()
    assert data.report["validation_corpus"] == {"name": "talks.txt", "sha256": digest}
    assert "validation_share" not in data.report


def test_what_repeats_a_held_out_corpus_is_left_out_of_training_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The corpora that a held-out file was drawn from still hold its conversations, perhaps written otherwise."""
    conversations = _conversations(30)
    louder = [[turn.upper() for turn in turns] for turns in conversations[:4]]
    data = _build_beside(tmp_path, conversations + louder + conversations[25:], conversations[:4] + conversations[:1])
    assert sorted(_texts(data, "train")) == sorted(conversations[4:])
    assert sorted(_texts(data, "validation")) == sorted(conversations[:4])
    assert data.report["left_out"]["held_out_conversations"] == 8
    assert data.report["duplicates"] == 6
    assert "8 held out conversations" in capsys.readouterr().err


def test_no_seed_moves_what_a_held_out_corpus_holds(tmp_path: Path) -> None:
    """The hash of the split is keyed by the seed; a held-out corpus must not be drawn from again."""
    conversations, held_out = _conversations(20), _conversations(5, seed=1)
    splits = [
        sorted(_texts(_build_beside(tmp_path, conversations, held_out, f"data{seed}", seed=seed), "validation"))
        for seed in (0, 7)
    ]
    assert splits[0] == splits[1] == sorted(held_out)


def test_a_tokenizer_learns_nothing_from_a_held_out_corpus(tmp_path: Path) -> None:
    """Its words became tokens, although in use they are spelled: the held-out bits per byte came out too good."""
    conversations = [[f"{word} " * 9, f"{word} " * 9] for word in ("betatron", "gammaray", "deltoids", "alphabet")]
    data = _build_beside(tmp_path, conversations, conversations[3:], vocab_size=400)
    lengths = {word: len(encode_text(data.tokenizer, [f" {word}"])[0]) for word in ("alphabet", "betatron", "gammaray")}
    assert lengths["alphabet"] > 1
    assert lengths["betatron"] == lengths["gammaray"] == 1


def test_a_held_out_corpus_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    """The corpus itself given as --validation made a training split of no rows."""
    conversations = _conversations(6)
    with pytest.raises(BadInput, match=r"--validation talks.txt: holds every conversation of corpus.txt"):
        _build_beside(tmp_path, conversations[:4], conversations)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("validation", "says"),
    [
        ("1.5", "--validation 1.5: must lie between 0 and 1"),
        ("talks.txt", "--validation talks.txt: neither a share, as 0.05 is, nor a corpus; talks.txt: no such file"),
        ("half", "--validation half: neither a share, as 0.05 is, nor a corpus"),
        ("chatterbot:klingon", "no such language"),
    ],
)
def test_a_validation_that_is_no_share_and_no_corpus_is_refused(tmp_path: Path, validation: str, says: str) -> None:
    """A slip of the pen in a file's name was reported as a bad number."""
    assert says in _refusal(tmp_path, "a\nb\n\nc\nd\n", validation=validation)


def test_an_empty_held_out_corpus_is_refused(tmp_path: Path) -> None:
    """A validation split of no rows: every figure was a division by zero."""
    with pytest.raises(BadInput, match=r"talks.txt: is empty"):
        _build_beside(tmp_path, _conversations(4), [])


def test_a_share_may_come_as_text(tmp_path: Path) -> None:
    """The command line gives text, a recipe a number: the same share must make the same data set."""
    conversations = _conversations(20)
    one = _build(tmp_path, conversations, "one", validation="0.25")
    other = _build(tmp_path, conversations, "other", validation=0.25)
    assert one.identity == other.identity
    assert len(one.validation) == 5


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dialogpt(tmp_path_factory: pytest.TempPathFactory) -> ChatData:
    return _build(tmp_path_factory.mktemp("dialogpt"), _conversations(80), validation=0.25, dialogue="dialogpt")


@pytest.mark.parametrize("family", ["data", "dialogpt"])
@pytest.mark.parametrize("context", [3, 4, 17, 64, 1000])
def test_windows_hold_every_turn_token_once_and_fit_the_context(
    family: str, context: int, request: pytest.FixtureRequest
) -> None:
    """A token in no window is never trained on; one in two counts twice in the perplexity."""
    data: ChatData = request.getfixturevalue(family)
    windows = data.windows("train", context)
    start = list(data.dialogue.start_ids)
    turns: dict[int, list[int]] = {row: list(start) for row in range(len(data.train))}
    for index in range(len(windows)):
        window = windows[index]
        ids, labels = window["input_ids"], window["labels"]
        assert len(start) < len(ids) <= context
        assert len(ids) == window["length"] == windows.lengths[index]
        assert ids[: len(start)] == start
        assert labels == [-100] * len(start) + ids[len(start) :]
        turns[int(windows.conversation[index])] += ids[len(start) :]
    assert list(turns.values()) == data.train["input_ids"][:]
    assert windows.text_bytes.sum() == sum(map(sum, data.train["turn_bytes"][:]))
    if context == 1000:
        assert len(windows) == len(data.train)


@pytest.mark.parametrize("context", [9, 30])
def test_windows_are_packed_as_a_plain_loop_would(data: ChatData, context: int) -> None:
    """The vectorised packing cut turns that would have fitted, or opened windows too soon."""
    windows = data.windows("train", context)
    room, expected = context - 1, []
    for row in data.train:
        used = room + 1  # a conversation always begins a window of its own
        for length in row["turn_lengths"]:
            for piece in [room] * (length // room) + [length % room] * (length % room > 0):
                if used + piece > room:
                    expected.append(0)
                    used = 0
                used += piece
                expected[-1] += piece
    assert (windows.lengths - 1).tolist() == expected


def test_masked_turns_take_their_bytes_with_them(data: ChatData) -> None:
    """Bits per byte over replies divided by the bytes of all turns would look twice as good."""
    windows = data.windows("validation", 20, replies_only=True)
    expected = sum(
        size for row in data.validation for size, reply in zip(row["turn_bytes"], row["replies"], strict=True) if reply
    )
    assert windows.text_bytes.sum() == expected
    scored = sum(label != -100 for index in range(len(windows)) for label in windows[index]["labels"])
    assert scored == sum(
        size
        for row in data.validation
        for size, reply in zip(row["turn_lengths"], row["replies"], strict=True)
        if reply
    )


def test_a_window_can_be_asked_for_by_any_index_of_a_list(data: ChatData) -> None:
    """Samplers give numpy integers, people give -1, and `for` needs an IndexError to end."""
    windows = data.windows("train", 32)
    assert windows[-1] == windows[len(windows) - 1] == windows[np.int64(len(windows) - 1)]
    assert len(list(windows)) == len(windows)


@pytest.mark.parametrize("context", [-5, 0, 2])
def test_a_context_too_small_is_refused(data: ChatData, context: int) -> None:
    """No room after the start ids: the packing never ended."""
    with pytest.raises(BadInput, match=f"--context {context}: too small; give at least 3"):
        data.windows("train", context)


def test_collate_pads_on_the_right_and_masks_the_padding(data: ChatData) -> None:
    """A padded label that is not -100 teaches the model to write padding."""
    windows = data.windows("train", 32)
    rows = [windows[0], {"input_ids": [1, 5], "labels": [-100, 5], "length": 2}]
    batch = collate(rows, pad_id=0)
    longest = rows[0]["length"]
    assert batch["input_ids"].shape == (2, longest)
    assert batch["input_ids"][1].tolist() == [1, 5] + [0] * (longest - 2)
    assert batch["labels"][1].tolist() == [-100, 5] + [-100] * (longest - 2)
    assert batch["attention_mask"].sum(1).tolist() == [longest, 2]


def test_windows_of_a_data_set_of_several_arrow_chunks_hold_the_right_rows(tmp_path: Path) -> None:
    """An offset of one chunk used in another gives tokens of other conversations."""
    data = _build(tmp_path, _conversations(2600), validation=0.1)
    assert len(data.train.data.column("input_ids").chunks) > 2
    windows = data.windows("train", 2000)
    assert [window["input_ids"] for window in windows] == data.train["input_ids"][:]


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_the_same_each_time_and_end_with_an_answered_turn(data: ChatData) -> None:
    """Prompts that change make two reports incomparable; a prompt cut inside a turn is finished, not answered."""
    prompts = held_out_prompts(data, 30, 40)
    assert prompts == held_out_prompts(data, 30, 40)
    assert len(prompts) == 30
    assert len(set(map(tuple, prompts))) == 30
    start, end = list(data.dialogue.start_ids), data.dialogue.end_of_turn_id
    whole = [" ".join(map(str, ids)) for ids in data.validation["input_ids"]]
    for prompt in prompts:
        assert len(prompt) <= 40
        assert prompt[:1] == start
        assert prompt[-1] == end
        following = " " + " ".join(map(str, prompt[1:])) + " "
        assert any(following in ids + " " for ids in whole)
        assert not any((ids + " ").endswith(following) for ids in whole), "nothing follows this turn"


def test_more_prompts_than_there_are_turns_are_refused(data: ChatData) -> None:
    """An endless search for a prompt that fits."""
    with pytest.raises(BadInput, match="held-out turns"):
        held_out_prompts(data, 10_000, 40)
    with pytest.raises(BadInput, match="only 0 held-out turns"):
        held_out_prompts(data, 1, 2)


# --- bad input -------------------------------------------------------------------------------------------------------


def _refusal(folder: Path, content: str, name: str = "c.txt", **options: Any) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(BadInput) as error:
        build_dataset([str(folder / name)], folder / "data", DataOptions(**options))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in folder.iterdir()) == [name], "something was left behind"
    return str(error.value)


@pytest.mark.parametrize("validation", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_a_validation_share_outside_0_and_1_is_refused(tmp_path: Path, validation: float) -> None:
    """5 meant as per cent held out everything."""
    assert f"--validation {validation}: " in _refusal(tmp_path, "a\nb\n", validation=validation)


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    """It became a data set of no rows, and training a division by zero."""
    for name, content in (("c.txt", ""), ("c.txt", "\n \n\n"), ("c.json", "[]"), ("c.jsonl", "\n")):
        message = _refusal(tmp_path, content, name)
        assert "is empty" in message
        assert str(tmp_path / name) in message
        (tmp_path / name).unlink()


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """System messages vanished in silence, and their absence from the model was a riddle."""
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    rows = [{"messages": [*messages, {"role": "assistant", "content": f"hello {n}"}]} for n in (1, 2, 3, 3)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, [*rows, ["alone"]])))
    build_dataset([str(tmp_path / "c.jsonl")], tmp_path / "data", DataOptions(vocab_size=280))
    assert capsys.readouterr().err == "left out: 1 short conversations, 4 system messages, 1 duplicates\n"


def test_a_corpus_with_one_side_only_is_refused(tmp_path: Path) -> None:
    """Lines that are not conversations, or a log of one role, train a model that never answers."""
    assert "fewer than two turns" in _refusal(tmp_path, "a\n\nb\n\nc\n")
    (tmp_path / "c.txt").unlink()
    rows = [{"messages": [{"role": "user", "content": text} for text in "abc"]}] * 3
    assert "fewer than two turns" in _refusal(tmp_path, "\n".join(map(json.dumps, rows)), "c.jsonl")


def test_a_single_conversation_is_refused(tmp_path: Path) -> None:
    """Nothing would be left to train on, or to hold out."""
    assert "only one distinct" in _refusal(tmp_path, "a\nb\n\nA \nB\n")


def test_bad_options_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    """A wrong option came to light after the first pass over a large corpus."""
    assert "--vocab-size 100" in _refusal(tmp_path, "a\nb\n\nc\nd\n", vocab_size=100)
    assert "--dialogue klingon" in _refusal(tmp_path, "a\nb\n\nc\nd\n", dialogue="klingon")
    assert "--tokenizer" in _refusal(tmp_path, "a\nb\n\nc\nd\n", tokenizer=str(tmp_path / "c.json"))


def test_what_is_not_a_data_set_is_refused(data: ChatData, tmp_path: Path) -> None:
    """Training on an altered or half-copied data set gives figures that nobody can repeat."""
    with pytest.raises(BadInput, match="no such data set"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(BadInput, match="is not a data set"):
        open_dataset(tmp_path)
    shutil.copytree(data.path, tmp_path / "altered")
    arrow = next((tmp_path / "altered" / "train").glob("*.arrow"))
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)
    with pytest.raises(BadInput, match="altered"):
        open_dataset(tmp_path / "altered")


def test_the_folder_is_what_datasets_reads(data: ChatData) -> None:
    """The stored form is that of `save_to_disk`, so that other tools can read it."""
    rows = load_from_disk(str(data.path / "train"))
    assert rows.column_names == ["input_ids", "turn_lengths", "replies", "counts", "turn_bytes"]
    assert isinstance(data.windows("train", 16), Windows)


@pytest.mark.skipif(
    not list((SHARED / "data" / "kdconv").glob("*.txt")),
    reason=f"no kdconv/*.txt under {SHARED}/data; set CHITCHAT_SHARED to the folder that holds data/",
)
def test_kdconv_in_chinese_is_read_whole(tmp_path: Path) -> None:
    """Real Chinese files: a turn lost at a blank line, or a byte-level vocabulary that cannot write a character."""
    files = sorted(map(str, (SHARED / "data" / "kdconv").glob("*.txt")))
    report = build_dataset(files, tmp_path / "data", DataOptions(vocab_size=1000))
    lines = [line for file in files for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    left_out = report["left_out"]["short_conversations"] + report["duplicates"]
    assert report["turns"] == len(lines) if not left_out else report["turns"] < len(lines)
    data = open_dataset(tmp_path / "data")
    assert {turn for turns in _texts(data, "validation") for turn in turns} <= {line.strip() for line in lines}
    assert report["unknown_share"] == 0
