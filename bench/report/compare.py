"""`compress bench --compare A.json B.json`: what changed from one report to the other, beyond noise.

Rows are matched by name. Speed is compared as the ratio to the first row of the same run, since a machine is slower on
some days, and both rows of a run had the same day; the plain times stand beside it. A change counts when its
interval of 95 % does not hold "no change": over rounds for speed (both runs resampled), over conversations, paired, for
quality where both reports scored the same ones. Size and memory have no noise to speak of: 1 % and 5 % count.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.evaluate.bootstrap import percentiles
from bench.evaluate.measure import Quality
from bench.report.document import FORMAT
from bench.run.timing import Floats, medians, round_ratios, total_ms
from chitchat.errors import BadInput

SIZE_COUNTS, MEMORY_COUNTS = 0.01, 0.05
_QUALITY = ("perplexity_ratio", "distinct_2_ratio")


@dataclass(frozen=True)
class Change:
    """One figure of one row, after over before; `beyond_noise` says whether it counts."""

    row: str
    figure: str
    ratio: float
    interval: list[float] | None
    beyond_noise: bool

    def line(self) -> str:
        """`bundle-w8: speed against teacher x 1.12 (1.08 to 1.15)`."""
        between = "" if self.interval is None else f" ({self.interval[0]:.3f} to {self.interval[1]:.3f})"
        return f"{self.row}: {self.figure} x {self.ratio:.3f}{between}"


@dataclass(frozen=True)
class Comparison:
    """Everything that both reports have; `notes` are what cannot be compared, and what differed around them."""

    changes: list[Change]
    notes: list[str]

    def lines(self) -> list[str]:
        """For the terminal: what changed, then what did not, then what to know."""
        counted = [change.line() for change in self.changes if change.beyond_noise]
        within = [change.line() for change in self.changes if not change.beyond_noise]
        return [
            "beyond noise:" if counted else "nothing changed beyond noise",
            *(f"  {line}" for line in counted),
            *(["within noise:", *(f"  {line}" for line in within)] if within else []),
            *self.notes,
        ]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"changes": [vars(change) for change in self.changes], "notes": self.notes}


def compare(before: Path, after: Path) -> Comparison:
    """Compare two report.json. Raises `BadInput` for what is no report, or has no row in common with the other."""
    old, new = read(before), read(after)
    names = [row["name"] for row in old["rows"] if row["name"] in new["samples"] and not row["error"]]
    names = [name for name in names if old["samples"].get(name) and new["samples"].get(name)]
    if not names:
        raise BadInput(f"--compare {before} {after}: no row of the same name in both; name the models alike")
    changes = []
    for name in names:
        changes += [*_speed(name, old, new), *_sizes(name, old, new), *_quality(name, old, new)]
    return Comparison(changes, _notes(old, new, names))


def read(path: Path) -> dict[str, Any]:
    """A report.json, or the one in a folder. Raises `BadInput` for anything else."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"--compare {path}: cannot be read ({error}); give a report.json of compress bench") from error
    if not isinstance(report, dict) or not {"rows", "samples", "settings"} <= report.keys():
        raise BadInput(f"--compare {path}: is no report of compress bench; give its report.json")
    if report.get("format") != FORMAT:
        raise BadInput(
            f"--compare {path}: has format {report.get('format')}, this version reads {FORMAT}; run it again"
        )
    return report


def _speed(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The plain speed, which the day is in, and the one against the first row, which counts."""
    samples = [report["samples"][name] for report in (old, new)]
    before, after = (np.array([total_ms(sample) for sample in run]) for run in samples)
    plain = _between(1 / before, 1 / after)
    yardstick = old["rows"][0]["name"]
    if name == yardstick or yardstick != new["rows"][0]["name"]:
        return [Change(name, "speed", *plain, beyond_noise=False)]
    against = [round_ratios(report["samples"][yardstick], run) for report, run in zip((old, new), samples, strict=True)]
    ratio, interval = _between(*against)
    counted = Change(name, f"speed against {yardstick}", ratio, interval, _beyond_noise(interval))
    return [Change(name, "speed", *plain, beyond_noise=False), counted]


def _beyond_noise(interval: Sequence[float] | None) -> bool:
    """Whether the interval of a ratio leaves "no change" out."""
    return interval is not None and not interval[0] <= 1 <= interval[1]


def _between(before: Floats, after: Floats) -> tuple[float, list[float] | None]:
    """The ratio of two medians and its interval, both resampled over their rounds."""
    ratio = float(np.median(after) / np.median(before))
    if min(len(before), len(after)) < 2:
        return ratio, None
    random = np.random.default_rng(0)
    return ratio, percentiles(medians(after, random) / medians(before, random))


def _sizes(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    rows = [next(row for row in report["rows"] if row["name"] == name) for report in (old, new)]
    found = []
    for figure, key, counts in (("file size", "file_mb", SIZE_COUNTS), ("peak memory", "peak_rss_mb", MEMORY_COUNTS)):
        before, after = (row.get(key) for row in rows)
        if before and after:
            ratio = after / before
            found.append(Change(name, figure, ratio, None, beyond_noise=abs(ratio - 1) > counts))
    return found


def _quality(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Ratios of quality, conversation by conversation; none where the two runs scored other conversations."""
    records = [report.get("quality", {}).get(name) for report in (old, new)]
    if not all(records) or not _same_work(old, new):
        return []
    before, after = (Quality.from_json(record) for record in records)
    figures = after.figures(before)
    found = []
    for key in _QUALITY:
        interval = figures.get(f"{key}_interval")
        if figures.get(key) is not None:
            figure = key.removesuffix("_ratio").replace("_", "-")
            found.append(Change(name, figure, figures[key], interval, _beyond_noise(interval)))
    return found


def _same_work(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether both runs scored the same tokens of the same conversations."""
    keys = ("data", "context", "max_eval_tokens")
    return all(old["settings"].get(key) == new["settings"].get(key) for key in keys) and bool(old["settings"]["data"])


def _notes(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    notes = []
    for report, other, where in ((old, new, "first"), (new, old, "second")):
        others = {row["name"] for row in other["rows"]}
        only = [row["name"] for row in report["rows"] if row["name"] not in others]
        lost = [row["name"] for row in report["rows"] if row["error"] and row["name"] not in names]
        if only:
            notes.append(f"only in the {where} report: {', '.join(only)}")
        if lost:
            notes.append(f"lost in the {where} report: {', '.join(lost)}")
    settings = [key for key in sorted(old["settings"]) if old["settings"][key] != new["settings"].get(key)]
    if settings:
        notes.append(f"the work differs: {', '.join(settings)}")
    for key in ("cpu", "cores", "threads", "governor"):
        before, after = (report["environment"].get(key) for report in (old, new))
        if before != after:
            notes.append(f"another machine: {key} {before}, then {after}")
    versions = [report["environment"].get("versions", {}) for report in (old, new)]
    moved = [name for name in sorted(versions[0]) if versions[0][name] != versions[1].get(name)]
    notes += [f"{name} {versions[0][name]}, then {versions[1].get(name, 'none')}" for name in moved]
    if not _same_work(old, new):
        notes.append("quality is not compared: the two runs scored other conversations, or none")
    return notes
