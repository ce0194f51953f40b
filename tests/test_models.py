"""Recognising models: each kind, its parameters, its bytes, its vocabulary, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from support.families import tiny_family

from bench.models.open import open_model
from chitchat import checkpoint
from chitchat.errors import BadInput
from chitchat.formats.same_tokenizer import tokenizer_identity


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_data: Path) -> dict[str, Path]:
    return tiny_family(tmp_path_factory, tiny_checkpoint, tiny_data)


def test_each_kind_is_recognised_and_all_have_one_shape_and_vocabulary(family: dict[str, Path]) -> None:
    """A quantized checkpoint was opened as a float one; parameters were counted from the integers."""
    models = {name: open_model(str(path)) for name, path in family.items()}
    assert {name: model.kind for name, model in models.items()} == {
        **{"checkpoint": "checkpoint", "quantized": "quantized", "bundle-fp32": "bundle", "bundle-w8": "bundle"}
    }
    assert [model.runtime for model in models.values()] == [
        *("torch fp32", "torch, de-quantized w8", "onnx fp32", "onnx w8")
    ]
    for value in ("parameters", "vocabulary", "context", "geometry"):
        first, *others = (getattr(model, value) for model in models.values())
        assert others == [first] * 3, value
    assert [model.dialogue.end_of_turn_id for model in models.values()] == [2] * 4
    assert models["quantized"].weight_bytes < 0.5 * models["checkpoint"].weight_bytes
    assert models["bundle-w8"].weight_bytes < 0.5 * models["bundle-fp32"].weight_bytes
    for model in models.values():
        assert model.weight_bytes < model.file_bytes <= sum(path.stat().st_size for path in model.folder.iterdir())
        figures = model.figures()
        assert figures["parameters"] == model.parameters
        json.dumps(figures)


def test_parameters_are_those_of_the_torch_model_with_a_tied_table_once(tiny_model, family: dict[str, Path]) -> None:
    """The tied embedding counted twice made pruning look better than it is."""
    tied = sum(parameter.numel() for parameter in tiny_model.parameters())
    assert open_model(str(family["checkpoint"])).parameters == tied


def test_weight_bytes_are_the_tensors_and_foreign_files_do_not_count(tiny_model, tmp_path: Path, family) -> None:
    """A training corpus in the checkpoint's folder became part of the size of the model."""
    folder = tmp_path / "copy"
    shutil.copytree(family["checkpoint"], folder)
    before = open_model(str(folder))
    assert before.weight_bytes == 4 * before.parameters
    (folder / "train.txt").write_bytes(b"x" * 1_000_000)
    assert open_model(str(folder)).file_bytes == before.file_bytes


def test_the_codec_of_a_checkpoint_and_of_its_bundle_agree(family: dict[str, Path]) -> None:
    """The chat on a checkpoint cut words in another way than the bundle that was made of it."""
    texts = ["hello how are you", "[SEP] is text"]
    ids = [[open_model(str(path)).codec().encode(text) for text in texts] for path in family.values()]
    assert ids[1:] == ids[:1] * 3
    assert 2 not in ids[0][1], "text cannot forge an end of turn"


def test_generators_of_all_forms_say_the_same(family: dict[str, Path]) -> None:
    """The bundle was compared with a baseline that computed something else."""
    from serve.options import SamplingOptions

    options = SamplingOptions(temperature=0, repetition_penalty=1.0, max_new_tokens=6, min_new_tokens=6)
    said = {}
    for name, path in family.items():
        generator = open_model(str(path)).generator(threads=1)
        said[name] = list(generator.stream([1, 20, 30, 2], options))
    assert said["checkpoint"] == said["bundle-fp32"]
    assert said["quantized"] == said["bundle-w8"]


def test_a_vocabulary_is_known_by_its_ids_and_merges(family: dict[str, Path]) -> None:
    """Two tokenizers of one size were taken for the same, and perplexities of different tokens were compared."""
    text = (family["bundle-fp32"] / "tokenizer.json").read_text(encoding="utf-8")
    record = json.loads(text)
    known = tokenizer_identity(text)
    assert tokenizer_identity(json.dumps({**record, "truncation": None, "padding": None, "decoder": None})) == known
    vocab = record["model"]["vocab"]
    first, second = list(vocab)[-2:]
    swapped = {**vocab, first: vocab[second], second: vocab[first]}
    assert tokenizer_identity(json.dumps({**record, "model": {**record["model"], "vocab": swapped}})) != known
    fewer = {**record["model"], "merges": record["model"]["merges"][:-1]}
    assert tokenizer_identity(json.dumps({**record, "model": fewer})) != known


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder.mkdir(), "no config.json"),
        (lambda folder: folder.write_text("x"), "is a file"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")), "is not JSON"),
        (lambda folder: (folder.mkdir(), (folder / "bundle.json").write_text("{")), "not JSON"),
        (lambda folder: None, "no such checkpoint folder"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, make, says: str) -> None:
    """A typing error ended in a traceback of a loader."""
    make(tmp_path / "it")
    with pytest.raises(BadInput, match=says) as caught:
        open_model(str(tmp_path / "it"))
    assert "\n" not in str(caught.value)


def test_an_altered_bundle_is_bad_input(tmp_path: Path, family: dict[str, Path]) -> None:
    """serve's own exception passed by the bench's handling."""
    shutil.copytree(family["bundle-fp32"], tmp_path / "b")
    with (tmp_path / "b" / "model.onnx").open("r+b") as file:
        file.write(b"????")
    with pytest.raises(BadInput, match="altered"):
        open_model(str(tmp_path / "b"))


def test_a_bundle_tells_its_graphs_cache_and_files(family: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Which file is how large, and what runs here, was to be found in bundle.json only."""
    model = open_model(str(family["bundle-w8"]))
    figures = model.figures()
    assert (figures["scheme"], figures["kv_dtype"]) == ("w8", "float32")
    assert figures["graph_cpu"] == f"model.onnx, float32 KV cache, {model.weight_bytes:,} bytes of weights"
    for name in ("model.onnx", "tokenizer.json"):
        assert figures[f"file {name}"] == (family["bundle-w8"] / name).stat().st_size
    model.announce()
    open_model(str(family["quantized"])).announce()
    assert capsys.readouterr().err == "Runs in torch, de-quantized w8.\n"


def test_a_device_that_is_not_there_is_refused(family: dict[str, Path]) -> None:
    """A chat on the CPU in place of the GPU that was asked for, and nobody is told."""
    import torch

    from serve.errors import BadRequest

    with pytest.raises(BadInput, match="--device tpu: no such device"):
        open_model(str(family["checkpoint"])).generator(device="tpu")
    with pytest.raises(BadRequest, match="--device tpu: no such device"):
        open_model(str(family["bundle-w8"])).generator(device="tpu")
    with pytest.raises(BadRequest, match=r"--device cuda: .* has a cpu graph only.*cpu.cuda"):
        open_model(str(family["bundle-w8"])).generator(device="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="--device cuda: torch finds no CUDA GPU"):
            open_model(str(family["checkpoint"])).generator(device="cuda")


def test_a_foreign_checkpoints_weights_are_read_once(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lineage the weights were read for the shape, and once more to be computed."""
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "lineage.json").unlink(missing_ok=True)
    real, reads = checkpoint.load_model, []

    def counted(source: str | Path) -> object:
        reads.append(source)
        return real(source)

    monkeypatch.setattr(checkpoint, "load_model", counted)
    model = open_model(str(folder))
    assert (model.context, model.geometry.vocab) == (64, 300)
    assert reads == []
    model.load(1)
    assert model.parameters == open_model(str(tiny_checkpoint)).parameters
    assert reads[0] == folder
    assert reads.count(folder) == 1
