"""The parity check: passes what is right, and its figures catch what is broken."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bundles import exported, random_gpt2, weights_of

from chitchat.data.dataset import open_dataset
from chitchat.errors import WorkFailed
from export.graph.builder import graph_spec
from export.parity import (
    LIMITS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    TIE,
    Parity,
    _Totals,
    changed_weights,
    check_parity,
    grade_of,
    greedy_reply,
    parity_prompts,
    same_tokens,
    torch_logits,
)
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


class Damaged(Engine):
    """An engine with one of its two paths damaged: `prefill`, whole sequences; or `decode`, single tokens."""

    path, damage = "", staticmethod(lambda logits: logits)

    def logits(self, ids: Any) -> Any:
        logits = super().logits(ids)
        return self.damage(logits) if self.path == "prefill" else logits

    def step(self, token: int) -> Any:
        logits = super().step(token)
        return self.damage(logits) if self.path == "decode" else logits


def _one_logit(change: float) -> Any:
    def damage(logits: Any) -> Any:
        changed = logits.copy()
        changed.reshape(-1)[7] += change
        return changed

    return damage


@pytest.mark.parametrize(("bits", "change"), [(None, 0.05), (None, math.nan), (8, 20.0), (8, math.nan)])
@pytest.mark.parametrize("path", ["prefill", "decode"])
def test_either_path_that_is_wrong_alone_fails(path: str, bits: int | None, change: float, tmp_path: Path) -> None:
    """The two paths run different kernels; a NaN in one of them once hid behind the largest difference of the other."""
    model = random_gpt2()
    engine = Damaged(exported(model, tmp_path, bits), threads=1)
    grade = "float" if bits is None else "rounded"
    measured(model, engine, grade).require()
    engine.path, engine.damage = path, _one_logit(change)
    with pytest.raises(WorkFailed, match="at most"):
        measured(model, engine, grade).require()


def test_the_figures_are_those_of_plain_loops() -> None:
    """Stops means of means, a maximum over one path only, a KL the wrong way round, sums that forget a prompt."""
    draw = np.random.default_rng(0)
    totals, prompts = _Totals(), []
    for count, reply_length in ((3, 2), (1, 1), (9, 4)):
        scale = draw.uniform(0.2, 5.0, (count, 1))  # rows of other sizes: each has its own largest logit
        want, whole = ((scale * draw.normal(0.5, 1.0, (count, 11))).astype(np.float32) for _ in range(2))
        want_steps, steps = (draw.normal(-1.0, 2.0, (reply_length, 11)).astype(np.float32) for _ in range(2))
        reply = [int(row.argmax()) for row in steps]
        totals.add(want, whole, want_steps, steps, reply)
        prompts.append((want, whole, want_steps, steps, reply))

    def kl(want: Any, got: Any) -> float:
        p, q = (np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum() for row in (want, got))
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    prefill = [pair for want, whole, *_ in prompts for pair in zip(want, whole, strict=True)]
    decode = [pair for _, _, want, got, _ in prompts for pair in zip(want, got, strict=True)]
    errors, sizes = 0.0, 0.0
    for want, got in [*prefill, *decode]:
        want, got = want.astype(np.float64), got.astype(np.float64)
        errors += (((got - got.mean()) - (want - want.mean())) ** 2).sum()
        sizes += ((want - want.mean()) ** 2).sum()
    diverged = [
        any(max(row) - row[token] > TIE * max(map(abs, row)) for row, token in zip(want.tolist(), reply, strict=True))
        for _, _, want, _, reply in prompts
    ]
    expected = {
        "logits_relative": max(abs(want - got).max() / abs(want).max() for want, got in [*prefill, *decode]),
        "logits_rms": math.sqrt(errors / sizes),
        "kl_prefill": sum(kl(*pair) for pair in prefill) / 13,
        "kl_decode": sum(kl(*pair) for pair in decode) / 7,
        "top1_agreement": sum(want.argmax() == got.argmax() for want, got in prefill) / 13,
        "greedy_prompts": 3,
        "greedy_tied": 0,
        "greedy_diverged": sum(diverged),
    }
    assert totals.figures() == pytest.approx(expected, rel=1e-6)


def test_a_figure_at_its_limit_passes_and_one_above_fails_with_both_numbers() -> None:
    """The limits are the highest values that pass; an error without the figures helps nobody."""
    parity = Parity(ORIGIN, {"kl_prefill": 0.5, "greedy_diverged": 0}, {"kl_prefill": 0.5, "greedy_diverged": 0})
    parity.require()
    parity.figures["greedy_diverged"] = 1
    assert parity.failures == ["greedy_diverged 1 (at most 0)"]
    assert parity.as_json() == {"prompts": ORIGIN, "limits": parity.limits, "figures": parity.figures}


def test_a_greedy_reply_is_the_likeliest_tokens_and_their_logits(tmp_path: Path) -> None:
    """The reply decides which positions of the decode path are measured: all of them, and none twice."""
    model = random_gpt2()
    engine = Engine(exported(model, tmp_path), threads=1)
    for length in (1, 5, 64 - NEW_TOKENS, 60, 63):
        prompt = np.random.default_rng(length).integers(0, 101, length).tolist()
        reply, rows = greedy_reply(engine, prompt)
        assert len(reply) == min(NEW_TOKENS, 64 - length)
        whole = list(prompt)
        for token, row in zip(reply, rows, strict=True):
            want = torch_logits(model, whole)[-1]
            np.testing.assert_allclose(row, want, atol=1e-5)
            assert token == want.argmax()
            whole.append(token)


def test_tokens_of_a_generator_without_logits_are_counted(tmp_path: Path) -> None:
    """Optimum's runtime gives tokens only; a wrong one must count, and a right reply must not."""
    model = random_gpt2()
    engine = Engine(exported(model, tmp_path), threads=1)

    def wrong_for_two(prompt: Any) -> list[int]:
        reply = greedy_reply(engine, prompt)[0]
        return [*reply[:-1], (reply[-1] + 50) % 101] if prompt in PROMPTS[:2] else reply

    found = same_tokens(PROMPTS, model, wrong_for_two)
    assert found == {"greedy_prompts": 10, "greedy_tied": 0, "greedy_diverged": 2}


def test_a_weight_that_differs_by_one_bit_is_counted(tmp_path: Path) -> None:
    """The exporter writes exactly the checkpoint's numbers; a tensor that is missing or of another type counts too."""
    model = random_gpt2()
    bundle, weights = exported(model, tmp_path), weights_of(model)
    assert changed_weights(bundle.graph_path("cpu"), weights) == 0
    (first, *_), last = weights.arrays, list(weights.arrays)[-1]
    bits = weights.arrays[first].copy()
    bits.view(np.uint32).reshape(-1)[-1] ^= 1
    other = {**weights.arrays, first: bits, last: weights.arrays[last].astype(np.float64), "elsewhere": bits}
    assert changed_weights(bundle.graph_path("cpu"), replace(weights, arrays=other)) == 3


def test_the_loosest_arithmetic_of_a_graph_decides_its_limits() -> None:
    """A float graph held to the limits of a rounded one hides its faults; the other way right graphs fail."""
    model = random_gpt2()
    rounded, static = weights_of(random_gpt2(), 8).formats, weights_of(random_gpt2(), "w8a8").formats
    spec = graph_spec(model.config, {})
    assert grade_of(spec) == "float"
    assert grade_of(replace(spec, target="cuda")) == "rounded"
    assert grade_of(replace(spec, formats=rounded)) == "rounded"
    assert grade_of(replace(spec, formats=rounded, kv="int8")) == "int8 cache"
    assert grade_of(replace(spec, formats=static, kv="int8")) == "static"
    assert set(LIMITS) == {"float", "rounded", "int8 cache", "static"}


def test_prompts_are_held_out_ones_as_far_as_they_reach(tiny_data: Path) -> None:
    """Random ids only test the model where no user goes; what was used is recorded."""
    data = open_dataset(tiny_data)
    prompts, origin = parity_prompts(data, vocab=300, context=64)
    assert len(prompts) == 100
    assert origin["held_out"] > 0
    assert sum(origin.values()) == 100
    assert all(prompt[-1] == data.dialogue.end_of_turn_id for prompt in prompts[: origin["held_out"]])
    assert (prompts, origin) == parity_prompts(data, vocab=300, context=64)


@pytest.mark.parametrize("context", [8, 20, 72, 1024])
def test_prompts_leave_room_for_a_reply(context: int) -> None:
    """A prompt as long as the context measures no decode step."""
    prompts, origin = parity_prompts(None, vocab=50, context=context, count=300)
    lengths = [len(prompt) for prompt in prompts]
    longest = min(PROMPT_TOKENS, max(1, context - NEW_TOKENS), context * 3 // 4)
    assert (len(prompts), origin) == (300, {"held_out": 0, "random": 300})
    assert (min(lengths), max(lengths)) == (1, longest)
    assert set().union(*prompts) == set(range(50))
    other = parity_prompts(None, vocab=50, context=context, count=300, seed=1)[0]
    assert prompts == parity_prompts(None, vocab=50, context=context, count=300)[0] != other
