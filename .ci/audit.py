"""`make audit`: are there known security advisories on the versions of constraints.txt?

The list beside this file is always asked, pip-audit where it is installed (`--pip-audit PROGRAM`) and its service can
be reached; where not, that is said plainly and nothing is claimed. A service that knows none of the packages has not
been asked: pip-audit itself then ends with exit code 0. Exit codes: 0 nothing is known, 1 something is, 2 bad input.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).parent
PATIENCE_S = 60


def read_pins(path: Path) -> dict[str, Version]:
    """Versions by name of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if line)
    return {canonicalize_name(name): Version(version) for name, _, version in pairs}


def read_advisories(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """The date of the list, and its advisories. Raises ValueError for one that is not whole."""
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    for advisory in found["advisory"]:
        known = [name for name in ("fixed", "last", "accepted") if advisory.get(name)]
        if not (advisory.get("ids") and advisory.get("what") and advisory.get("package") and len(known) == 1):
            raise ValueError(
                f"{path}: {advisory.get('ids')}: give package, ids, what, and one of fixed, last, accepted"
            )
    return str(found["as_of"]), found["advisory"]


def judge(pins: Mapping[str, Version], advisories: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """A line for each advisory that holds for a pin, and for each that holds and is accepted."""
    holding, accepted = [], []
    for advisory in advisories:
        pin = pins.get(canonicalize_name(advisory["package"]))
        if pin is None:
            continue
        line = f"{advisory['package']} {pin}: {', '.join(advisory['ids'])}: {advisory['what']}"
        if "accepted" in advisory:
            accepted.append(f"{line}; accepted: {advisory['accepted']}")
        elif "fixed" in advisory and pin < Version(advisory["fixed"]):
            holding.append(f"{line}; fixed in {advisory['fixed']}")
        elif "last" in advisory and pin <= Version(advisory["last"]):
            holding.append(f"{line}; no longer in releases after {advisory['last']}")
    return holding, accepted


def ask_service(program: str, constraints: Path, accepted: Sequence[str]) -> tuple[list[str], str]:
    """What pip-audit finds on the pins, a line each, or why it could not be asked. One package is asked first."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.txt"
        probe.write_text("urllib3==1.26.4\n", encoding="utf-8")  # it has advisories, for certain
        answer, why = _pip_audit(program, probe)
        if not answer:
            return [], why
        if not any(package.get("vulns") for package in answer):
            return [], f"its service does not know a release that has advisories ({_skipped(answer)})"
    answer, why = _pip_audit(program, constraints)
    found = [
        f"{package['name']} {package['version']}: {vuln['id']}; fixed in: {', '.join(vuln['fix_versions']) or 'none'}"
        for package in answer
        for vuln in package.get("vulns", [])
        if not {vuln["id"], *vuln["aliases"]} & set(accepted)
    ]
    return found, why


def _pip_audit(program: str, requirements: Path) -> tuple[list[dict[str, Any]], str]:
    command = [program, "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command += ["--timeout", "10", "--requirement", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        return list(json.loads(done.stdout)["dependencies"]), ""
    except OSError as error:
        return [], f"{program} cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return [], f"no answer in {PATIENCE_S} s"
    except (ValueError, KeyError):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return [], said[-1][:200] if said else f"exit code {done.returncode}"


def _skipped(answer: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(str(package["skip_reason"]) for package in answer if "skip_reason" in package) or "no reason given"


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="audit", description="Known security advisories on the tested versions.")
    parser.add_argument("--constraints", type=Path, default=HERE.parent / "constraints.txt")
    parser.add_argument("--advisories", type=Path, default=HERE / "advisories.toml")
    parser.add_argument("--pip-audit", metavar="PROGRAM", help="also ask its service")
    options = parser.parse_args(arguments)
    try:
        pins = read_pins(options.constraints)
        as_of, advisories = read_advisories(options.advisories)
    except (OSError, ValueError, KeyError) as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    holding, accepted = judge(pins, advisories)
    for line in accepted:
        print(line)
    print(f"audit: {len(pins)} versions held against {len(advisories)} entries of {as_of}: {len(holding)} hold")
    if options.pip_audit:
        ids = [name for advisory in advisories if "accepted" in advisory for name in advisory["ids"]]
        found, why = ask_service(options.pip_audit, options.constraints, ids)
        print(f"audit: pip-audit was not asked: {why}" if why else f"audit: pip-audit: {len(found)} more")
        holding += found
    for line in holding:
        print(line, file=sys.stderr)
    return int(bool(holding))


if __name__ == "__main__":
    sys.exit(main())
