"""The machine that is checked: whether it has what cannot be carried, and an environment made of what was carried.

What was carried goes into a folder on the path before the machine's own packages, so that its torch is used and the
rest is the tested set. No virtual environment: one that is made inside another does not see that one's packages.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chitchat.errors import WorkFailed

ROOT = Path(__file__).resolve().parents[2]
PIP = (sys.executable, "-m", "pip")
CUDA = "13"  # what onnxruntime-gpu of constraints.txt is built for
_ASK_TORCH = (
    "import json, torch; there = torch.cuda.is_available(); print(json.dumps({'torch': torch.__version__, "
    "'cuda': torch.version.cuda, 'gpu': torch.cuda.get_device_name() if there else None, 'file': torch.__file__}))"
)


def ask_torch() -> dict[str, Any]:
    """`torch`, `cuda` (None: built without), `gpu` (None: none can be used), and torch's `file`; or `error`."""
    code, told, words = ask(sys.executable, "-c", _ASK_TORCH)
    return {"error": words} if code else dict(json.loads(told.splitlines()[-1]))


def ask(*command: str) -> tuple[int, str, str]:
    """Run a command: its exit code, what it said, and its last line on stderr that is no warning."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    return done.returncode, done.stdout, lines[-1] if lines else "no word why"


def lacking(python: str, torch: dict[str, Any], *, gpu: bool = True) -> list[str]:
    """What the machine lacks, a line each: the Python ("3.12") of the wheels, pip, torch and, with `gpu`, CUDA."""
    found = []
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != python:
        found.append(f"Python {python}: this is {here}, and the wheels are for {python}; name that one in GPU_PYTHON")
    if ask(*PIP, "--version")[0]:
        found.append(f"pip: {sys.executable} has none; install python3-pip")
    if "error" in torch:
        found.append(f"torch: {sys.executable} cannot import it ({torch['error']}); it is not among the wheels")
    elif gpu and torch["gpu"] is None:
        built = f"built for CUDA {torch['cuda']}" if torch["cuda"] else "built without CUDA"
        found.append(f"CUDA GPU: torch {torch['torch']}, {built}, finds none; is the driver loaded (nvidia-smi)?")
    elif gpu and str(torch["cuda"]).partition(".")[0] != CUDA:
        found.append(f"CUDA {CUDA}: torch is built for {torch['cuda']}, and onnxruntime-gpu needs {CUDA}")
    return found


def install(wheels: Sequence[Path], site: Path) -> None:
    """Install the wheels into the folder `site`, which is complete or absent. Raises `WorkFailed`."""
    if site.is_dir():
        return
    partial = site.with_name(f"{site.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--no-cache-dir")
    code, _, words = ask(*PIP, "install", *options, "--target", str(partial), *map(str, wheels))
    if code:
        raise WorkFailed(f"pip could not install the wheels: {words}")
    partial.rename(site)


def environment(site: Path, torch: dict[str, Any]) -> dict[str, str]:
    """Our environment with what was carried, and with CUDA's libraries where they came with torch as packages.

    onnxruntime looks for those beside itself alone (`onnxruntime.preload_dlls`), and it is elsewhere.
    """
    packages = Path(torch["file"]).parents[1] / "nvidia"
    libraries = [str(folder) for folder in sorted(packages.glob("*/lib"))]
    if before := os.environ.get("LD_LIBRARY_PATH"):
        libraries.append(before)
    added = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "PYTHONUNBUFFERED": "1"}
    # Plugins of the machine's pytest, and its packages' own warnings, are none of our tests.
    added |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **added} | ({"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {})
