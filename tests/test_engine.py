"""The engine: its logits, its stream, its limits, and that it knows its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import DIALOGUE, exported, random_gpt2, weights_of
from support.cuda import why_not_cuda

import serve.cpu
import serve.engine
from chitchat.score import torch_scorer
from export.bundle import write_graph
from export.graph.builder import build_graph, graph_spec
from export.graph.spec import graph_names
from export.weights import half_weights
from serve.bundle import Bundle, Graph
from serve.engine import MAX_CHUNK, Engine
from serve.errors import BadBundle, BadRequest, ContextExceeded
from serve.graph_selection import SelectedGraph
from serve.options import SamplingOptions

GREEDY = SamplingOptions(temperature=0, repetition_penalty=1.0, max_new_tokens=12, min_new_tokens=0)


@pytest.fixture(scope="module")
def model():
    return random_gpt2()


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(model, tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle, threads=1)


def test_token_by_token_gives_the_logits_of_the_whole(engine: Engine, model) -> None:
    """A cache that is one position off still generates, only worse."""
    ids = np.random.default_rng(0).integers(0, 101, size=64).tolist()
    rows = [engine.prefill(ids[:5]).copy(), *(engine.step(token).copy() for token in ids[5:])]
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(np.stack(rows), want[4:], atol=1e-5)
    np.testing.assert_allclose(engine.logits(ids), want, atol=1e-5)


def test_a_new_conversation_remembers_nothing_of_the_last(engine: Engine) -> None:
    """Keys that stay from a longer conversation leak one user's words into another's reply."""
    fresh = engine.prefill([5, 6, 7]).copy()
    engine.prefill(list(range(60)))
    engine.step(3)
    np.testing.assert_array_equal(engine.prefill([5, 6, 7]), fresh)


def test_stream_is_the_greedy_continuation_without_its_end_of_turn(engine: Engine, model) -> None:
    """The end of turn as a part of the reply shows up as text."""
    for seed in range(20):
        prompt = np.random.default_rng(seed).integers(3, 101, size=6).tolist()
        ids, want = list(prompt), []
        for _ in range(12):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            logits[list(DIALOGUE["banned_ids"])] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == 2:
                break
            want.append(ids[-1])
        assert list(engine.stream(prompt, GREEDY)) == want


def test_stream_ends_at_an_end_of_turn(tmp_path: Path) -> None:
    """Without the end a bot talks on, in the user's place too."""
    model = random_gpt2()
    engine = Engine(exported(model, tmp_path), threads=1)
    token = int(engine.prefill([4, 5, 6]).argmax())
    ending = Engine(
        exported(
            random_gpt2(), _empty(tmp_path / "b"), dialogue={**DIALOGUE, "end_of_turn_id": token, "banned_ids": []}
        ),
        1,
    )
    assert list(ending.stream([4, 5, 6], GREEDY)) == []
    assert len(list(engine.stream([4, 5, 6], GREEDY))) > 0


def test_stream_stops_where_the_context_is_full(engine: Engine) -> None:
    """One more step would write after the end of the cache."""
    options = SamplingOptions(max_new_tokens=1000, min_new_tokens=1000, seed=1)
    assert len(list(engine.stream(list(range(3, 60)), options))) == 64 - 57
    assert len(list(engine.stream(list(range(3, 66)), options))) == 1


def test_the_same_seed_gives_the_same_reply(engine: Engine) -> None:
    """A reply that nobody can repeat cannot be looked into."""
    options = SamplingOptions(temperature=2.0, top_k=0, top_p=1.0, max_new_tokens=20, min_new_tokens=20, seed=7)
    first = list(engine.stream([1, 5, 2], options))
    assert first == list(engine.stream([1, 5, 2], options))
    other = SamplingOptions(temperature=2.0, top_k=0, top_p=1.0, max_new_tokens=20, min_new_tokens=20, seed=8)
    assert first != list(engine.stream([1, 5, 2], other))


@pytest.mark.parametrize("ids", [[-1], [5, 101], [2**40]])
def test_ids_that_the_model_does_not_have_are_refused(engine: Engine, ids: list[int]) -> None:
    """onnxruntime takes -1 for the last row of the table, without a word."""
    for call in (engine.prefill, engine.logits, lambda x: engine.stream(x, GREEDY), lambda x: engine.scorer()([x])):
        with pytest.raises(BadRequest, match=r"the vocabulary has 0 to 100"):
            call(ids)
    engine.prefill([1])
    with pytest.raises(BadRequest, match=r"the vocabulary has 0 to 100"):
        engine.step(ids[-1])


def test_prompts_that_are_empty_or_too_long_are_refused_before_they_run(engine: Engine) -> None:
    """A prompt that fills the context leaves no room for a reply; both numbers are told."""
    with pytest.raises(BadRequest, match="no tokens"):
        engine.stream([], GREEDY)
    with pytest.raises(ContextExceeded, match="64 tokens, the context holds 63") as caught:
        engine.stream([5] * 64, GREEDY)
    assert (caught.value.prompt_tokens, caught.value.limit) == (64, 63)
    with pytest.raises(ContextExceeded, match="65 tokens, the context holds 64"):
        engine.prefill([5] * 65)
    engine.prefill([5] * 64)
    with pytest.raises(ContextExceeded, match="context of 64 tokens"):
        engine.step(5)


def test_scores_are_those_of_torch(tmp_path: Path) -> None:
    """Quality through the shipped runtime is compared with torch's figure; chunks must not lose a position."""
    model = random_gpt2(n_positions=200)
    engine = Engine(exported(model, tmp_path), threads=1)
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, 101, size=n).tolist() for n in (1, 2, MAX_CHUNK, MAX_CHUNK + 1, MAX_CHUNK + 2, 200)]
    for (nll, hit), (want, want_hit) in zip(engine.scorer()(sequences), torch_scorer(model)(sequences), strict=True):
        np.testing.assert_allclose(nll, want, atol=1e-5)
        np.testing.assert_array_equal(hit, want_hit)


def test_long_prompts_run_in_chunks(tmp_path: Path) -> None:
    """The second chunk has positions and lengths of its own."""
    model = random_gpt2(n_positions=2 * MAX_CHUNK)
    engine = Engine(exported(model, tmp_path), threads=1)
    ids = np.random.default_rng(0).integers(0, 101, size=MAX_CHUNK + 1).tolist()
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0, -1].numpy()
    np.testing.assert_allclose(engine.prefill(ids), want, atol=1e-5)


def test_a_portable_bundle_is_refused_by_the_line_that_helps(tmp_path: Path) -> None:
    """Its graph has other inputs; the failure must not be onnxruntime's."""
    bundle = exported(random_gpt2(), tmp_path, graphs={"portable": Graph("model.onnx", (), (), 1)})
    with pytest.raises(BadBundle, match="ORTModelForCausalLM"):
        Engine(bundle)


def test_a_file_that_is_no_graph_is_a_bad_bundle(tmp_path: Path) -> None:
    """Hashes in order, content not: an exporter's fault still ends in one line."""
    bundle = exported(random_gpt2(), tmp_path)
    bundle.graph_path("cpu").write_bytes(b"not a graph")
    with pytest.raises(BadBundle, match="onnxruntime cannot load it"):
        Engine(bundle)


def test_other_inputs_than_the_manifest_lists_are_refused(tmp_path: Path) -> None:
    """A graph of an older exporter would be bound by names that it does not have."""
    bundle = exported(random_gpt2(), tmp_path, graphs={"cpu": Graph("model.onnx", ("input_ids",), (), 1)})
    with pytest.raises(BadBundle, match="inputs and outputs"):
        Engine(bundle)


def test_threads_are_the_cores_that_this_process_may_use(monkeypatch, tmp_path: Path) -> None:
    """A container with one core of sixty-four that starts sixty-four threads crawls."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(serve.cpu, "_siblings", lambda cpu: f"{cpu // 2}")
    monkeypatch.setattr(serve.cpu, "_CGROUP", tmp_path)
    assert serve.cpu.physical_cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert serve.cpu.physical_cores() == 2
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert serve.cpu.physical_cores() == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert serve.cpu.physical_cores() == 2
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    assert serve.cpu.physical_cores() == 1


@pytest.mark.parametrize("threads", [0, -2])
def test_a_thread_count_below_one_is_refused(bundle: Bundle, threads: int) -> None:
    """onnxruntime takes 0 for "all cores of the machine"."""
    with pytest.raises(BadRequest, match=f"threads {threads}"):
        Engine(bundle, threads=threads)


def cuda_bundle(model, folder: Path) -> Bundle:
    """A bundle that has a cuda graph only (float16), with 8-bit weights; `model` is given what they stand for."""
    weights = half_weights(weights_of(model, 8))
    spec = graph_spec(model.config, weights.formats, target="cuda")
    bundle = exported(model, _empty(folder / "cpu"))
    path = write_graph(build_graph(spec, weights), _empty(folder / "cuda"))
    graph = Graph(path.name, *graph_names(spec.geometry.layers), weights.nbytes, spec.kv_dtype)
    return Bundle(path.parent, replace(bundle.manifest, graphs={"cuda": graph}))


def continuation(engine: Engine, prompt: list[int]) -> np.ndarray:
    """Logits after a prompt, a chunk and some single tokens, beside another conversation: [5, vocab]."""
    engine.feed(0, [9, 8, 7, 6])
    rows = [engine.feed(1, prompt[:20]).copy(), engine.feed(1, prompt[20:25]).copy()]
    return np.stack(rows + [engine.decode([0, 1], [5, token])[1].copy() for token in prompt[25:28]])


def torch_continuation(model, prompt: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].numpy()[[19, 24, 25, 26, 27]]


def test_the_engine_keeps_a_float16_cache_and_binds_inputs_anew_where_a_device_copies_them(
    monkeypatch, tmp_path: Path
) -> None:
    """What is particular to CUDA, on the CPU provider: a device takes inputs when they are bound, not when it runs."""
    model = random_gpt2()
    bundle = cuda_bundle(model, tmp_path)
    path, graph = bundle.graph_path("cuda"), bundle.manifest.graphs["cuda"]
    choice = SelectedGraph("cuda", path, graph, "CPUExecutionProvider", "a test")
    monkeypatch.setattr(serve.engine, "choose", lambda *_: choice)
    engine = Engine(bundle, 1, slots=3)
    assert engine._cache.nbytes == 3 * 2 * 2 * 64 * 32 * 2
    engine._runs.on_device = True
    prompt = np.random.default_rng(0).integers(3, 101, size=28).tolist()
    want = torch_continuation(model, prompt)
    assert np.abs(continuation(engine, prompt) - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.cuda
def test_the_engine_runs_on_cuda(tmp_path: Path) -> None:
    """Its cache lies on the device, and is bound by pointers into it."""
    cause = why_not_cuda()
    if cause:
        pytest.skip(cause)
    model = random_gpt2()
    engine = Engine(cuda_bundle(model, tmp_path), 1, slots=3)
    assert engine.choice.provider == "CUDAExecutionProvider"
    prompt = np.random.default_rng(0).integers(3, 101, size=28).tolist()
    want = torch_continuation(model, prompt)
    assert np.abs(continuation(engine, prompt) - want).max() < 0.02 * np.abs(want).max()


def test_one_token_more_than_the_last_row_is_refused_and_changes_nothing(bundle: Bundle) -> None:
    """In a cache that is shared a slot keeps its last row for runs over its neighbours."""
    engine = Engine(bundle, 1, slots=2)
    with pytest.raises(ContextExceeded, match="64 tokens, the context holds 63"):
        engine.prefill([5] * 64)
    engine.prefill([5] * 63)
    with pytest.raises(ContextExceeded, match="context of 64 tokens"):
        engine.step(5)
    assert engine.match(0, [5] * 64) == 63


def test_stream_computes_only_what_is_new_in_a_conversation(engine: Engine) -> None:
    """A long talk in the terminal that is computed from its beginning at every turn answers later and later."""
    prompt = np.random.default_rng(3).integers(3, 101, size=30).tolist()
    fresh = list(engine.stream(prompt, GREEDY))
    assert engine.match(0, [*prompt, *fresh, 2, 7]) == 30
    assert list(engine.stream(prompt, GREEDY)) == fresh
    engine.reset()
    assert engine.match(0, prompt) == 0


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder
