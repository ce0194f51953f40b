"""The sampler gives the distribution of transformers' processors, reproducibly, and refuses bad options."""

import dataclasses
import math
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serve.errors import BadRequest, ServeError
from serve.options import PRESETS, SamplingOptions
from serve.sampler import build_sampler, candidates, largest, penalise, repeating, score
from serve.scored import ScoredToken

VOCAB, END = 1000, 7
WIDE_VOCAB = 13317  # that of GPT2-chitchat
BANNED = (0, 1, 2)
OFF = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, min_new_tokens=0)


def logits_of(kind: str, seed: int, vocab: int) -> np.ndarray:
    """Random logits float32 [vocab]: of some spread, many of them equal, with one far above, or all equal."""
    logits = np.random.default_rng(seed).standard_normal(vocab)
    match kind:
        case "ties":
            logits = np.round(logits * 2)
        case "peaked":
            logits[seed] += 30
        case "flat":
            logits[:] = 0
        case spread:
            logits *= float(spread)
    return logits.astype(np.float32)


def warped(logits: np.ndarray, options: SamplingOptions) -> np.ndarray:
    """The probabilities float64 [vocab] that transformers' warpers give, in the order of `generate`."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(float(options.temperature))])
    if options.top_k:
        chain.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        chain.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        chain.append(MinPLogitsWarper(options.min_p))
    # In double: the sum of 13,317 float32 probabilities is off by more than a nucleus' edge allows.
    scores = chain(torch.empty(1, 0, dtype=torch.long), torch.tensor(logits, dtype=torch.float64)[None])
    return torch.softmax(scores, -1)[0].numpy()


def processed(logits: np.ndarray, bot_ids: list[int], earlier: list[int], options: SamplingOptions) -> np.ndarray:
    """What transformers' processors make of the logits, in the order of `generate`."""
    reply = torch.tensor([bot_ids], dtype=torch.long)
    said = torch.tensor([[i for i in earlier + bot_ids if i != END]], dtype=torch.long)
    scores = torch.tensor(logits)[None]
    scores = RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))(said, scores)
    if options.no_repeat_ngram:
        scores = NoRepeatNGramLogitsProcessor(options.no_repeat_ngram)(reply, scores)
    scores = MinNewTokensLengthLogitsProcessor(0, options.min_new_tokens, END)(reply, scores)
    return SuppressTokensLogitsProcessor(list(BANNED))(reply, scores)[0].numpy()


WARPERS: list[dict[str, Any]] = [
    {},
    *[{"temperature": temperature} for temperature in (1e-6, 0.01, 0.3, 2.5, 100.0)],
    *[{"top_k": top_k} for top_k in (1, 2, 40, 900, 20_000)],
    *[{"top_p": top_p} for top_p in (1e-9, 0.1, 0.9, 0.999)],
    *[{"min_p": min_p} for min_p in (1e-6, 0.05, 0.9, 1.0)],
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    {"temperature": 1.7, "top_k": 200, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.6, "top_p": 0.8, "min_p": 0.1},
]


@pytest.mark.parametrize("change", WARPERS, ids=str)
@pytest.mark.parametrize("kind", ["0.1", "1", "8", "ties", "peaked", "flat"])
@pytest.mark.parametrize("vocab", [VOCAB, WIDE_VOCAB])
def test_warpers_equal_those_of_transformers(change: dict[str, Any], kind: str, vocab: int) -> None:
    """Stops a wrong order of warpers, an off-by-one nucleus, and a shortcut to the largest that loses one or a tie."""
    options = dataclasses.replace(OFF, **change)
    for seed in range(3):
        logits = logits_of(kind, seed, vocab)
        logits[seed] = -np.inf
        expected = warped(logits, options)
        ids, edges = candidates(logits, options)
        got = np.zeros(vocab)
        got[ids] = np.diff(edges, prepend=0) / edges[-1]
        if kind in ("ties", "flat"):  # which of equals are in the nucleus is not defined; how many are, is
            expected, got = np.sort(expected), np.sort(got)
        else:
            assert set(np.flatnonzero(expected)) <= set(ids)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-12)
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("penalty", [0.01, 0.7, 1.0, 1.3, 100.0])
def test_the_repetition_penalty_equals_that_of_transformers(penalty: float) -> None:
    """Stops a penalty that raises negative scores, and one that counts an id twice because it was said twice."""
    for seed in range(10):
        logits = logits_of("3", seed, WIDE_VOCAB)
        ids = np.random.default_rng(seed).integers(0, WIDE_VOCAB, 300)
        ids = np.concatenate([ids, ids[:100]])
        scores = logits.copy()
        penalise(scores, logits, ids, penalty)
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(ids)[None], torch.tensor(logits)[None])
        np.testing.assert_array_equal(scores, theirs[0].numpy())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_banned_ngrams_equal_those_of_transformers(size: int) -> None:
    """Stops an n-gram that is off by one, at either end, and a crash while the reply is shorter than one."""
    for seed in range(200):
        generator = np.random.default_rng(seed)
        ids = generator.integers(0, 4, generator.integers(0, 40))
        theirs = NoRepeatNGramLogitsProcessor(size)(torch.tensor(ids)[None], torch.zeros(1, 9))
        assert set(repeating(ids, size).tolist()) == set(np.flatnonzero(theirs[0].isneginf().numpy()).tolist())


def random_options(generator: np.random.Generator) -> SamplingOptions:
    """Any combination of options."""
    return SamplingOptions(
        temperature=float(generator.choice([0.05, 0.5, 0.8, 1.0, 3.0, 100.0])),
        top_k=int(generator.choice([0, 1, 5, 40, 300])),
        top_p=float(generator.choice([0.3, 0.9, 0.95, 1.0])),
        min_p=float(generator.choice([0.0, 0.01, 0.2])),
        repetition_penalty=float(generator.choice([0.8, 1.0, 1.1, 2.0])),
        no_repeat_ngram=int(generator.choice([0, 1, 2, 3])),
        min_new_tokens=int(generator.choice([0, 1, 5])),
        seed=int(generator.integers(2**40)),
    )


@pytest.mark.parametrize("vocab", [VOCAB, WIDE_VOCAB])
def test_the_whole_chain_draws_from_the_distribution_of_transformers(vocab: int) -> None:
    """Stops a processor that is left out, comes in the wrong order, or leaves a trace in the next step.

    A draw is the inverse of the cumulative distribution at one random number a token: so every token is known, and not
    only how often it comes. The order of the candidates is the sampler's own.
    """
    for case in range(60):
        generator = np.random.default_rng(case)
        options = random_options(generator)
        earlier = generator.integers(3, 60, generator.integers(0, 20)).tolist()
        sample = build_sampler(options.for_reply(64, earlier), BANNED, END)
        random = Random(options.seed)
        bot_ids: list[int] = []
        for step in range(12):
            logits = logits_of("2", 100 * case + step, vocab)
            logits[3:60] += 3  # so that some ids come again
            scores = processed(logits, bot_ids, earlier, options)
            expected = warped(scores, options)
            ids = np.asarray(candidates(scores, options)[0])
            assert set(np.flatnonzero(expected)) <= set(ids)
            edges = np.cumsum(expected[ids])
            token = int(ids[np.searchsorted(edges, random.random() * edges[-1], side="right")])
            assert sample(logits, bot_ids) == token, (case, step, options)
            bot_ids.append(token)


@pytest.mark.parametrize("vocab", [VOCAB, WIDE_VOCAB])
def test_greedy_takes_the_likeliest_token_that_transformers_processors_leave(vocab: int) -> None:
    """Stops the shortcut past the processors from choosing an id that one of them is about."""
    for case in range(100):
        generator = np.random.default_rng(case)
        options = dataclasses.replace(random_options(generator), temperature=0.0)
        earlier = generator.integers(3, 30, generator.integers(0, 5)).tolist()
        sample = build_sampler(options.for_reply(64, earlier), BANNED, END)
        bot_ids: list[int] = []
        for step in range(12):
            logits = logits_of("1", 100 * case + step, vocab)
            logits[:30] += 3
            token = int(processed(logits, bot_ids, earlier, options).argmax())
            assert sample(logits, bot_ids) == token, (case, step, options)
            bot_ids.append(token)


@pytest.mark.parametrize("count", [1, 3, 40, 255, 256, 400])
@pytest.mark.parametrize("kind", ["1", "ties", "flat"])
def test_the_largest_are_found_and_ties_with_the_last_are_too(count: int, kind: str) -> None:
    """Stops a bound on the candidates that is too high, and values behind the last whole group from being missed."""
    for vocab in (1, 300, 1024, 4099, WIDE_VOCAB):
        logits = logits_of(kind, vocab, vocab)
        logits[-1] = 9.0
        logits[: vocab // 8] = -np.inf
        floor = np.sort(logits)[-min(count, vocab)]
        assert largest(logits, count).tolist() == np.flatnonzero((logits >= floor) & (logits > -np.inf)).tolist()


def test_draws_follow_the_distribution() -> None:
    """Stops a draw that is biased towards the first or the last candidate."""
    logits = logits_of("2", 0, VOCAB)
    options = dataclasses.replace(OFF, top_k=5, seed=1)
    sample = build_sampler(options, [], END)
    counts = np.bincount([sample(logits, []) for _ in range(8000)], minlength=VOCAB) / 8000
    assert np.abs(counts - warped(logits, options)).max() < 0.03  # 5 sigma of the largest cell


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
    assert build_sampler(greedy.for_reply(9, [END, 9]), BANNED, END)(logits, []) == END


def test_what_the_bot_said_in_earlier_turns_is_penalised_and_its_ngrams_are_not_banned() -> None:
    """Stops a bot that answers everything with the same sentence, and one that may say nothing a second time."""
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[9], logits[10] = 2.0, 1.5
    greedy = dataclasses.replace(OFF, temperature=0.0, repetition_penalty=2.0)
    assert build_sampler(greedy, BANNED, END)(logits, []) == 9
    assert build_sampler(greedy.for_reply(9, [11, 9]), BANNED, END)(logits, []) == 10
    assert build_sampler(greedy.for_reply(9, [11, 9]), BANNED, END)(logits, [9]) == 10
    ngrams = dataclasses.replace(OFF, temperature=0.0, no_repeat_ngram=2)
    assert build_sampler(ngrams.for_reply(9, [8, 9]), BANNED, END)(logits, [8]) == 9
    assert build_sampler(ngrams, BANNED, END)(logits, [8, 9, 8]) == 10


def test_the_options_of_a_reply_keep_all_others() -> None:
    """Stops an option that is lost on the way from the user to the sampler."""
    options = SamplingOptions(0.5, 3, 0.5, 1.5, 5, 2, 7, 0.1, 3, 4)
    reply = options.for_reply(60, [1, 2])
    assert {**dataclasses.asdict(options), "max_new_tokens": 60, "earlier_ids": (1, 2)} == dataclasses.asdict(reply)
    assert options.for_reply(60, []) == dataclasses.replace(options, max_new_tokens=60)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probabilities_are_those_of_the_model_whatever_the_options(temperature: float) -> None:
    """Stops log-probabilities of what top-k and temperature leave, which cannot be compared between requests."""
    for seed in range(10):
        logits = logits_of("3", seed, WIDE_VOCAB)
        theirs = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
        options = SamplingOptions(temperature=temperature, min_p=0.1, no_repeat_ngram=1, seed=seed, logprobs=5)
        plain = dataclasses.replace(options, logprobs=None)
        best = int(theirs.argmax())
        token = build_sampler(options, [best], END)(logits, [17])
        assert isinstance(token, ScoredToken)
        assert token == build_sampler(plain, [best], END)(logits, [17]) != best
        assert token.logprob == pytest.approx(float(theirs[token]), abs=1e-5)
        values, ids = theirs.topk(5)
        assert [i for i, _ in token.likeliest] == ids.tolist()
        assert [value for _, value in token.likeliest] == pytest.approx(values.tolist(), abs=1e-5)


def test_alternatives_are_as_many_as_asked_for_and_of_equals_the_smaller_ids() -> None:
    """Stops more alternatives than asked for where many are equal, and fewer than the vocabulary could give."""
    assert [i for i, _ in score(logits_of("flat", 0, WIDE_VOCAB), 3, 5).likeliest] == [0, 1, 2, 3, 4]
    assert [i for i, _ in score(logits_of("flat", 0, 3), 0, 5).likeliest] == [0, 1, 2]
    assert score(logits_of("1", 0, VOCAB), 3, 0).likeliest == ()


def test_options_that_ban_every_token_are_the_requests_fault() -> None:
    """Stops the report of a damaged bundle, and an endless loop, when no n-gram is left to say."""
    sample = build_sampler(dataclasses.replace(OFF, no_repeat_ngram=1, min_new_tokens=99), BANNED, END)
    with pytest.raises(BadRequest, match="no token to choose"):
        sample(np.zeros(10, dtype=np.float32), [3, 4, 5, 6, 8, 9])


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
        ("top_p", -0.1),
        ("top_p", 1.01),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**18),
        ("max_new_tokens", 1e3),
        ("min_new_tokens", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", [1]),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("no_repeat_ngram", -1),
        ("no_repeat_ngram", 2.0),
        ("logprobs", -1),
        ("logprobs", 6),
        ("logprobs", True),
    ],
)
def test_a_bad_option_names_itself_and_the_remedy(name: str, value: Any) -> None:
    """Stops NaN, booleans, strings and numbers too large for the engine from getting past the border."""
    with pytest.raises(BadRequest, match=rf"^{name} .*: give a ") as caught:
        SamplingOptions(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 120


def test_a_top_p_of_zero_is_off_as_in_gpt2_chitchat() -> None:
    """`--topp 0`, GPT2-chitchat's default, was refused; taken literally it would be greedy."""
    assert SamplingOptions(top_p=0) == SamplingOptions(top_p=1.0)
    assert SamplingOptions(top_p=0).top_p == 1.0


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_every_option_that_shapes_a_draw(name: str) -> None:
    """A preset that leaves one out would draw with our default of it."""
    values = {option: value for option, value in PRESETS[name].items() if option != "history"}
    assert set(values) == {field.name for field in dataclasses.fields(SamplingOptions)} - {
        "seed",
        "min_new_tokens",
        "logprobs",
    }
    made = SamplingOptions(**values)  # type: ignore[arg-type]
    assert {option: getattr(made, option) for option in values} == values


def test_a_number_too_long_to_print_is_refused_like_any_other() -> None:
    """Stops Python's own ValueError about 4,300 digits from escaping as an internal error."""
    with pytest.raises(BadRequest, match="huge number"):
        SamplingOptions(seed=10**5000)
