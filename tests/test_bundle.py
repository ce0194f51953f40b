"""The bundle: what is verified before anything is loaded, and the line that is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.bundles import DIALOGUE, exported, random_gpt2

from export.bundle import write_manifest
from serve.bundle import FORMAT, Bundle, Manifest
from serve.errors import BadBundle

GRAPH = {"file": "model.onnx", "inputs": [], "outputs": [], "weight_bytes": 1, "kv_dtype": "float32", "needs": []}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    exported(random_gpt2(), folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BadBundle, match=match) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_the_exporter_writes_is_what_the_runtime_reads(folder: Path) -> None:
    """Two ideas of the schema would show on the box only."""
    bundle = Bundle.open(folder)
    assert Manifest.from_json(json.loads((folder / "bundle.json").read_text())) == bundle.manifest
    assert bundle.geometry.kv_bytes_per_token == 2 * 2 * 32 * 4
    assert (bundle.dialogue.family, bundle.dialogue.banned_ids) == ("chitchat", (0, 1))
    assert bundle.sampling.top_k == 40
    assert bundle.file_bytes == sum(path.stat().st_size for path in folder.iterdir() if path.name != "bundle.json")
    before = bundle.identity
    (folder / "bundle.json").unlink()
    (folder / "tokenizer.json").write_text('{"other": 1}')
    write_manifest(bundle.manifest, folder)
    assert Bundle.open(folder).identity != before


def test_a_truncated_file_is_named(folder: Path) -> None:
    """Half a copy must not reach the parser."""
    path = folder / "model.onnx"
    content, size = path.read_bytes(), path.stat().st_size
    path.write_bytes(content[:-1])
    refused(folder, rf"model.onnx: truncated \({size - 1} bytes, bundle.json says {size}\); copy the bundle again")
    path.write_bytes(content + b"x")
    refused(folder, rf"model.onnx: altered \({size + 1} bytes, bundle.json says {size}\); copy the bundle again")


def test_one_flipped_bit_is_seen(folder: Path) -> None:
    """A damaged weight still gives fluent replies."""
    path = folder / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(folder, r"model.onnx: altered \(its sha256")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """Found at the first message, it would be a crash."""
    (folder / name).unlink()
    refused(folder, rf"{name}: missing")


def test_a_file_that_is_not_listed_is_refused(folder: Path) -> None:
    """A graph may name a data file; one that nobody hashed must not lie there."""
    (folder / "model.onnx.data").write_bytes(b"x")
    refused(folder, r"model.onnx.data: is not listed")


def test_a_link_in_place_of_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    """What it points to can change after the check."""
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    refused(folder, "symbolic link")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "bundle.json", "", "a\\b", "a\0b"])
def test_names_that_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    """A bundle from elsewhere must not make the server read other files."""
    files = json.loads((folder / "bundle.json").read_text())["files"]
    edit(folder, files={**files, name: {"size": 1, "sha256": "0" * 64}})
    refused(folder, "not a plain file name")


def test_a_newer_format_says_upgrade(folder: Path) -> None:
    """An old runtime must not guess at what a newer exporter meant."""
    edit(folder, format=FORMAT + 1)
    refused(folder, "newer than this runtime.*upgrade")
    edit(folder, format=FORMAT - 1)
    refused(folder, "older than this runtime.*export the bundle again")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": None}, "no format number"),
        ({"format": True}, "no format number"),
        ({"graphs": {}}, "graphs: names none"),
        ({"graphs": {"tpu": {}}}, "graphs: 'tpu' is unknown"),
        ({"graphs": {"cpu": None}}, "graphs.cpu.file is missing"),
        ({"graphs": {"cpu": {**GRAPH, "weight_bytes": True}}}, "graphs.cpu.weight_bytes is missing or not of its type"),
        ({"graphs": {"cpu": {**GRAPH, "kv_dtype": "int3"}}}, "graphs.cpu.kv_dtype 'int3' is unknown"),
        ({"graphs": {"cpu": {**GRAPH, "file": "other.onnx"}}}, "does not list other.onnx"),
        ({"geometry": None}, "geometry is missing"),
        ({"geometry": {"layers": 2}}, r"geometry.heads is None"),
        ({"parameters": "many"}, "parameters is missing or not of its type"),
        ({"files": {"tokenizer.json": {}}}, "does not list model.onnx"),
        ({"files": {"model.onnx": {}, "tokenizer.json": {}}}, "no size and sha256 for model.onnx"),
    ],
)
def test_a_manifest_with_a_wrong_field_names_it(folder: Path, changes: dict[str, Any], match: str) -> None:
    """A KeyError on the box says nothing to its owner."""
    edit(folder, **changes)
    refused(folder, match)


def test_a_geometry_that_contradicts_itself_is_refused(folder: Path) -> None:
    """The cache is made from it: a wrong head count is memory that the graph writes beyond."""
    geometry = json.loads((folder / "bundle.json").read_text())["geometry"]
    edit(folder, geometry={**geometry, "heads": 3})
    refused(folder, "not heads")


def test_a_truncated_manifest_is_no_traceback(folder: Path) -> None:
    """The one file without a hash."""
    path = folder / "bundle.json"
    path.write_text(path.read_text()[:-20])
    refused(folder, "bundle.json: is truncated or not JSON")
    path.write_text("[" * 100_000)
    refused(folder, "bundle.json: is truncated or not JSON")
    path.write_bytes(b"\xff\xfe{}")
    refused(folder, "bundle.json: is truncated or not JSON")


def test_a_folder_that_is_no_bundle_says_so(tmp_path: Path) -> None:
    """Users give the checkpoint."""
    refused(tmp_path, r"is not a bundle \(no bundle.json\)")
    refused(tmp_path / "nothing", "no such bundle folder")
    for name, says in {
        "config.json": r"is a checkpoint; make a bundle of it: compress export .* --out",
        "model.safetensors": "is a checkpoint",
        "pytorch_model.bin": "is a checkpoint",
        "model-q8_0.gguf": "GGUF files, which are for llama.cpp",
        "data.json": "is a data set",
        "model.onnx": "ONNX export of another tool",
    }.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("{}")
        refused(folder, says)
        refused(folder / name, "is a file; give a folder")


def test_ids_beyond_the_vocabulary_and_bad_sampling_defaults_are_refused(folder: Path) -> None:
    """An end of turn that the model cannot say never comes."""
    edit(folder, dialogue={**DIALOGUE, "end_of_turn_id": 101}, sampling={"temperature": -1})
    bundle = Bundle.open(folder)
    with pytest.raises(BadBundle, match="id 101 of a vocabulary of 101"):
        _ = bundle.dialogue
    with pytest.raises(BadBundle, match="sampling: temperature -1"):
        _ = bundle.sampling
