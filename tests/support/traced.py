"""A command under strace, with a home of its own: where it went on the network, and which files it made or wrote to."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve.quiet import SWITCHES

ROOT = Path(__file__).parents[2]
# What the suite itself sets to be quiet and offline would make the proof an easy one.
UNSET = (*SWITCHES, "HF_HUB_OFFLINE", "HF_HOME", "MPLCONFIGDIR", "DO_NOT_TRACK", "TRANSFORMERS_VERBOSITY", "CI")
FILE_CALLS = (
    "open",
    "openat",
    "creat",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
)
CALLS = ",".join(["%network", *FILE_CALLS])
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT")
_PATH = re.compile(r'(?:AT_FDCWD|\d+)?(?:<([^>]*)>)?(?:, )?"([^"]*)"')
_DONE = re.compile(r"\)\s+= \d+(<|$)")
_END = re.compile(r"\)\s+= .*")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_LOOPBACK = (
    "127.",
    "::1",
    "0.0.0.0",
    "::",
)  # the last two: what a server may listen on, and what a socket is unbound to
HARMLESS = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/")


@dataclass(frozen=True)
class Trace:
    """What a command and all its children did. `home` is the folder that was their HOME and XDG_CACHE_HOME's parent."""

    code: int
    said: str
    home: Path
    addresses: list[str]  # beyond loopback, with the call
    lookups: list[str]  # of host names
    written: set[Path]  # made, opened for writing, or renamed to

    def outside(self, *folders: Path) -> set[Path]:
        """What was written, or tried to be, outside `folders`; Python's bytecode caches do not count."""
        kept = [folder.resolve() for folder in folders]
        return {
            path
            for path in self.written
            if "__pycache__" not in path.parts
            and not str(path).startswith(HARMLESS)
            and not any(path.is_relative_to(folder) for folder in kept)
        }

    def in_home(self) -> set[str]:
        """Files and folders in the home, from there."""
        return {str(path.relative_to(self.home)) for path in self.home.rglob("*")}


def need_strace() -> str:
    """The path of strace. Skips, with the cause, where there is none or where it may not trace."""
    tool = shutil.which("strace")
    if tool is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run([tool, "-f", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace cannot trace here: {tried.stderr.strip().splitlines()[-1]}")
    return tool


def need_no_network() -> list[str]:
    """The words before a command that leave it without any network. Skips where that cannot be had."""
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which(alone[0]) is None:
        pytest.skip("unshare is not installed")
    tried = subprocess.run([*alone, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a network namespace cannot be made here: {tried.stderr.strip()}")
    return alone


def trace(
    command: Sequence[str | Path], folder: Path, meanwhile: Callable[["subprocess.Popen[str]"], None] | None = None
) -> Trace:
    """Run a command in `folder` under strace; `meanwhile` talks to it while it runs, and it is then told to end."""
    home, logs, temporary = (Path(tempfile.mkdtemp(prefix=name, dir=folder)) for name in ("home", "logs", "tmp"))
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "TMPDIR": str(temporary)}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    traced = [need_strace(), "-ff", "--seccomp-bpf", "-y", "-e", f"trace={CALLS}", "-o", str(logs / "log")]
    process = subprocess.Popen(
        [*traced, *map(str, command)],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if meanwhile is not None:
            meanwhile(process)
            _child_of(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    lines = [line for log in sorted(logs.iterdir()) for line in log.read_text(errors="replace").splitlines()]
    return Trace(process.returncode, out + err, home, *_read(lines, folder))


def _child_of(pid: int, number: int) -> None:
    """Send a signal to what strace runs."""
    (child, *_) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), number)


def _read(lines: Sequence[str], folder: Path) -> tuple[list[str], list[str], set[Path]]:
    addresses, lookups, written = [], [], set()
    for line in lines:
        call, _, rest = line.partition("(")
        if "/etc/resolv.conf" in rest or "sin_port=htons(53)" in rest or "sin6_port=htons(53)" in rest:
            lookups.append(line)
        for found in _ADDRESS.finditer(rest):
            address = found[1] or found[2]
            if call in ("connect", "sendto", "sendmsg", "sendmmsg") and not address.startswith(_LOOPBACK):
                addresses.append(line)
        if call not in ("open", "openat") or _WRITES.search(rest):
            written |= _path(call, rest, folder)
    return addresses, lookups, written


def _path(call: str, rest: str, folder: Path) -> set[Path]:
    """The absolute path that a call on files names, if it succeeded; of two (a rename, a link) the new one."""
    if call not in FILE_CALLS or not _DONE.search(rest):
        return set()
    named = [Path(found[1] or folder, found[2]) for found in _PATH.finditer(_END.sub("", rest))]
    return {Path(os.path.normpath(path)) for path in named[-1:]}
