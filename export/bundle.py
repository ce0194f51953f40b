"""Writing a bundle's files: the graph, the tokenizer, and `bundle.json` last. The schema is serve/bundle.py's."""

import json
from pathlib import Path

import onnx
import onnx_ir as ir
from transformers import PreTrainedTokenizerFast

from serve.bundle import BUNDLE_JSON, GRAPH, TOKENIZER, Manifest
from serve.digest import file_record

# Above this many bytes the weights go into a file of their own. A protobuf file ends at 2 GB, but smaller models gain
# too: onnxruntime maps that file instead of reading it into memory (a 108 MB graph: 197 MB resident, not 248).
EXTERNAL_DATA_BYTES = 50_000_000


def write_graph(model: ir.Model, folder: Path, file: str = GRAPH, external_above: int = EXTERNAL_DATA_BYTES) -> Path:
    """Write `model.onnx` (and `model.onnx.data` for large weights), checked by ONNX; same model, same bytes."""
    path = folder / file
    weight_bytes = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    if weight_bytes > external_above:
        ir.save(model, path, external_data=f"{file}.data")
    else:
        ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write `tokenizer.json`, the one file that the library tokenizers needs."""
    path = folder / TOKENIZER
    tokenizer.backend_tokenizer.save(str(path))
    return path


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `bundle.json`, which lists every other file of the folder with size and hash."""
    files = {path.name: file_record(path) for path in sorted(folder.iterdir()) if path.name != BUNDLE_JSON}
    record = manifest.as_json() | {"files": files}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / BUNDLE_JSON).write_text(text + "\n", encoding="utf-8")
