"""Which runtime a kind of model is measured in; their classes stand in `bench.peers`, behind
`bench.models.backend.Backend`.

A module is imported when it is chosen. All get the same prompt ids, decode greedily, and give exactly the number of new
tokens that was asked for: the end of turn is suppressed, so that every model does the same work. Time to first token
runs from ids in to the first id out, sampling included. Text, files and tables are not handled here.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bench.models.backend import Backend
from serve.quiet import load

Make = Callable[..., Backend]  # (spec, threads, device), and slots, how many conversations run side by side


@dataclass(frozen=True)
class Kind:
    """Where the class of a kind of model stands, and the heavy modules that it imports when it loads one."""

    module: str
    name: str
    needs: tuple[str, ...]


_TORCH = ("torch", "transformers.models.gpt2.modeling_gpt2")
KINDS = {
    "checkpoint": Kind("models.torch", "TorchBackend", _TORCH),
    "quantized": Kind("models.torch", "QuantizedBackend", _TORCH),
    "bundle": Kind("models.engine", "EngineBackend", ("onnxruntime", "serve.scheduler")),
    "torch-no-cache": Kind("models.torch", "NoCacheBackend", _TORCH),
    "torch-int8": Kind("models.torch", "DynamicInt8Backend", _TORCH),
    "torch-fp16": Kind("models.torch", "HalfBackend", _TORCH),
    "optimum": Kind("peers.optimum", "OptimumBackend", ("onnxruntime", *_TORCH, "optimum.onnxruntime")),
    "llama.cpp": Kind("peers.llama_cpp", "LlamaCppBackend", ("llama_cpp",)),
    "ctranslate2": Kind("peers.ctranslate2", "CTranslate2Backend", ("ctranslate2",)),
    "openvino": Kind("peers.openvino", "OpenVinoBackend", ("openvino",)),
    "onnxruntime-genai": Kind("peers.genai", "GenaiBackend", ("onnxruntime_genai",)),
}


def runtime_version(kind: str) -> str | None:
    """The version of the first package that the kind needs, which is loaded; None where it does not say."""
    said = getattr(sys.modules.get(KINDS[kind].needs[0]), "__version__", None)
    return None if said is None else str(said).split("-")[0]  # OpenVINO adds its build


def open_backend(kind: str) -> Make:
    """Import the runtime of a kind of model (a key of `KINDS`), so that loading is timed without it; its class."""
    known = KINDS[kind]
    for module in known.needs:
        load(module)
    make: Make = getattr(importlib.import_module(f"bench.{known.module}"), known.name)
    return make
