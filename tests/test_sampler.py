"""The sampler gives the distribution of transformers' processors, reproducibly, and refuses bad options."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serve.errors import BadRequest, ServeError
from serve.sampler import SamplingOptions, build_sampler, candidates, penalise

VOCAB, END = 1000, 7
BANNED = (0, 1, 2)
OFF = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=0)


def theirs(logits: np.ndarray, bot_ids: list[int], options: SamplingOptions) -> np.ndarray:
    """The distribution that transformers' processors give, in the order of `generate`."""
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(options.repetition_penalty)])
    if options.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(len(bot_ids), options.min_new_tokens, END))
    chain.append(SuppressTokensLogitsProcessor(list(BANNED)))
    chain.append(TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        chain.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        chain.append(TopPLogitsWarper(options.top_p))
    scores = chain(torch.tensor([bot_ids]), torch.tensor(logits)[None])
    return torch.softmax(scores.double(), -1)[0].numpy()


def ours(logits: np.ndarray, bot_ids: list[int], options: SamplingOptions) -> np.ndarray:
    """The distribution that the sampler draws from."""
    scores = logits.copy()
    penalise(scores, logits, np.array(bot_ids, dtype=np.intp), options.repetition_penalty)
    if options.min_new_tokens:
        scores[END] = -np.inf
    scores[list(BANNED)] = -np.inf
    ids, weights = candidates(scores, options)
    whole = np.zeros(VOCAB)
    whole[ids] = weights
    return whole / whole.sum()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": VOCAB + 5},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"top_p": 1e-9},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"min_new_tokens": 3},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "min_new_tokens": 1},
    ],
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_distribution_equals_that_of_transformers(change: dict, scale: float) -> None:
    """Stops a wrong order of processors, a penalty that raises negative scores, and an off-by-one nucleus."""
    options = dataclasses.replace(OFF, **change)
    for seed in range(5):
        generator = np.random.default_rng(seed)
        logits = (generator.standard_normal(VOCAB) * scale).astype(np.float32)
        bot_ids = [int(i) for i in generator.integers(8, VOCAB, 30)]
        expected, got = theirs(logits, bot_ids, options), ours(logits, bot_ids, options)
        assert set(np.flatnonzero(expected)) == set(np.flatnonzero(got))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_draws_follow_the_distribution() -> None:
    """Stops a draw that is biased towards the first or the last candidate."""
    logits = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32) * 2
    options = dataclasses.replace(OFF, top_k=5, seed=1)
    expected = ours(logits, [], options)
    sample = build_sampler(options, BANNED, END)
    counts = np.bincount([sample(logits, []) for _ in range(8000)], minlength=VOCAB) / 8000
    assert np.abs(counts - expected).max() < 0.03  # 5 sigma of the largest cell


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    """Stops random state that requests share."""
    logits = np.random.default_rng(0).standard_normal((50, VOCAB)).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        sample = build_sampler(SamplingOptions(seed=seed), BANNED, END)
        np.random.default_rng().random()
        return [sample(row, []) for row in logits]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-300, 5e-324])
def test_temperature_zero_and_nearly_zero_take_the_largest_score(temperature: float) -> None:
    """Stops a division by zero, and an overflow to NaN just above zero."""
    logits = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    options = dataclasses.replace(OFF, temperature=temperature)
    logits[list(BANNED)] = 50.0
    logits[11] = 20.0
    logits[END] = 10.0
    before = logits.copy()
    assert build_sampler(options, BANNED, END)(logits, []) == 11
    assert np.array_equal(before, logits), "the caller's logits were changed"


def test_banned_ids_are_never_drawn_and_the_end_of_turn_only_after_the_minimum() -> None:
    """Stops an empty reply, and a padding token in one."""
    logits = np.full(VOCAB, -5.0, dtype=np.float32)
    logits[[*BANNED, END]] = 30.0
    sample = build_sampler(dataclasses.replace(OFF, min_new_tokens=3, seed=0), BANNED, END)
    drawn = [sample(logits, []) for _ in range(5)]
    assert END not in drawn[:3]
    assert drawn[3:] == [END, END]
    assert not set(drawn) & set(BANNED)


def test_the_end_of_turn_is_not_penalised() -> None:
    """Stops replies that grow with every turn because earlier turns hold the end of turn."""
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[END], logits[9] = 2.0, 1.5
    greedy = dataclasses.replace(OFF, temperature=0.0, repetition_penalty=5.0)
    assert build_sampler(greedy, BANNED, END)(logits, [END, END]) == END


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_an_error(bad: float, temperature: float) -> None:
    """Stops a damaged model from answering with token 0 for ever."""
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[5] = bad
    if bad == -math.inf:
        logits[:] = bad
    with pytest.raises(ServeError, match="not numbers"):
        build_sampler(dataclasses.replace(OFF, temperature=temperature), BANNED, END)(logits, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", 10**400),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**18),
        ("max_new_tokens", 1e3),
        ("min_new_tokens", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", [1]),
    ],
)
def test_a_bad_option_names_itself_and_the_remedy(name: str, value: Any) -> None:
    """Stops NaN, booleans, strings and numbers too large for the engine from getting past the border."""
    with pytest.raises(BadRequest, match=rf"^{name} .*: give a ") as caught:
        SamplingOptions(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 120


def test_a_number_too_long_to_print_is_refused_like_any_other() -> None:
    """Stops Python's own ValueError about 4,300 digits from escaping as an internal error."""
    with pytest.raises(BadRequest, match="huge number"):
        SamplingOptions(seed=10**5000)
