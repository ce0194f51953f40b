"""`compress export`: a bundle that stands, or a line and nothing."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.bundles import random_gpt2

import export.stage
import export.variants
from chitchat.checkpoint import load_tokenizer, save_checkpoint
from chitchat.errors import BadInput, WorkFailed
from chitchat.lineage import Stage, identity
from compress.quantize.stage import quantize
from export.options import ExportOptions
from export.parity import parity_prompts
from export.stage import export as run_export
from serve.bundle import Bundle
from serve.engine import Engine
from serve.errors import BadBundle
from serve.graph_selection import find_providers
from serve.options import SamplingOptions
from serve.text import TextCodec

GREEDY = SamplingOptions(temperature=0, max_new_tokens=5)


@pytest.fixture(scope="module")
def float_bundle(tiny_checkpoint: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("export") / "bundle"
    return out, run_export(str(tiny_checkpoint), out, data=tiny_data)


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity on 5 prompts: enough where the gate is not what is tested."""
    monkeypatch.setattr(export.stage, "parity_prompts", functools.partial(parity_prompts, count=5))


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "w8"
    quantize(str(tiny_checkpoint), tiny_data, out)
    return out


def test_a_checkpoint_becomes_a_bundle_that_talks(float_bundle: tuple[Path, dict], tiny_checkpoint: Path) -> None:
    """The stage's whole promise."""
    out, figures = float_bundle
    bundle = Bundle.open(out)
    assert {path.name for path in out.iterdir()} == {"bundle.json", "model.onnx", "tokenizer.json"}
    assert figures["parity"]["greedy_diverged"] == 0
    assert figures["parity"]["weights_changed"] == 0
    assert figures["parity"]["logits_relative"] < 1e-4
    assert figures["parity_prompts"]["held_out"] > 0
    assert bundle.manifest.quality["tokens"] > 100
    assert bundle.manifest.latency["ttft_ms"] > 0
    assert [record["stage"] for record in bundle.manifest.lineage] == ["train", "export"]
    assert bundle.manifest.lineage[-1]["parent_sha256"] == identity(tiny_checkpoint)
    codec = TextCodec.open(bundle.tokenizer_path)
    prompt = bundle.dialogue.encode([codec.encode("hello there")])
    assert len(list(Engine(bundle, threads=1).stream(prompt, GREEDY))) > 0


def test_a_quantized_checkpoint_ships_its_own_integers(quantized: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Quality was measured on these integers and on no others."""
    figures = run_export(str(quantized), tmp_path / "bundle", data=tiny_data)
    assert figures["scheme"] == "w8"
    assert figures["parity"]["weights_changed"] == 0
    assert figures["parity"]["kl_decode"] <= 1e-4
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert set(manifest.parity["cpu"]["limits"]) == {"kl_prefill", "kl_decode", "logits_rms", "weights_changed"}
    assert [record["stage"] for record in manifest.lineage] == ["train", "quantize", "export"]


@pytest.mark.usefixtures("few_prompts")
def test_the_same_checkpoint_gives_the_same_graph(
    float_bundle: tuple[Path, dict], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A bundle that cannot be made again cannot be checked."""
    run_export(str(tiny_checkpoint), tmp_path / "again")
    first = json.loads((float_bundle[0] / "bundle.json").read_text())["files"]
    assert json.loads((tmp_path / "again" / "bundle.json").read_text())["files"] == first


@pytest.mark.usefixtures("few_prompts")
def test_a_portable_bundle_is_for_optimum_and_says_so(
    tiny_checkpoint: Path, portable_python: str, tmp_path: Path
) -> None:
    """Someone will give it to `compress serve`."""
    figures = run_export(
        str(tiny_checkpoint),
        tmp_path / "bundle",
        options=ExportOptions(target="portable", portable_python=portable_python),
    )
    assert figures["target"] == "portable"
    assert figures["parity"]["greedy_diverged"] == 0
    with pytest.raises(BadBundle, match="ORTModelForCausalLM"):
        Engine(Bundle.open(tmp_path / "bundle"))


@pytest.mark.usefixtures("few_prompts")
def test_failed_parity_leaves_the_old_bundle(
    float_bundle: tuple[Path, dict], tiny_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    """A wrong bundle must not take the place of a right one, nor lie half-written beside it."""
    out = Path(shutil.copytree(float_bundle[0], tmp_path / "bundle"))
    before = identity(out)
    right = export.variants.build_graph

    def wrong(spec, weights):
        weights.arrays["transformer.h.0.mlp.c_fc.weight"] = weights.arrays["transformer.h.0.mlp.c_fc.weight"] * 1.5
        return right(spec, weights)

    monkeypatch.setattr(export.variants, "build_graph", wrong)
    with pytest.raises(WorkFailed, match="logits_relative"):
        run_export(str(tiny_checkpoint), out)
    assert identity(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "tpu"}, "--target tpu: give cpu, cuda, cpu.cuda or portable"),
        ({"kv": "int3"}, "--kv int3: give float32 or int8"),
        ({"kv": "int8"}, "--kv int8: .*give --data"),
        ({"kv": "int8", "target": "cuda"}, "--kv int8 --target cuda: only the cpu graph"),
        ({"genai": True, "target": "portable"}, "--genai --target portable: .*give --target cpu"),
        ({"target": "portable", "portable_python": "/no/python"}, "--portable-python /no/python: cannot be run"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_one_line(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """Before anything is loaded, and with what there is."""
    with pytest.raises(BadInput, match=match):
        run_export("no checkpoint", tmp_path / "bundle", options=ExportOptions(**options))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few_prompts")
@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "quantized"])
def test_one_bundle_holds_a_cpu_and_a_cuda_graph(
    checkpoint: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two bundles of one model would be mixed up; a cuda graph that nobody ran must not look as if it were."""
    figures = run_export(
        str(request.getfixturevalue(checkpoint)), tmp_path / "bundle", options=ExportOptions(target="cpu+cuda")
    )
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert figures["target"] == "cpu+cuda"
    assert [graph.file for graph in manifest.graphs.values()] == ["model.onnx", "model.cuda.onnx"]
    assert [graph.kv_dtype for graph in manifest.graphs.values()] == ["float32", "float16"]
    assert manifest.graphs["cuda"].weight_bytes < manifest.graphs["cpu"].weight_bytes
    assert manifest.parity["cpu"]["provider"] == "CPUExecutionProvider"
    on_cuda = "CUDAExecutionProvider" in find_providers()
    assert manifest.parity["cuda"]["provider"] == ("CUDAExecutionProvider" if on_cuda else "CPUExecutionProvider")
    assert manifest.parity["cuda"]["figures"]["logits_rms"] < 0.03
    assert Engine(Bundle.open(tmp_path / "bundle"), device="cpu").prefill([1, 5, 2]).shape == (300,)


@pytest.mark.usefixtures("few_prompts")
def test_a_cuda_bundle_is_refused_where_there_is_no_cuda(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """onnxruntime would run it on the CPU, slowly and in silence."""
    run_export(str(tiny_checkpoint), tmp_path / "bundle", options=ExportOptions(target="cuda"))
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.graphs["cuda"].file == "model.onnx"
    if "CUDAExecutionProvider" in find_providers():
        pytest.skip("there is a CUDA device here")
    assert bundle.manifest.latency == {}
    with pytest.raises(BadBundle, match="has a cuda graph only"):
        Engine(bundle)


def test_an_int8_cache_is_smaller_and_its_quality_is_told(
    float_bundle: tuple[Path, dict], tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """A cache that was rounded costs quality: it stands in bundle.json beside that of the cache that was not."""
    figures = run_export(str(tiny_checkpoint), tmp_path / "bundle", tiny_data, ExportOptions(kv="int8"))
    assert figures["kv_dtype"] == "int8"
    assert figures["float32_kv_perplexity"] == pytest.approx(float_bundle[1]["perplexity"], rel=1e-6)
    assert figures["perplexity"] != figures["float32_kv_perplexity"]
    assert figures["perplexity"] == pytest.approx(figures["float32_kv_perplexity"], rel=0.01)
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.quality["float32_kv_perplexity"] == figures["float32_kv_perplexity"]
    assert Engine(bundle, threads=1)._cache.nbytes * 4 == Engine(Bundle.open(float_bundle[0]), threads=1)._cache.nbytes


def test_portable_refuses_integers(quantized: Path, portable_python: str, tmp_path: Path) -> None:
    """Exported as floats, it would be four times the size that the user asked for."""
    with pytest.raises(BadInput, match=r"--target portable: .*is quantized \(w8\)"):
        run_export(str(quantized), tmp_path / "bundle", options=ExportOptions(target="portable"))


def test_data_of_another_tokenizer_is_refused(tiny_checkpoint: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """The same ids mean other words: quality and parity prompts would be noise."""
    from chitchat.data.dataset import build_dataset
    from chitchat.data.options import DataOptions

    build_dataset([str(tiny_corpus)], tmp_path / "data", DataOptions(vocab_size=280, validation=0.2))
    with pytest.raises(BadInput, match=r"--data .*another tokenizer"):
        run_export(str(tiny_checkpoint), tmp_path / "bundle", data=tmp_path / "data")


def test_a_folder_of_somebody_else_is_not_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Told before the minutes of work, and nothing is deleted."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="--out"):
        run_export(str(tiny_checkpoint), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.usefixtures("few_prompts")
def test_a_table_with_more_rows_than_tokens_is_exported(tiny_data: Path, tmp_path: Path) -> None:
    """Tables padded to a multiple are common; a smaller one than the tokenizer is an error."""
    tokenizer = load_tokenizer(tiny_data)
    for size in (len(tokenizer) + 5, len(tokenizer) - 5):
        folder = tmp_path / str(size)
        folder.mkdir()
        save_checkpoint(folder, random_gpt2(vocab_size=size), tokenizer, Stage("train", {}, seed=0))
    run_export(str(tmp_path / str(len(tokenizer) + 5)), tmp_path / "bundle")
    with pytest.raises(BadInput, match="tokens and the model's table"):
        run_export(str(tmp_path / str(len(tokenizer) - 5)), tmp_path / "none")
