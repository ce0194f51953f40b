"""The schema of `bundle.json`: what a bundle holds, where it comes from, and what was measured of it.

The exporter writes it through `Manifest.as_json`, the runtime reads it through `Manifest.from_json`, which refuses a
missing or wrong field by its name. Files are not opened here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_origin, get_type_hints

from serve.errors import BadBundle
from serve.geometry import Geometry

BUNDLE_JSON = "bundle.json"
FORMAT = 2
TARGETS = ("cpu", "cuda", "portable")
KV_DTYPES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Graph:
    """One graph of a bundle.

    file           its name in the folder; weights that lie apart are in `<file>.data`
    inputs,        names, in order (their meaning: export/graph/spec.py)
      outputs
    weight_bytes   what the weights take in the graph, a tied table counted once
    kv_dtype       type of the cache's numbers: "float32", "float16" or "int8"
    needs          CPU features, one of which the integer products need to be right (serve/cpu.py); none: ()
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
    sampling      default sampling options (serve/options.py)
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
        return {"format": self.format, **asdict(self), "geometry": self.geometry.as_json()}

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
        values = _fields_of(cls, record)
        values["graphs"] = _graphs(values["graphs"])
        values["geometry"] = _geometry(values["geometry"])
        return cls(**values)


def _fields_of(kind: type, record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass from a JSON object, lists as tuples. Raises BadBundle that names the field."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in fields(kind):
        hint = get_origin(hints[item.name]) or hints[item.name]
        expected = {tuple: list, Mapping: dict, Geometry: dict}.get(hint, hint)
        value = record.get(item.name)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise BadBundle(
                f"{BUNDLE_JSON}: {prefix}{item.name} is missing or not of its type; export the bundle again"
            )
        values[item.name] = tuple(value) if isinstance(value, list) else value
    return values


def _graphs(record: Mapping[str, Any]) -> dict[str, Graph]:
    """Read the graphs, main one first. Raises BadBundle that names the field."""
    unknown = sorted(set(record) - set(TARGETS))
    if unknown or not record:
        what = f"{unknown[0]!r} is unknown" if unknown else "names none"
        raise BadBundle(f"{BUNDLE_JSON}: graphs: {what} (known: {', '.join(TARGETS)}); export the bundle again")
    graphs = {}
    for target in sorted(record, key=TARGETS.index):
        entry = record[target] if isinstance(record[target], dict) else {}
        values = _fields_of(Graph, entry, f"graphs.{target}.")
        if values["kv_dtype"] not in KV_DTYPES:
            raise BadBundle(
                f"{BUNDLE_JSON}: graphs.{target}.kv_dtype {values['kv_dtype']!r} is unknown (known: "
                f"{', '.join(KV_DTYPES)}); upgrade the runtime"
            )
        graphs[target] = Graph(**values)
    return graphs


def _geometry(record: Mapping[str, Any]) -> Geometry:
    try:
        return Geometry.from_json(record)
    except ValueError as error:
        raise BadBundle(f"{BUNDLE_JSON}: geometry.{error}; export the bundle again") from error
