"""The bundle: a folder with everything that an edge box needs to run one model, and `bundle.json` that explains it.

This module defines the schema of `bundle.json` (`Manifest`; the exporter writes it through `Manifest.as_json`) and
opens a bundle: size and sha256 of every file are checked before any parser sees one. Who made the bundle is not
checked here: a hash in the same folder tells damage, not origin. Nothing is loaded here; that is the engine's work.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from serve.dialogue import Dialogue
from serve.errors import BadBundle, BadRequest
from serve.sampler import SamplingOptions

BUNDLE_JSON = "bundle.json"
GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
FORMAT = 2
TARGETS = ("cpu", "cuda", "portable")
KV_DTYPES = ("float32", "float16", "int8")
_MAX_JSON_BYTES = 64 << 20  # bundle.json is the one file that is parsed without a hash


@dataclass(frozen=True)
class Geometry:
    """Shape of a GPT-2: counts, and sizes in numbers (not bytes). `width` = `heads` * `head_dim`."""

    layers: int
    heads: int
    head_dim: int
    width: int
    ffn: int
    vocab: int
    context: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the float32 KV cache that one token takes."""
        return 2 * 4 * self.layers * self.heads * self.kv_head_dim

    @property
    def kv_head_dim(self) -> int:
        """Numbers a head takes in the cache: onnxruntime's attention takes multiples of 8; zeros fill up the rest."""
        return -(-self.head_dim // 8) * 8


@dataclass(frozen=True)
class Graph:
    """One graph of a bundle.

    file           its name in the folder; weights that lie apart are in `<file>.data`
    inputs,        names, in order (their meaning: export/graph.py)
      outputs
    weight_bytes   what the weights take in the graph, a tied table counted once
    kv_dtype       type of the cache's numbers: "float32", "float16" or "int8"
    needs          CPU features, one of which the integer products need to be right (serve/processors.py); none: ()
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    kv_dtype: str = "float32"
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """`bundle.json`, format 2. One JSON object with these fields; unknown ones are ignored, missing ones refused.

    graphs        by target: "cpu" and "cuda", our graphs for `serve`; "portable": standard ONNX, for optimum's
                  ORTModelForCausalLM, which stands alone
    scheme        how the weights are stored: "fp32", or the quantized checkpoint's scheme, such as "w8"
    parameters    numbers in the model, a tied table counted once
    dialogue      the ids of the dialogue format (serve/dialogue.py)
    sampling      default sampling options (serve/sampler.py)
    cpu_features  what the figures below need of a CPU to hold on another box; the model runs without, more slowly
    lineage       the records of all stages that led here, oldest first
    parity        by target: what the parity check measured against torch, and on which execution provider
    quality       perplexity, bits per byte, token accuracy on held-out conversations; empty when exported without data
    latency       ttft_ms for `prompt_tokens`, tpot_ms (ms per further token), `threads`, on the exporting machine
    files         {name: {"size": bytes, "sha256": hex}} of every other file of the folder
    """

    graphs: Mapping[str, Graph]
    scheme: str
    geometry: Geometry
    parameters: int
    dialogue: Mapping[str, Any]
    sampling: Mapping[str, Any]
    cpu_features: tuple[str, ...]
    lineage: tuple[Mapping[str, Any], ...]
    parity: Mapping[str, Any]
    quality: Mapping[str, Any]
    latency: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    def as_json(self) -> dict[str, Any]:
        """The object that `bundle.json` holds, format first."""
        return {"format": self.format, **asdict(self)}

    @classmethod
    def from_json(cls, record: Any) -> "Manifest":
        """Read the object back. Raises BadBundle that names the field."""
        if not isinstance(record, dict) or type(record.get("format")) is not int:
            raise BadBundle(f"{BUNDLE_JSON}: holds no format number; export the bundle again")
        if record["format"] != FORMAT:
            newer = record["format"] > FORMAT
            raise BadBundle(
                f"{BUNDLE_JSON}: format {record['format']} is {'newer' if newer else 'older'} than this runtime's "
                f"{FORMAT}; {'upgrade the runtime' if newer else 'export the bundle again'}"
            )
        values: dict[str, Any] = {}
        for item in fields(cls):
            value = record.get(item.name)
            expected = _TYPES[item.name]
            if not isinstance(value, expected) or isinstance(value, bool):
                raise BadBundle(f"{BUNDLE_JSON}: {item.name} is missing or not of its type; export the bundle again")
            values[item.name] = tuple(value) if isinstance(value, list) else value
        values["graphs"] = _graphs(values["graphs"])
        values["geometry"] = _geometry(values["geometry"])
        return cls(**values)


_TYPES: dict[str, type] = {
    "graphs": dict,
    "scheme": str,
    "geometry": dict,
    "parameters": int,
    "dialogue": dict,
    "sampling": dict,
    "cpu_features": list,
    "lineage": list,
    "parity": dict,
    "quality": dict,
    "latency": dict,
    "files": dict,
    "format": int,
}

_GRAPH_TYPES: dict[str, type] = {
    "file": str,
    "inputs": list,
    "outputs": list,
    "weight_bytes": int,
    "kv_dtype": str,
    "needs": list,
}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file was there and unaltered when it was opened."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Verify the bundle in `path`. Raises BadBundle with one line: which file, what is wrong, what to do."""
        folder = Path(path)
        manifest = Manifest.from_json(_read_json(folder))
        needed = {TOKENIZER, *(graph.file for graph in manifest.graphs.values())} - set(manifest.files)
        if needed:
            raise BadBundle(f"{folder / BUNDLE_JSON}: does not list {min(needed)}; export the bundle again")
        for name, known in manifest.files.items():
            _verify(folder, name, known)
        extra = {entry.name for entry in os.scandir(folder)} - set(manifest.files) - {BUNDLE_JSON}
        if extra:
            raise BadBundle(
                f"{folder / min(extra)}: is not listed in {BUNDLE_JSON}; remove it or copy the bundle again"
            )
        return cls(folder, manifest)

    def graph_path(self, target: str) -> Path:
        """Where the graph for `target` is. Raises KeyError when the bundle has none: `choose` asks first."""
        return self.folder / self.manifest.graphs[target].file

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def geometry(self) -> Geometry:
        return self.manifest.geometry

    @cached_property
    def dialogue(self) -> Dialogue:
        """The dialogue format, its ids checked against the vocabulary."""
        dialogue = Dialogue.from_json(self.manifest.dialogue)
        used = (dialogue.end_of_turn_id, *dialogue.start_ids, *dialogue.blank_ids, *dialogue.banned_ids)
        if max(used) >= self.geometry.vocab:
            raise BadBundle(
                f"{self.folder / BUNDLE_JSON}: dialogue names id {max(used)} of a vocabulary of {self.geometry.vocab}; "
                "export the bundle again"
            )
        return dialogue

    @cached_property
    def sampling(self) -> SamplingOptions:
        """The default sampling options."""
        known = {item.name for item in fields(SamplingOptions)}
        try:
            return SamplingOptions(**{name: value for name, value in self.manifest.sampling.items() if name in known})
        except BadRequest as error:
            raise BadBundle(f"{self.folder / BUNDLE_JSON}: sampling: {error}") from error

    @property
    def file_bytes(self) -> int:
        """Bytes of all files but bundle.json itself."""
        return sum(known["size"] for known in self.manifest.files.values())

    @cached_property
    def identity(self) -> str:
        """A sha256 that stands for the content: over the names and hashes of the files, bundle.json excluded."""
        files = self.manifest.files
        lines = "".join(f"{name}\0{files[name]['sha256']}\n" for name in sorted(files))
        return hashlib.sha256(lines.encode()).hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """Give the `files` entry of one file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_json(folder: Path) -> Any:
    path = folder / BUNDLE_JSON
    if not folder.is_dir():
        raise BadBundle(f"{folder}: no such bundle folder; give a folder that compress export wrote")
    if not path.is_file() or path.is_symlink():
        raise BadBundle(f"{folder}: is not a bundle (no {BUNDLE_JSON}); give a folder that compress export wrote")
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("too large")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{path}: is truncated or not JSON; copy the bundle again") from error
    except OSError as error:
        raise BadBundle(f"{path}: cannot be read ({error.strerror})") from error


def _verify(folder: Path, name: str, known: Any) -> None:
    """Check one listed file: a plain file directly in the folder, of the listed size and hash."""
    if name in ("", ".", "..", BUNDLE_JSON) or any(mark in name for mark in "/\\\0"):
        raise BadBundle(
            f"{folder / BUNDLE_JSON}: lists {name!r}, which is not a plain file name; do not use this bundle"
        )
    if not isinstance(known, dict) or type(known.get("size")) is not int or not isinstance(known.get("sha256"), str):
        raise BadBundle(f"{folder / BUNDLE_JSON}: has no size and sha256 for {name}; export the bundle again")
    path = folder / name
    if path.is_symlink():
        raise BadBundle(f"{path}: is a symbolic link, not a file; copy the bundle again")
    if not path.is_file():
        raise BadBundle(f"{path}: missing, although {BUNDLE_JSON} lists it; copy the bundle again")
    size = path.stat().st_size
    if size != known["size"]:
        what = "truncated" if size < known["size"] else "altered"
        raise BadBundle(f"{path}: {what} ({size} bytes, {BUNDLE_JSON} says {known['size']}); copy the bundle again")
    try:
        actual = file_record(path)["sha256"]
    except OSError as error:
        raise BadBundle(f"{path}: cannot be read ({error.strerror})") from error
    if actual != known["sha256"]:
        raise BadBundle(f"{path}: altered (its sha256 differs from {BUNDLE_JSON}); copy the bundle again")


def _graphs(record: Mapping[str, Any]) -> dict[str, Graph]:
    """Read the graphs, main one first. Raises BadBundle that names the field."""
    unknown = sorted(set(record) - set(TARGETS))
    if unknown or not record:
        what = f"{unknown[0]!r} is unknown" if unknown else "names none"
        raise BadBundle(f"{BUNDLE_JSON}: graphs: {what} (known: {', '.join(TARGETS)}); export the bundle again")
    graphs = {}
    for target in sorted(record, key=TARGETS.index):
        entry = record[target] if isinstance(record[target], dict) else {}
        for name, expected in _GRAPH_TYPES.items():
            if not isinstance(entry.get(name), expected) or isinstance(entry[name], bool):
                raise BadBundle(
                    f"{BUNDLE_JSON}: graphs.{target}.{name} is missing or not of its type; export the bundle again"
                )
        values: dict[str, Any] = {name: entry[name] for name in _GRAPH_TYPES}
        if values["kv_dtype"] not in KV_DTYPES:
            raise BadBundle(
                f"{BUNDLE_JSON}: graphs.{target}.kv_dtype {values['kv_dtype']!r} is unknown (known: "
                f"{', '.join(KV_DTYPES)}); upgrade the runtime"
            )
        graphs[target] = Graph(**(values | {name: tuple(values[name]) for name in ("inputs", "outputs", "needs")}))
    return graphs


def _geometry(record: Mapping[str, Any]) -> Geometry:
    values = {item.name: record.get(item.name) for item in fields(Geometry)}
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise BadBundle(
                f"{BUNDLE_JSON}: geometry.{name} is {value!r}, not a positive number; export the bundle again"
            )
    geometry = Geometry(**values)  # type: ignore[arg-type]
    if geometry.heads * geometry.head_dim != geometry.width:
        raise BadBundle(
            f"{BUNDLE_JSON}: geometry.width {geometry.width} is not heads * head_dim; export the bundle again"
        )
    return geometry
