"""Mutation testing: mutmut changes the arithmetic in a seeded sample of places, and the fast tests must notice.

    python tests/mutation/run.py [GROUP...] [--mutants N] [--seed S] [--out REPORT.json] [--again REPORT.json]

Each group of `GROUPS` is a list of modules and the test files that hold them. A copy of the repository gets mutmut's
configuration for one group; mutmut runs the tests once to learn which reach which function, then forks a process per
mutant and runs those until one fails. Texts of errors and `assert` lines are not mutated. Exit code 1 when fewer than
`--least` of the mutants are killed. mutmut is in the extra `mutation` (`make mutants`).
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("serve", "chitchat", "compress", "export", "bench", "chitchat_compress")
# group: modules; test files without `test_` and `.py`; a word in the names of tests that take too long for it
GROUPS: dict[str, tuple[list[str], list[str], str]] = {
    "serve": (
        [
            *("serve/engine.py", "serve/cache.py", "serve/sampler.py", "serve/scheduler.py", "serve/reply.py"),
            *("serve/text.py", "serve/history.py", "serve/graph_selection.py", "serve/manifest.py", "serve/bundle.py"),
            *("serve/dialogue.py", "serve/digest.py", "serve/geometry.py", "serve/session.py", "serve/worker.py"),
        ],
        [
            *("engine", "engine_oracle", "cache", "sampler", "scheduler", "reply", "text", "history", "server"),
            *("graph_selection", "bundle", "digest", "geometry", "dialogue"),
        ],
        "processor_alone",
    ),
    "parity": (["export/parity.py"], ["parity"], ""),
    "calibrate": (
        ["compress/calibrate/*.py"],
        ["calibration", "moments", "ranges", "refit", "sequential", "elimination"],
        "",
    ),
    "prune": (
        [
            *("compress/prune/elimination.py", "compress/prune/importance.py", "compress/prune/refit.py"),
            *("compress/prune/slicing.py", "compress/prune/layers.py", "compress/prune/shape.py"),
            *("compress/prune/plan.py", "compress/prune/vocabulary.py"),
        ],
        ["elimination", "importance", "refit", "slicing", "layers", "shape", "plan", "vocabulary"],
        "",
    ),
    "distill": (
        ["compress/distill/objective.py", "compress/distill/budget.py", "compress/distill/samples.py"],
        ["distill_arithmetic", "budget", "samples", "token_divergence"],
        "",
    ),
    "quantize": (
        [
            *("compress/quantize/gptq.py", "compress/quantize/sequential.py", "compress/quantize/smoothing.py"),
            *("compress/quantize/scales.py", "compress/quantize/rounding.py", "compress/quantize/blockwise.py"),
            *("compress/quantize/channelwise.py", "compress/quantize/allocation.py", "compress/quantize/methods.py"),
        ],
        [
            *("gptq", "sequential", "smoothing", "scales", "blockwise", "channelwise", "allocation", "moments"),
            *("rounding", "methods"),
        ],
        "",
    ),
}
CONFIG = """
[tool.mutmut]
source_paths = {packages}
only_mutate = {modules}
do_not_mutate_patterns = ['^\\s*(raise|assert)\\b']
also_copy = ["README.md", "LICENSE"]
pytest_add_cli_args = ["-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"{selected}]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
timeout_constant = 20.0
timeout_multiplier = 5.0
"""
# Run in the copy: the names of all mutants by module, as mutmut gives them.
LIST = """
import json, sys
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name
from pathlib import Path
found = {}
for module in sys.argv[1:]:
    names = mutate_file_contents(module, Path(module).read_text(encoding="utf-8")).mutant_names
    found[module] = [get_mutant_name(Path(module), name) for name in names]
print(json.dumps(found))
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CI": "1", "PYTHONHASHSEED": "0", "CHITCHAT_SHARED": "/nonexistent"}


def main() -> int:
    """Run the groups and print what survived; the share of killed mutants decides the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)} (default: all)")
    parser.add_argument("--mutants", type=int, default=60, help="mutants a group (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: %(default)s)")
    parser.add_argument("--again", type=Path, help="take the mutants that survived in this report, and no others")
    parser.add_argument("--least", type=float, default=0.85, help="share to be killed (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write every mutant's result and diff as JSON")
    options = parser.parse_args()
    results: dict[str, str] = {}
    again = json.loads(options.again.read_text(encoding="utf-8")) if options.again else None
    wanted = None if again is None else {name for name in again if again[name] not in ("killed", "timeout")}
    for group in options.groups or GROUPS:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            copy = prepare(Path(folder) / "repository", group)
            names = sample(copy, group, options.mutants, options.seed, wanted)
            results |= run(copy, names)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return report(results, options.least)


def modules_of(copy: Path, group: str) -> list[str]:
    """The modules of a group, as paths in the repository."""
    return sorted({str(path.relative_to(copy)) for pattern in GROUPS[group][0] for path in copy.glob(pattern)})


def prepare(copy: Path, group: str) -> Path:
    """Copy the tracked and new files of the repository, with mutmut's configuration for the group."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    too_long = GROUPS[group][2]
    files = [f"tests/test_{name}.py" for name in GROUPS[group][1]]
    config = CONFIG.format(
        packages=json.dumps(PACKAGES),
        modules=json.dumps(modules_of(copy, group)),
        tests=json.dumps([file for file in files if (copy / file).is_file()]),
        selected=f', "-k", "not {too_long}"' if too_long else "",
    )
    with (copy / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(config)
    return copy


def sample(copy: Path, group: str, count: int, seed: int, wanted: set[str] | None) -> list[str]:
    """About `count` mutants: of each module its share, and one at least; or, of the group, those that are `wanted`."""
    command = [sys.executable, "-c", LIST, *modules_of(copy, group)]
    listed = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True).stdout
    by_module: dict[str, list[str]] = json.loads(listed.splitlines()[-1])
    if wanted is not None:
        return [name for names in by_module.values() for name in names if name in wanted]
    total = sum(map(len, by_module.values()))
    print(f"{group}: {min(count, total)} of {total} mutants", flush=True)
    draw = random.Random(seed)
    chosen = []
    for names in by_module.values():
        share = max(1, round(count * len(names) / total)) if names else 0
        chosen += draw.sample(names, min(share, len(names)))
    return chosen


def run(copy: Path, names: list[str]) -> dict[str, str]:
    """Run mutants; returns what became of each: "killed", "timeout", or what mutmut says with the diff."""
    environment = {**os.environ, **ENVIRONMENT}
    mutmut = [sys.executable, "-m", "mutmut"]
    log = copy / "mutmut.log"
    with log.open("w") as file:
        done = subprocess.run([*mutmut, "run", "--max-children", "1", *names], cwd=copy, env=environment, stdout=file)
    if done.returncode:
        print(log.read_text(encoding="utf-8").replace("\r", "\n")[-3000:], flush=True)
        raise SystemExit("mutmut failed: do the unchanged tests pass?")
    listed = subprocess.run([*mutmut, "results", "--all", "true"], cwd=copy, capture_output=True, text=True, check=True)
    status = dict(line.strip().split(": ") for line in listed.stdout.splitlines() if ": " in line)
    results = {}
    for name in names:
        results[name] = status[name]
        if status[name] not in ("killed", "timeout"):
            shown = subprocess.run([*mutmut, "show", name], cwd=copy, capture_output=True, text=True, check=True)
            results[name] += "\n" + shown.stdout
            print(f"{name}: {results[name]}", flush=True)
    return results


def report(results: dict[str, str], least: float) -> int:
    """Print the table of modules; returns the exit code."""
    found: dict[str, Counter[str]] = {}
    for name, result in results.items():
        found.setdefault(name.rpartition(".")[0], Counter())[result.splitlines()[0]] += 1
    for module, counts in sorted(found.items()):
        print(f"{module:32} {dict(counts)}")
    killed = sum(counts["killed"] + counts["timeout"] for counts in found.values())
    print(f"{killed} of {len(results)} mutants killed: {killed / max(1, len(results)):.0%}")
    return 0 if killed >= least * len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
