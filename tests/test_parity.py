"""The parity check: passes what is right, and its figures catch what is broken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import exported, random_gpt2

from chitchat.data.dataset import open_dataset
from chitchat.errors import WorkFailed
from export.parity import LIMITS, Parity, _Totals, check_parity, parity_prompts
from serve.engine import Engine

PROMPTS, ORIGIN = parity_prompts(None, vocab=101, context=64, count=10)


def measured(model, engine: Engine, grade: str) -> Parity:
    parity = check_parity(engine, model, PROMPTS, ORIGIN, grade)
    parity.figures["weights_changed"] = 0
    return parity


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_right_graph_passes(bits: int | None, tmp_path: Path) -> None:
    """A gate that right graphs fail is a gate that is taken away."""
    model = random_gpt2()
    parity = measured(model, Engine(exported(model, tmp_path, bits), threads=1), "float" if bits is None else "rounded")
    parity.require()
    assert parity.figures["greedy_prompts"] == 10


def _scale_a_row(model) -> None:
    model.transformer.h[1].mlp.c_fc.weight[0] *= 1.05


def _drop_a_bias(model) -> None:
    model.transformer.h[0].attn.c_proj.bias.zero_()


def _shift_a_norm(model) -> None:
    block = model.transformer.h[0]
    block.ln_1.bias.add_(0.05)


def _shift_the_positions(model) -> None:
    model.transformer.wpe.weight.copy_(model.transformer.wpe.weight.roll(1, 0))


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("damage", [_drop_a_bias, _shift_a_norm, _shift_the_positions])
def test_a_broken_graph_fails_by_its_figures(damage, bits: int | None, tmp_path: Path) -> None:
    """Each is a mistake that exporters make, and each leaves fluent text."""
    model = random_gpt2()
    engine = Engine(exported(model, tmp_path, bits), threads=1)
    with torch.no_grad():
        damage(model)  # now the graph is the one that is wrong
    with pytest.raises(WorkFailed, match=r"parity: .*at most.*no bundle"):
        measured(model, engine, "float" if bits is None else "rounded").require()


def test_five_percent_on_one_row_of_one_weight_fails_the_float_gate(tmp_path: Path) -> None:
    """The finest damage that the float limits must see."""
    model = random_gpt2()
    engine = Engine(exported(model, tmp_path), threads=1)
    with torch.no_grad():
        _scale_a_row(model)
    figures = measured(model, engine, "float")
    assert figures.figures["logits_relative"] > LIMITS["float"]["logits_relative"]
    assert any("logits_relative" in line for line in figures.failures)


def test_a_figure_that_is_not_a_number_fails() -> None:
    """NaN is not above any limit."""
    parity = Parity(ORIGIN, {"kl_prefill": 1.0}, {"kl_prefill": float("nan")})
    assert parity.failures


def test_a_tie_is_told_from_a_divergence() -> None:
    """Two tokens within the error of the logits are both right; a whole one apart they are not."""
    totals = _Totals()
    row = np.zeros((1, 5), dtype=np.float32)
    row[0, 1], row[0, 2] = 10.0, 10.0 - 5e-4
    totals.add_tokens(row, [1])
    assert (totals.tied, totals.diverged) == (0, 0)
    totals.add_tokens(row, [2])
    assert (totals.tied, totals.diverged) == (1, 0)
    totals.add_tokens(np.concatenate([row, row]), [2, 3])
    assert (totals.prompts, totals.tied, totals.diverged) == (3, 1, 1)


def test_prompts_are_held_out_ones_as_far_as_they_reach(tiny_data: Path) -> None:
    """Random ids only test the model where no user goes; what was used is recorded."""
    data = open_dataset(tiny_data)
    prompts, origin = parity_prompts(data, vocab=300, context=64)
    assert len(prompts) == 100
    assert origin["held_out"] > 0
    assert sum(origin.values()) == 100
    assert all(prompt[-1] == data.dialogue.end_of_turn_id for prompt in prompts[: origin["held_out"]])
    assert (prompts, origin) == parity_prompts(data, vocab=300, context=64)


@pytest.mark.parametrize("context", [8, 20, 1024])
def test_prompts_leave_room_for_a_reply(context: int) -> None:
    """A prompt as long as the context measures no decode step."""
    prompts, _ = parity_prompts(None, vocab=50, context=context)
    assert all(0 < len(prompt) < context for prompt in prompts)
