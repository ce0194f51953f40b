"""A bundle as a measured model: its cheap facts, and the torch-free engine that computes it."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.models.engine import BUNDLE, EngineModel
from bench.models.handle import ModelHandle
from chitchat.errors import BadInput
from serve.bundle import Bundle
from serve.dialogue import Dialogue
from serve.errors import BadBundle, ServeError
from serve.geometry import Geometry
from serve.graph_selection import choose, find_providers

if TYPE_CHECKING:
    from serve.engine import Engine


class BundleHandle(ModelHandle):
    """An exported bundle, computed by our torch-free engine."""

    runtime_kind = BUNDLE

    def __init__(self, spec: str, folder: Path) -> None:
        super().__init__(spec, folder)
        try:
            self.bundle = Bundle.open(folder)
        except ServeError as error:
            raise BadInput(str(error)) from error

    @property
    def runtime(self) -> str:
        manifest = self.bundle.manifest
        return f"onnx {manifest.scheme}" + (" portable" if "portable" in manifest.graphs else "")

    @property
    def geometry(self) -> Geometry:
        return self.bundle.geometry

    @property
    def parameters(self) -> int:
        return self.bundle.manifest.parameters

    @property
    def weight_bytes(self) -> int:
        return next(iter(self.bundle.manifest.graphs.values())).weight_bytes

    @property
    def file_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    @property
    def dialogue(self) -> Dialogue:
        return self.bundle.dialogue

    def tokenizer_json(self) -> str:
        return self.bundle.tokenizer_path.read_text(encoding="utf-8")

    def load(self, threads: int | None = None) -> EngineModel:
        return EngineModel(self.generator(threads))

    def generator(self, threads: int | None = None, device: str | None = None) -> "Engine":
        from serve.engine import Engine  # loads onnxruntime

        return Engine(self.bundle, threads=threads, device=device)

    def announce(self, device: str | None = None) -> None:
        with contextlib.suppress(BadBundle):  # nothing of it runs here: an error says so where it is asked to run
            choose(self.bundle, device, find_providers()).announce()

    def figures(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        graphs = {
            f"graph_{target}": f"{graph.file}, {graph.kv_dtype} KV cache, {graph.weight_bytes:,} bytes of weights"
            for target, graph in manifest.graphs.items()
        }
        files = {f"file {name}": known["size"] for name, known in manifest.files.items()}
        kv_dtype = next(iter(manifest.graphs.values())).kv_dtype
        return super().figures() | {"scheme": manifest.scheme, "kv_dtype": kv_dtype} | graphs | files

    def lineage(self) -> list[dict[str, Any]]:
        return [dict(record) for record in self.bundle.manifest.lineage]
