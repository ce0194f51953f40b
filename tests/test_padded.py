"""Several conversations through one torch model: the logits are those that each row has alone."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.padded import PaddedRows

CONTEXT = 12


def lively() -> GPT2LMHeadModel:
    """A model with far from uniform predictions."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_layer=2, n_embd=16, n_head=2, n_positions=CONTEXT, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def alone(model: GPT2LMHeadModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def test_rows_of_any_length_have_the_logits_that_they_have_alone() -> None:
    """Stops padding that is attended, positions that count it, and places mixed up when a row is forgotten."""
    model = lively()
    texts = [[5, 9, 33], [7], [50, 4, 8, 1, 2]]
    rows = PaddedRows(model)
    for found, ids in zip(rows.start(texts), texts, strict=True):
        torch.testing.assert_close(found, alone(model, ids))
    rows.keep([2, 1])
    texts = [[*texts[2], 11], [*texts[1], 22]]
    for found, ids in zip(rows.step([11, 22]), texts, strict=True):
        torch.testing.assert_close(found, alone(model, ids))
    assert len(rows) == 2
    assert len(rows.start([[1]])) == 1, "the rows of before are gone"


def test_a_full_row_does_not_disturb_the_others() -> None:
    """Stops a position beyond the table, and a batch that has to end with its longest row."""
    model = lively()
    full, short = list(range(1, CONTEXT + 1)), [3, 4]
    rows = PaddedRows(model)
    rows.start([full, short])
    for id in (5, 6):
        short = [*short, id]
        found = rows.step([0, id])
        torch.testing.assert_close(found[1], alone(model, short))
