"""`compress export`: a bundle that stands, or a line and nothing."""

import functools
import json
import shutil
from pathlib import Path

import pytest
from bundles import random_gpt2

import export.stage
from chitchat.checkpoint import load_tokenizer, save_checkpoint
from chitchat.errors import BadInput, WorkFailed
from chitchat.lineage import Stage, identity
from compress.quantize.stage import quantize
from export.parity import parity_prompts
from export.stage import export as run_export
from serve.bundle import Bundle
from serve.engine import Engine
from serve.errors import BadBundle
from serve.sampler import SamplingOptions
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
    assert set(manifest.parity["cpu"]["graded"]) == {"kl_prefill", "kl_decode", "logits_rms", "weights_changed"}
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
def test_a_portable_bundle_is_for_optimum_and_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Someone will give it to `compress serve`."""
    figures = run_export(str(tiny_checkpoint), tmp_path / "bundle", target="portable")
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
    right = export.stage.build_graph

    def wrong(spec, weights):
        weights.arrays["transformer.h.0.mlp.c_fc.weight"] = weights.arrays["transformer.h.0.mlp.c_fc.weight"] * 1.5
        return right(spec, weights)

    monkeypatch.setattr(export.stage, "build_graph", wrong)
    with pytest.raises(WorkFailed, match="logits_relative"):
        run_export(str(tiny_checkpoint), out)
    assert identity(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("target", "match"), [("cuda", "--target cuda: .*yet"), ("tpu", "--target tpu: no such target")]
)
def test_other_targets_are_refused_by_one_line(tiny_checkpoint: Path, tmp_path: Path, target: str, match: str) -> None:
    """Before anything is loaded, and with what there is."""
    with pytest.raises(BadInput, match=match):
        run_export(str(tiny_checkpoint), tmp_path / "bundle", target=target)
    assert not list(tmp_path.iterdir())


def test_portable_refuses_integers(quantized: Path, tmp_path: Path) -> None:
    """Exported as floats, it would be four times the size that the user asked for."""
    with pytest.raises(BadInput, match=r"--target portable: .*is quantized \(w8\)"):
        run_export(str(quantized), tmp_path / "bundle", target="portable")


def test_data_of_another_tokenizer_is_refused(tiny_checkpoint: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """The same ids mean other words: quality and parity prompts would be noise."""
    from chitchat.data.dataset import build_dataset

    build_dataset([str(tiny_corpus)], tmp_path / "data", vocab_size=280, validation=0.2)
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
