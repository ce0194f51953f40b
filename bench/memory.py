"""What Linux tells of this process's memory."""

import re
from pathlib import Path


def status_mb(field: str) -> float | None:
    """A size of `/proc/self/status` such as VmRSS or VmHWM, in MB of 10^6 bytes; None where it is not told."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None
