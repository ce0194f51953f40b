"""The standard work's harness: ratios, shares, peers' files, and what one process costs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.backends import EngineBackend, TogetherBackend
from bench.bandwidth import reader
from bench.peers import gguf_name
from bench.speed import Ratio, ceiling_row, main, ratio_row, row_of
from bench.standard import _make_gguf
from chitchat.errors import BadInput
from serve.bundle import Bundle

ROOT = Path(__file__).parents[1]


def sample(ttft_ms: float, step_ms: float, tokens: int = 5) -> dict[str, Any]:
    return {"ttft_ms": ttft_ms, "token_ms": [step_ms] * (tokens - 1), "ids": list(range(tokens))}


def test_ratios_are_taken_within_a_round_before_their_median() -> None:
    """A slow minute fell on two rounds of one model, and the ratio of the medians told of a speed that no round had."""
    ours = [sample(10, 1), sample(100, 10), sample(10, 1)]
    other = [sample(20, 2), sample(200, 20), sample(200, 20)]
    row = ratio_row(Ratio("a", "b", "tokens/s", 1.5), {"a": ours, "b": other})
    assert row["ratio"] == pytest.approx(2)
    assert row["quartiles"] == pytest.approx([2, 11])
    prefill = ratio_row(Ratio("a", "b", "prefill", None), {"a": ours, "b": other})
    assert prefill["ratio"] == pytest.approx(2)


def test_tokens_per_second_count_prompt_and_decode() -> None:
    """A rate of the decode steps alone flatters whoever is slow with the prompt."""
    row = row_of("a", [sample(60, 10)])
    assert row["tokens_per_s"] == pytest.approx(5 / 0.1)
    assert (row["prefill_ms"], row["decode_ms"]) == (60, 10)


def test_the_ceiling_is_all_weights_read_once_a_token(tiny_bundle: Path) -> None:
    """A share of the ceiling above one would mean that the weights were counted twice."""
    weights = Bundle.open(tiny_bundle).manifest.graphs["cpu"].weight_bytes
    step_ms = 4 * weights / 10e9 * 1e3  # four times as long as reading the weights at 10 GB/s
    row = ceiling_row("w8", tiny_bundle, [sample(1, step_ms)], [10.0])
    assert row["share"] == pytest.approx(0.25)


def test_conversations_at_once_give_what_each_gives_alone(tiny_bundle: Path) -> None:
    """A throughput of several conversations is worth nothing when their tokens are others."""
    prompt, new, end = [5, 6, 7, 8, 9], 6, 2
    together = TogetherBackend(str(tiny_bundle), 1, "cpu").generate(prompt, new, end)
    alone = EngineBackend(str(tiny_bundle), 1, "cpu")
    solo = [alone.generate([*prompt[place:], *prompt[:place]], new, end).ids for place in range(4)]
    assert len(together.ids) == 4 * new
    assert len(together.token_ms) == 4 * new - 1
    assert sorted(together.ids) == sorted(token for ids in solo for token in ids)


def test_bandwidth_grows_with_what_is_read_not_with_the_calls() -> None:
    """A sum over an array that fits a cache told of ten times the memory's speed."""
    rates = [reader(1)() for _ in range(3)]
    assert 0.5 < float(np.median(rates)) < 500


def test_every_tensor_of_gpt2_has_a_place_in_gguf_and_the_tied_head_has_none() -> None:
    """A tensor that was left out in silence made llama.cpp generate noise, quickly."""
    assert gguf_name("transformer.h.11.attn.c_attn.weight") == "blk.11.attn_qkv.weight"
    assert gguf_name("h.0.mlp.c_proj.bias") == "blk.0.ffn_down.bias"
    assert gguf_name("transformer.wte.weight") == "token_embd.weight"
    assert gguf_name("transformer.ln_f.bias") == "output_norm.bias"
    assert gguf_name("lm_head.weight") is None
    assert gguf_name("transformer.h.0.attn.bias") is None  # the causal mask of older files


def test_an_environment_without_the_peers_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """A traceback about a module that is missing does not tell which command installs it."""
    if importlib.util.find_spec("llama_cpp") is not None:
        pytest.skip("this environment has llama.cpp")
    with pytest.raises(BadInput, match=r"no .*llama_cpp.*; make one with make peers"):
        _make_gguf(sys.executable, tmp_path, tmp_path, threads=1)
    with pytest.raises(BadInput, match=r"--peers .*absent.*make peers"):
        _make_gguf(str(tmp_path / "absent"), tmp_path, tmp_path, threads=1)
    assert list(tmp_path.iterdir()) == []


def test_too_few_rounds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A median of two rounds was published as a result."""
    assert main(["--out", str(tmp_path / "out"), "--repeats", "2"]) == 2
    assert "--repeats 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_footprint_of_a_process_is_measured_whole(tiny_bundle: Path) -> None:
    """The first line must come with the first token: whoever started the process stops the clock at it."""
    command = [sys.executable, "-m", "bench.footprint", str(tiny_bundle), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, rest = (json.loads(line) for line in done.stdout.splitlines())
    assert first["first_token_s"] >= rest["import_s"] + rest["load_s"]
    assert 0 < rest["outside_share"] < 1
    assert rest["file_mb"] < rest["rss_mb"] < 300  # without torch
    assert rest["idle_cpu_share"] < 0.5
