"""Conversations that a model writes to be healed on."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.data.dataset import open_dataset
from compress.distill import samples
from compress.distill.samples import (
    Chosen,
    Joined,
    SampledWindows,
    Sampler,
    draw_prompts,
    student_replies,
    teacher_conversations,
)


@pytest.fixture
def data(tiny_data):
    return open_dataset(tiny_data)


@pytest.fixture
def lively():
    """A model with far from uniform predictions, which end a turn now and then; context 64."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_layer=2, n_embd=32, n_head=4, n_positions=64, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def test_rows_of_one_batch_go_on_as_each_does_alone(lively):
    """Stops: padding that is attended, positions that count it, a cache whose rows are mixed up when some end."""
    prompts = [[5, 9, 33], [7], [250, 4, 8, 1, 2, 66, 90], [12, 12], [200, 3, 4]]
    ends = {}
    for prompt in prompts:
        ids = torch.tensor([prompt])
        while ids.shape[1] < 24:
            with torch.no_grad():
                ids = torch.cat([ids, lively(ids).logits[:, -1:].argmax(-1)], dim=1)
        ends[tuple(prompt)] = ids[0].tolist()
    greedy = Sampler(lively, [], seed=0, top_p=1e-9)
    assert greedy.continue_all(prompts, 24) == list(ends.values())
    new = [row[len(prompt) :] for prompt, row in zip(prompts, ends.values(), strict=True)]
    end = new[0][2]
    shortened = [
        [*p, *(row[: row.index(end) + 1] if end in row else row)[:9]] for p, row in zip(prompts, new, strict=True)
    ]
    assert len({len(row) for row in shortened}) > 1
    assert greedy.continue_all(prompts, 24, end_id=end, max_new_tokens=9) == shortened


def test_drawn_ids_follow_the_model_within_the_nucleus_and_leave_banned_ones_out(lively):
    """Stops: greedy text, a tail that is drawn all the same, `[PAD]` in what the student learns from."""
    with torch.no_grad():
        logits = lively(torch.tensor([[5, 9]])).logits[0, -1]
    banned = int(logits.argmax())
    logits[banned] = -torch.inf
    probability, order = logits.softmax(-1).sort(descending=True)
    nucleus = order[: int((probability.cumsum(0) < 0.9).sum()) + 1]
    expected = torch.zeros(300).index_put((nucleus,), logits.softmax(-1)[nucleus])
    drawn = Sampler(lively, [banned], seed=1, top_p=0.9).continue_all([[5, 9]] * 4000, 3)
    counts = torch.bincount(torch.tensor([row[-1] for row in drawn]), minlength=300)
    assert set(counts.nonzero()[:, 0].tolist()) <= set(nucleus.tolist())
    torch.testing.assert_close(counts / 4000, expected / expected.sum(), atol=0.03, rtol=0)


def test_the_same_seed_writes_the_same_and_another_does_not(lively, data):
    """Stops: conversations that depend on torch's global state, or a round that repeats the one before."""
    runs = [student_replies(lively, data, 32, 20, seed=seed) for seed in (1, 1, 2)]
    assert runs[0].ids == runs[1].ids != runs[2].ids
    assert runs[0].labelled_from == runs[1].labelled_from


def test_own_replies_have_labels_behind_a_prompt_of_whole_turns(lively, data):
    """Stops: a student that learns on other people's words, a prompt that begins within a turn or without its start."""
    end, start = data.dialogue.end_of_turn_id, list(data.dialogue.start_ids)
    turns = {tuple(turn) for row in data.train for turn in _turns(row, end, len(start))}
    replies = student_replies(lively, data, 40, 50, seed=0)
    assert len(replies) == 50
    assert len({tuple(ids) for ids in replies.ids}) > 25
    for window in (replies[number] for number in range(len(replies))):
        prompt = sum(label == -100 for label in window["labels"])
        ids = window["input_ids"]
        assert window["labels"][prompt:] == ids[prompt:] != []
        assert ids[: len(start)] == start
        assert len(start) < prompt <= 20
        assert len(ids) == window["length"] <= 40
        assert end not in ids[prompt:-1]
        whole = _turns({"input_ids": ids[:prompt]}, end, len(start))
        assert all(tuple(turn) in turns for turn in whole[1:])
        assert tuple(whole[0]) in turns or len(whole) == 1  # the end of one that is too long


def _turns(row, end, start):
    ids, turns, begin = list(row["input_ids"])[start:], [], 0
    for index, token in enumerate(ids):
        if token == end:
            turns.append(ids[begin : index + 1])
            begin = index + 1
    return turns


def test_the_teachers_conversations_begin_as_real_ones_and_fill_the_window(lively, data, monkeypatch):
    """Stops: windows of padding, text without a conversation's start, labels on what the teacher did not write."""
    monkeypatch.setattr(samples, "BATCH_ROWS", 4)
    begins = {tuple(row["input_ids"][:3]) for row in data.train}
    written = teacher_conversations(lively, data, 32, 500, seed=0)
    assert int(written.lengths.sum()) >= 500
    assert set(written.lengths.tolist()) == {32}
    assert all(tuple(ids[:3]) in begins for ids in written.ids)
    assert set(written.labelled_from) == {0}
    by_reply = teacher_conversations(lively, data, 32, 500, seed=0, replies_only=True)
    assert by_reply.ids == written.ids
    assert all(0 < begin <= 16 for begin in by_reply.labelled_from)
    banned = set(data.dialogue.banned_ids)
    assert not any(banned & set(ids[begin:]) for ids, begin in zip(by_reply.ids, by_reply.labelled_from, strict=True))
    short = teacher_conversations(lively, data, 32, 500, seed=0, enough=lambda: True)
    assert len(short) == 4  # a batch, an id of each, and time is up
    assert short.lengths.max() < 32


def test_prompts_of_a_longest_turn_keep_its_end(data):
    """Stops: an empty prompt where no whole turn fits."""
    for prompt in draw_prompts(data, 30, 4, np.random.default_rng(0)):
        assert 2 <= len(prompt) <= 4
        assert prompt[-1] == data.dialogue.end_of_turn_id


def test_stored_windows_read_as_they_were(tmp_path):
    """Stops: a resumed run on other conversations; a file that is half there."""
    written = SampledWindows([[1, 2, 3], [4, 70_000]], [1, 0])
    written.save(tmp_path / "deep" / "a.npz")
    read = SampledWindows.load(tmp_path / "deep" / "a.npz")
    assert [read[number] for number in range(2)] == [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "length": 3},
        {"input_ids": [4, 70_000], "labels": [4, 70_000], "length": 2},
    ]
    assert read.lengths.tolist() == [3, 2]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.npz"]


def test_joined_and_chosen_windows_are_found_by_their_numbers():
    """Stops: an off-by-one between sets, lengths of other windows than are read."""
    first, second = SampledWindows([[1], [2, 2]], [0, 0]), SampledWindows([[3, 3, 3]], [0])
    both = Joined(first, Chosen(first, np.array([1])), second)
    assert [both[number]["input_ids"] for number in range(len(both))] == [[1], [2, 2], [2, 2], [3, 3, 3]]
    assert both.lengths.tolist() == [1, 2, 2, 3]
