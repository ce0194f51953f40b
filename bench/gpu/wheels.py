"""`python -m bench.gpu.wheels`: fetch what a machine with a GPU, torch and no registry lacks, cut for the journey.

All that the extra `gpu` needs at the versions of constraints.txt, and pytest, but not torch and what only torch needs:
that machine has them. pip fetches wheels one generation of requirements after the other, since a resolver would fetch
torch to learn what it needs.
"""

import argparse
import email
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.gpu.machine import PIP, ROOT, ask
from bench.gpu.parts import PART_BYTES, cut, megabytes
from chitchat.errors import BadInput, ChitchatError, WorkFailed

THERE = ("torch",)  # on the machine already, with all that it needs
TESTS = ("pytest",)
GLIBC = range(5, 36)  # pip takes a platform tag literally, so all that a glibc of 2.35 runs are named


def first_requirements(pyproject: Path) -> list[Requirement]:
    """What the project asks for itself with the extra `gpu`, and what its tests are run with."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras, name = project["optional-dependencies"], canonicalize_name(project["name"])
    found, asked = [], [*project["dependencies"], *extras["gpu"], *TESTS]
    while asked:
        requirement = Requirement(asked.pop(0))
        if canonicalize_name(requirement.name) == name:
            asked += [line for extra in requirement.extras for line in extras[extra]]
        else:
            found.append(requirement)
    return found


def pins(constraints: Path) -> dict[str, str]:
    """Versions by name of a constraints file."""
    lines = [line.partition("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if name}


def needed(requirements: Iterable[Requirement], python: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """Those of a package's requirements that hold on the machine, by the package's `extras`, without what is there."""
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
    }
    return [
        requirement
        for requirement in requirements
        if canonicalize_name(requirement.name) not in THERE
        and (
            requirement.marker is None
            or any(requirement.marker.evaluate(machine | {"extra": extra}) for extra in ("", *extras))
        )
    ]


def requirements_of(wheel: Path) -> tuple[str, list[Requirement]]:
    """A wheel's name, and what its metadata asks for."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    lines = metadata.get_all("Requires-Dist") or []
    return canonicalize_name(metadata["Name"]), [Requirement(line) for line in lines]


def fetch(python: str, folder: Path) -> list[Path]:
    """Download every wheel that is needed into `folder`; their paths. Raises `WorkFailed` with pip's last words."""
    versions, known = pins(ROOT / "constraints.txt"), dict[str, set[str]]()
    wave = needed(first_requirements(ROOT / "pyproject.toml"), python)
    while wave:
        names = {canonicalize_name(requirement.name) for requirement in wave} - set(known)
        before = set(folder.glob("*.whl"))
        if names:
            lines = [f"{name}=={versions[name]}" if name in versions else name for name in sorted(names)]
            print(f"fetching {len(names)}: {', '.join(sorted(names))}", file=sys.stderr, flush=True)
            _download(lines, python, folder)
        for requirement in wave:
            known.setdefault(canonicalize_name(requirement.name), set()).update(requirement.extras)
        new = [requirements_of(wheel) for wheel in set(folder.glob("*.whl")) - before]
        wave = [wanted for name, asked in new for wanted in needed(asked, python, known[name])]
    return sorted(folder.glob("*.whl"))


def _download(lines: Sequence[str], python: str, folder: Path) -> None:
    tags = ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
    tags += [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    options += [word for tag in tags for word in ("--platform", tag)]
    code, _, words = ask(*PIP, "download", *options, "--dest", str(folder), *lines)
    if code:
        raise WorkFailed(f"pip could not fetch wheels for Python {python}: {words}")


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.wheels", description="Fetch wheels, cut for a journey.")
    parser.add_argument("--out", type=Path, default=Path("wheels"), help="folder, made anew (default: %(default)s)")
    parser.add_argument("--python", default="3.12", help="Python of the machine (default: %(default)s)")
    parser.add_argument("--part-mb", type=float, default=PART_BYTES / 1e6, help="MB at most (default: %(default)g)")
    options = parser.parse_args(arguments)
    try:
        if options.part_mb < 1:
            raise BadInput(f"--part-mb {options.part_mb:g}: give at least 1")
        with tempfile.TemporaryDirectory(prefix="gpu-wheels-") as folder:
            manifest = cut(fetch(options.python, Path(folder)), options.out, options.python, int(options.part_mb * 1e6))
    except ChitchatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    folders = len({part.path.partition("/")[0] for part in manifest.parts()})
    size = megabytes(manifest.wheels)
    print(f"{options.out}: {len(manifest.wheels)} wheels, {size:.0f} MB in {folders} folders, and manifest.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
