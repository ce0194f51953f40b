"""What this process may use of the machine: physical cores, and the CPU features that pick a kernel.

Counted for this process, not for the machine: a container with two cores of sixty-four that starts sixty-four threads
is slower than one that starts two.
"""

import math
import os
from collections.abc import Collection
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
# Linux's names of the features that onnxruntime's matrix kernels are chosen by (x86, then ARM).
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
# With any of these, sums of products of unsigned and signed bytes are kept in 32 bits. Without, x86 adds pairs of
# products in 16 bits, which saturate: 255 * 127 + 255 * 127 > 32767. ARM's kernels widen.
EXACT_BYTE_SUMS = ("amx_int8", "asimd", "avx512_vnni", "avx_vnni")


def physical_cores() -> int:
    """Cores that this process may run on, hyper-threads not counted, within its cgroup's quota; at least 1."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 1) // 2)
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    quota = _cgroup_quota()
    return max(1, len(cores) if quota is None else min(len(cores), math.ceil(quota)))


def cpu_features() -> tuple[str, ...]:
    """The features of this CPU that decide which kernels run, sorted; empty where Linux does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    lines = (line.partition(":") for line in text.splitlines())
    words = {word for key, _, value in lines if key.strip() in ("flags", "Features") for word in value.split()}
    return tuple(sorted(words & set(_FEATURES)))


def lost_features(recorded: Collection[str], present: Collection[str]) -> str:
    """Tell in one phrase what a CPU lacks of the features that figures were recorded with; "" when it has them all.

    `present` empty: nothing is known of this CPU, and the phrase is empty.
    """
    lost = sorted(set(recorded) - set(present))
    if not present or not lost:
        return ""
    return (
        f"this CPU has no {', '.join(lost)}, which the bundle was measured with: expect other speed, and numbers that "
        "differ in their last digits"
    )


def _siblings(cpu: int) -> str:
    """The hyper-threads of the core that `cpu` belongs to, as Linux writes them; itself where it does not tell."""
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cgroup_quota() -> float | None:
    """CPUs that the cgroup grants, or None where there is no limit (cgroup v2, then v1)."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((_CGROUP / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((_CGROUP / "cpu" / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 and period_us > 0 else None
    except (OSError, ValueError):
        return None
