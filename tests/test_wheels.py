"""Which wheels a machine without a registry needs: the project's own list, at the tested versions, without torch."""

import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from bench.gpu.machine import ROOT
from bench.gpu.wheels import first_requirements, needed, pins, requirements_of


def test_the_first_ones_are_those_of_the_extra_gpu_and_torch_is_not_fetched() -> None:
    """A resolver fetched torch with all of CUDA, gigabytes that the machine has."""
    first = {each.name for each in first_requirements(ROOT / "pyproject.toml")}
    assert {"onnxruntime-gpu", "transformers", "datasets", "tokenizers", "numpy", "pytest", "torch"} <= first
    assert not {"chitchat-compress", "onnxruntime"} & first
    kept = {each.name for each in needed(first_requirements(ROOT / "pyproject.toml"), "3.12")}
    assert first - kept == {"torch"}


def test_versions_are_the_tested_ones(tmp_path: Path) -> None:
    """A check on other versions than the suite's says nothing of ours."""
    (tmp_path / "constraints.txt").write_text("# tested\nonnx-ir==1.1.0\ntypes_Thing==2 # a word\n\n")
    assert pins(tmp_path / "constraints.txt") == {"onnx-ir": "1.1.0", "types-thing": "2"}
    assert {"onnxruntime-gpu", "transformers", "pytest"} <= set(pins(ROOT / "constraints.txt"))


def test_markers_are_those_of_the_machine_and_extras_are_followed() -> None:
    """What Windows needs was carried, and what fsspec[http] needs was not."""
    lines = ["a; sys_platform == 'win32'", "b; python_version < '3.12'", "c; extra == 'http'", "d>=1", "torch>=2"]
    asked = [Requirement(line) for line in lines]
    assert [each.name for each in needed(asked, "3.12")] == ["d"]
    assert [each.name for each in needed(asked, "3.11", {"http"})] == ["b", "c", "d"]


def test_a_wheel_says_what_it_needs(tmp_path: Path) -> None:
    """The requirements of requirements come from the wheels themselves."""
    path = tmp_path / "some_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_thing-1.0.dist-info/METADATA", "Name: Some_Thing\nRequires-Dist: x[y]>=2\n\nText: no\n")
    name, asked = requirements_of(path)
    assert (name, [str(each) for each in asked]) == ("some-thing", ["x[y]>=2"])
