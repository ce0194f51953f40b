"""Which windows make which step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chitchat.training.batches import GlobalBatches, ProcessBatches, share_out, training_batch

LENGTHS = np.random.default_rng(1).integers(5, 128, 500)


def test_every_window_is_read_once_in_a_pass():
    """Stops: windows that are dropped at the end of a pass, or read twice in it."""
    batches = GlobalBatches(LENGTHS[:480], 16, seed=0)
    seen = np.concatenate([batches[step] for step in range(30)])
    pools = np.concatenate([batches[step] for step in range(60)])
    assert np.bincount(pools, minlength=480).tolist() == [2] * 480
    assert np.bincount(seen, minlength=480).max() == 1


def test_windows_of_like_length_meet():
    """Stops: batches that are mostly padding."""
    batches = GlobalBatches(LENGTHS, 8, seed=0)
    padded = sum(batches.padded_tokens(step) for step in range(60))
    shuffled = np.random.default_rng(0).permutation(LENGTHS)[:480].reshape(60, 8)
    plain = sum(row.max() * 8 for row in shuffled)
    read = batches.tokens(60)
    assert (padded - read) * 4 < plain - read


def test_a_step_needs_only_its_number():
    """Stops: an order that depends on what was read before, which no resumed run could repeat."""
    forward = GlobalBatches(LENGTHS, 8, seed=3)
    orders = [forward[step].tolist() for step in range(200)]
    backward = GlobalBatches(LENGTHS, 8, seed=3)
    assert [backward[step].tolist() for step in range(199, -1, -1)][::-1] == orders
    assert GlobalBatches(LENGTHS, 8, seed=4)[0].tolist() != orders[0]
    assert orders[:62] != orders[62:124]


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_processes_and_accumulation_share_out_the_same_global_batch(accumulation, processes):
    """Stops: two processes that read the same windows, or a global batch that depends on how many there are."""
    batches = GlobalBatches(LENGTHS, 8, seed=0)
    parts = [list(ProcessBatches(batches, 5, accumulation, one, processes)) for one in range(processes)]
    assert {len(part) for part in parts} == {5 * accumulation}
    for step in range(5):
        mine = [
            window
            for part in parts
            for batch in part[step * accumulation : (step + 1) * accumulation]
            for window in batch
        ]
        assert sorted(mine) == sorted(batches[step].tolist())


def test_a_batch_larger_than_the_data_still_works():
    """Stops: an empty data loader, or an endless one, for a handful of conversations."""
    batches = GlobalBatches(np.asarray([7, 9, 11]), 8, seed=0)
    assert sorted(set(batches[0].tolist())) == [0, 1, 2]
    assert [len(part) for part in share_out(batches[1], 4)] == [2, 2, 2, 2]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3), st.integers(1, 5))
def test_no_window_is_read_twice_more_than_another(lengths: list[int], size: int, seed: int, pools: int) -> None:
    """Stops: windows that are dropped where a pass ends within a pool, ids that are counted for other windows."""
    batches = GlobalBatches(np.asarray(lengths), size, seed)
    steps = pools * batches.pool_batches
    read = np.concatenate([batches[step] for step in range(steps)])
    counts = np.bincount(read, minlength=len(lengths))
    assert len(read) == steps * size
    assert counts.max() - counts.min() <= 1
    assert batches.tokens(steps) == sum(lengths[number] for number in read)
    for step in range(steps):
        found = [lengths[number] for number in batches[step]]
        assert batches.padded_tokens(step) == max(found) * size
        assert batches.padded_tokens(step, size) == sum(found)


def test_a_batch_is_padded_on_the_right_and_predicts_no_first_id():
    """Stops: a label of padding, and a count of labels that the loss does not have."""
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "length": 3},
        {"input_ids": [8], "labels": [8], "length": 1},
    ]
    batch = training_batch(rows)
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, -100, -100]]
    assert batch["input_ids"][0].tolist() == [5, 6, 7]
    assert batch["input_ids"][1, 0] == 8
    assert set(batch) == {"input_ids", "labels"}
