"""What memory a process holds: from Linux's /proc, and for a GPU from its driver. MB are 10^6 bytes."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MB = 1_000_000


def peak_rss_mb() -> float:
    """The most memory that this process ever held, and that of every process that it has started and still runs.

    From VmHWM: on Linux `getrusage` starts a child at its parent's peak, so that a small runtime started by a large
    process would look large.
    """
    peak = status_mb("VmHWM")
    if peak is not None:
        return peak + sum(status_mb("VmHWM", pid) or 0.0 for pid in _descendants(os.getpid()))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def status_mb(field: str, pid: int | None = None) -> float | None:
    """A size of `/proc/PID/status` such as VmRSS or VmHWM, by default of this process; None where it is not told."""
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / MB if found else None


def device_mb() -> float | None:
    """GPU memory that this process holds, as NVIDIA's driver counts it; None without a GPU or its tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1]
    used = [float(size) for pid, size in rows if pid.strip() == str(os.getpid()) and size.strip().isdigit()]
    return sum(used) * 1024**2 / MB if used else None  # the driver counts in MiB


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text(encoding="ascii").split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from _descendants(child)
