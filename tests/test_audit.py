"""The tested versions have no known advisory but those that are accepted; and the audit tells what it was told."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
assert SPEC is not None
assert SPEC.loader is not None
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)

FIXED = {"package": "Some_Thing", "ids": ["PYSEC-1"], "what": "it burns", "fixed": "2.0"}


def pin(version: str) -> dict[str, Version]:
    return {"some-thing": Version(version)}


def test_no_tested_version_has_a_known_advisory() -> None:
    """A version with a known hole was tested, pinned and recommended."""
    pins = audit.read_pins(ROOT / "constraints.txt")
    holding, accepted = audit.judge(pins, audit.read_advisories(ROOT / ".ci" / "advisories.toml")[1])
    assert holding == []
    assert {line.split()[0] for line in accepted} == {"accelerate", "diskcache"}


def test_what_is_accepted_of_accelerate_is_not_called() -> None:
    """The reason for accepting an advisory stops being true in silence."""
    names = re.compile("load_checkpoint_in_model|load_checkpoint_and_dispatch")
    roots = [ROOT / room for room in ("chitchat_compress", "chitchat", "compress", "serve", "export", "bench")]
    for package in ("transformers", "torch_pruning"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        roots += [Path(folder) for folder in spec.submodule_search_locations]
    calling = [
        path for root in roots for path in root.rglob("*.py") if names.search(path.read_text("utf-8", "replace"))
    ]
    assert calling == []


@pytest.mark.parametrize(
    ("version", "advisory", "holds"),
    [
        ("1.9", FIXED, True),
        ("2.0", FIXED, False),
        ("2.0rc1", FIXED, True),
        ("1.9", {**FIXED, "fixed": None, "last": "1.9"}, True),
        ("1.9.1", {**FIXED, "fixed": None, "last": "1.9"}, False),
        ("1.9", {**FIXED, "package": "other"}, False),
    ],
)
def test_an_advisory_holds_for_the_versions_that_it_names(version: str, advisory: dict[str, Any], holds: bool) -> None:
    """Versions that were compared as text: 5.10 before 5.9."""
    advisory = {name: value for name, value in advisory.items() if value}
    holding, accepted = audit.judge(pin(version), [advisory])
    assert (bool(holding), accepted) == (holds, [])


def test_an_entry_that_is_not_whole_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An advisory without a version held for nothing."""
    path = tmp_path / "advisories.toml"
    path.write_text('as_of = "x"\n[[advisory]]\npackage = "a"\nids = ["PYSEC-1"]\nwhat = "w"\n')
    assert audit.main(["--advisories", str(path)]) == 2
    assert "give package, ids, what, and one of fixed, last, accepted" in capsys.readouterr().err


def program(folder: Path, answers: dict[str, Any]) -> str:
    """A pip-audit that answers for the files that it is given, as JSON, as the real one does."""
    path = folder / "pip-audit"
    path.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"pins = open(sys.argv[-1]).read()\nanswers = json.loads({json.dumps(json.dumps(answers))})\n"
        "print(json.dumps({'dependencies': next(value for name, value in answers.items() if name in pins)}))"
    )
    path.chmod(0o755)
    return str(path)


def test_a_service_that_knows_nothing_was_not_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pip-audit ends with exit code 0 where its service has none of the packages: "clean", of nothing."""
    unknown = [{"name": "urllib3", "skip_reason": "Dependency not found on PyPI"}]
    assert audit.main(["--pip-audit", program(tmp_path, {"urllib3": unknown})]) == 0
    assert "pip-audit was not asked: its service does not know a release that has" in capsys.readouterr().out
    assert audit.main(["--pip-audit", str(tmp_path / "absent")]) == 0
    assert "pip-audit was not asked: " in capsys.readouterr().out


def test_what_the_service_finds_fails_unless_it_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An advisory that came after the list was written must be seen, and one that was weighed must not come back."""
    vuln = {"id": "PYSEC-9", "aliases": ["CVE-9"], "fix_versions": ["3"]}
    known = {"id": "PYSEC-2026-3804", "aliases": [], "fix_versions": []}
    probe = [{"name": "urllib3", "version": "1.26.4", "vulns": [vuln]}]
    found = [
        {"name": "torch", "version": "2", "vulns": [vuln]},
        {"name": "accelerate", "version": "1", "vulns": [known]},
    ]
    answers = {"urllib3==1.26.4": probe, "torch": found}
    assert audit.main(["--pip-audit", program(tmp_path, answers)]) == 1
    said = capsys.readouterr()
    assert "pip-audit: 1 more" in said.out
    assert "torch 2: PYSEC-9; fixed in: 3" in said.err
