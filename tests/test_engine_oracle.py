"""The engine against GPT-2 in numpy float64 and a list of ids per slot: any order of runs, any sizes, any slots."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import exported, random_gpt2
from support.numpy_gpt2 import NumpyGPT2

from serve.bundle import Bundle
from serve.engine import MAX_CHUNK, Engine, score_rows
from serve.errors import ContextExceeded

CONTEXT, VOCAB, SLOTS = 150, 101, 3
TOLERANCE = 2e-5  # of logits of about 3, computed in float32


@pytest.fixture(scope="module")
def oracle() -> Callable[[tuple[int, ...]], np.ndarray]:
    """`oracle(ids)`: the logits [n, vocab], remembered."""
    model, known = NumpyGPT2(random_gpt2(n_positions=CONTEXT)), {}

    def logits(ids: tuple[int, ...]) -> np.ndarray:
        if ids not in known:
            known[ids] = model.logits(list(ids))
        return known[ids]

    return logits


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(random_gpt2(n_positions=CONTEXT), tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> dict[bool, Engine]:
    """Engines of three slots: exact, and not."""
    return {exact: Engine(bundle, threads=1, slots=SLOTS, exact=exact) for exact in (True, False)}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(0, SLOTS - 1), st.sampled_from([1, 2, 3, 16, 17, 63, 64, 65, 129])),
        st.tuples(st.just("decode"), st.permutations(range(SLOTS)), st.integers(1, SLOTS)),
        st.tuples(st.just("begin"), st.integers(0, SLOTS - 1), st.integers(0, CONTEXT)),
        st.tuples(st.just("forget"), st.integers(0, SLOTS - 1), st.just(0)),
    ),
    min_size=4,
    max_size=14,
)


@pytest.mark.parametrize("exact", [True, False])
@given(operations=OPERATIONS, seed=st.integers(0, 2**32 - 1))
def test_every_run_gives_the_logits_of_its_slots_ids(engines, oracle, exact: bool, operations: list, seed: int) -> None:
    """Stops a position, a length or a slot that is one off anywhere between chunks, neighbours and reuse.

    `prefilled` is how many leading ids of a slot came by `feed`: only those may be reused where the engine is exact.
    """
    engine, draw = engines[exact], np.random.default_rng(seed)
    engine.reset()
    held: list[list[int]] = [[] for _ in range(SLOTS)]
    prefilled = [0] * SLOTS

    def check(slot: int, logits: np.ndarray) -> None:
        np.testing.assert_allclose(logits, oracle(tuple(held[slot]))[-1], atol=TOLERANCE)

    for name, which, size in operations:
        if name == "feed":
            ids = draw.integers(0, VOCAB, size).tolist()
            if len(held[which]) + size > CONTEXT - 1:
                with pytest.raises(ContextExceeded, match=f"context of {CONTEXT} tokens") as caught:
                    engine.feed(which, ids)
                assert (caught.value.prompt_tokens, caught.value.limit) == (len(held[which]) + size, CONTEXT)
                continue
            logits = engine.feed(which, ids)
            prefilled[which] += size if prefilled[which] == len(held[which]) else 0
            held[which] += ids
            check(which, logits)
        elif name == "decode":
            slots = [slot for slot in which[:size] if len(held[slot]) < CONTEXT - 1]
            if not slots:
                continue
            tokens = draw.integers(0, VOCAB, len(slots)).tolist()
            rows = engine.decode(slots, tokens)
            for slot, token, logits in zip(slots, tokens, rows, strict=True):
                held[slot].append(token)
                check(slot, logits)
        elif name == "begin":
            # A prompt that starts as the slot does, up to `size`, and then goes on in another way.
            prompt = [*held[which][:size], *draw.integers(0, VOCAB, 2).tolist()][: CONTEXT - 1]
            usable = held[which][: prefilled[which]] if exact else held[which]
            same = next((i for i, (a, b) in enumerate(zip(prompt, usable, strict=False)) if a != b), len(usable))
            expected = min(same, len(usable), len(prompt) - 1)
            assert engine.held(which) == len(usable)
            assert engine.match(which, prompt) == expected
            assert engine.begin(which, prompt) == expected
            held[which], prefilled[which] = held[which][:expected], min(prefilled[which], expected)
        else:
            engine.forget(which)
            held[which], prefilled[which] = [], 0


@pytest.mark.parametrize("length", [1, 2, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 2 * MAX_CHUNK + 1, CONTEXT])
def test_one_conversation_alone_has_the_whole_context(bundle: Bundle, oracle, length: int) -> None:
    """Stops a chunk that loses or repeats a token at its border, also where the padding of an odd one has no room."""
    engine = Engine(bundle, threads=1)
    ids = np.random.default_rng(length).integers(0, VOCAB, length).tolist()
    want = oracle(tuple(ids))
    np.testing.assert_allclose(engine.prefill(ids), want[-1], atol=TOLERANCE)
    np.testing.assert_allclose(engine.logits(ids), want, atol=TOLERANCE)
    (nats, hits), *others = engine.scorer()([ids, ids[:1]])
    exponents = np.exp(want - want.max(axis=1, keepdims=True))
    log_probabilities = np.log(exponents / exponents.sum(axis=1, keepdims=True))
    expected = [-log_probabilities[index, token] for index, token in enumerate(ids[1:])]
    np.testing.assert_allclose(nats, expected, atol=TOLERANCE)
    assert hits.tolist() == [int(want[index].argmax()) == token for index, token in enumerate(ids[1:])]
    assert [(len(found), len(hit), hit.dtype) for found, hit in others] == [(0, 0, bool)]


@pytest.mark.parametrize("exact", [True, False])
def test_a_chunk_has_an_even_number_of_tokens_where_bits_must_stay(bundle: Bundle, oracle, exact: bool) -> None:
    """Stops a last block of one query, whose kernel has other bits; and a padded token beyond the end of the buffer."""
    engine = Engine(bundle, threads=1, exact=exact)
    ids = np.random.default_rng(0).integers(0, VOCAB, CONTEXT).tolist()
    for start, stop in ((0, 1), (1, 3), (3, 8), (8, 16), (16, 83), (83, 149), (149, 150)):
        engine._runs._kept.clear()
        logits = engine.feed(0, ids[start:stop])
        np.testing.assert_allclose(logits, oracle(tuple(ids[:stop]))[-1], atol=TOLERANCE)
        sizes = [min(MAX_CHUNK, stop - first) for first in range(start, stop, MAX_CHUNK)]
        padded = [size + size % 2 if exact and stop < CONTEXT else size for size in sizes]
        assert {tokens for _, _, tokens, _ in engine._runs._kept} == set(padded)


def test_scores_do_not_overflow() -> None:
    """Stops exp of a large logit: infinite nats for a token that is certain."""
    logits = np.array([[1000.0, 0.0, -1000.0], [-1000.0, -1000.0, -1001.0]], dtype=np.float32)
    nats, hits = score_rows(logits, [0, 2])
    rest = math.log(2 + math.exp(-1))
    np.testing.assert_allclose(nats, [0.0, 1.0 + rest], atol=1e-6)
    assert hits.tolist() == [True, False]


@pytest.mark.parametrize(("slot", "expected"), [(0, (0, 2)), (1, (0, 2)), (2, (2, 2)), (3, (2, 2))])
def test_a_slot_that_decodes_alone_takes_its_shorter_neighbour_along(bundle: Bundle, slot: int, expected) -> None:
    """Stops the one-row kernel, whose bits differ, and a run over the neighbour that costs more."""
    engine = Engine(bundle, threads=1, slots=4)
    for other, length in enumerate((5, 30, 40, 3)):
        engine.feed(other, [7] * length)
    assert engine._range(slot, slot) == expected
    assert engine._range(1, 3) == (1, 3)
    assert Engine(bundle, threads=1, slots=4, exact=False)._range(slot, slot) == (slot, 1)
    assert Engine(bundle, threads=1)._range(0, 0) == (0, 1)


def test_threads_are_bounded_by_the_heads_of_an_exact_engine_with_slots(bundle: Bundle) -> None:
    """Stops sums that are split among threads once all slots are equally long."""
    assert Engine(bundle, threads=9, slots=2).threads == 2 * 4
    assert Engine(bundle, threads=3, slots=2).threads == 3
    assert Engine(bundle, threads=9, slots=2, exact=False).threads == 9
    assert Engine(bundle, threads=9).threads == 9
    assert Engine(bundle).threads >= 1
