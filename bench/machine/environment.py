"""What the machine was when a figure was taken: processor, memory, versions, threads, load.

Figures without it cannot be compared. It reads `/proc` and `/sys` where they exist and leaves out what is not there;
it changes nothing and names neither host nor user.
"""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chitchat.lineage import installed_versions

# What decides how fast integer and float products are, on x86 and on ARM.
_FLAGS = [
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
]
_PACKAGES = ("chitchat-compress", "torch", "transformers", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> list[float]:
    """Runnable processes over the last 1, 5 and 15 minutes; empty where the system does not tell."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def environment(threads: int) -> dict[str, Any]:
    """The `environment` object of report.json; `threads` is what every backend was given."""
    processor, flags = _processor()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": processor,
        "cpu_flags": flags,
        "cores": cores(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "memory_mb": _memory_mb(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": threads,
        "load_average": load_average(),
        "versions": installed_versions(_PACKAGES),
        "revision": _revision(),
    }


def _revision() -> str | None:
    """The commit that this code stands at, with + when files were changed since; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    # Without the option git writes to the checkout what it found unchanged.
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        commit, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=False).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except OSError:
        return None
    return f"{commit}{'+' if changed else ''}" if commit else None


def _processor() -> tuple[str, list[str]]:
    """The processor's name and those of its flags that matter here."""
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    present = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, [flag for flag in _FLAGS if flag in present]


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000
    except (ValueError, OSError, AttributeError):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
