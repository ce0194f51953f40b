"""Libraries that report on who uses them are imported here, with their reporting off: nothing of ours sends anything.

onnxruntime looks an events host up, and writes a device id and a database under `~/.cache/Microsoft`, from its import
on (its `Privacy.md`, "Disabling Telemetry"); onnxruntime-genai does the same, and OpenVINO and NNCF report to an
analytics host. Once one of them is imported it is too late, and a variable that the parent sets does not reach a
process that somebody else starts. So each process of ours turns reporting off where it imports the library: `load` is
that place for every package (`tests/test_quiet.py` reads the imports). It stands in `serve`, which imports nothing of
ours, so that all may use it.

A variable that the user has set stays as it is. A library that the user's own program has imported before is theirs.
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
# OpenVINO and NNCF heed no variable (NNCF_CI stops neither look-up nor client id), and run without this package.
ABSENT = ("openvino_telemetry",)
# Packages that report, or import one that does.
LOUD = ("onnxruntime", "onnxruntime_genai", "openvino", "nncf", "optimum")


def silence() -> None:
    """Turn off what libraries report, in this process and those that it starts. Imports nothing."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    for package in ABSENT:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # an import of it raises ImportError


def load(module: str) -> Any:
    """Import a module, by its full name, with the reporting off."""
    silence()
    return importlib.import_module(module)
