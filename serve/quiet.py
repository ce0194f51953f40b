"""Imports of libraries with telemetry, which is turned off first.

onnxruntime resolves an events host, and writes a device id and a database under `~/.cache/Microsoft`, at its import
(its `Privacy.md`, "Disabling Telemetry"); onnxruntime-genai does the same, and OpenVINO and NNCF report to an analytics
host. It must be turned off before the import and in every process, so every package imports them by `load`
(`tests/test_quiet.py` checks it). Variables that the user has set are kept.
"""

import importlib
import os
import sys
from typing import Any

# Each is read no earlier than when its library is imported.
SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime, onnxruntime-genai: no device id, no uploader, no events
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub: no list fetched to describe the caller, a plain user agent
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers: no request that the hub convert a repository
}
# OpenVINO and NNCF have no variable for it (NNCF_CI stops neither look-up nor client id), but run without this package.
ABSENT = ("openvino_telemetry",)


def silence() -> None:
    """Turn telemetry off in this process and those that it starts. Imports nothing."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    for package in ABSENT:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # an import of it raises ImportError


def load(module: str) -> Any:
    """Import a module, by its full name, with telemetry off."""
    silence()
    return importlib.import_module(module)
