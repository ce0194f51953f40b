"""Rows as labelled points, quality against size and speed: the panels of report.png, and of report.html's pictures.

report.png has size (megabytes and parameters) and speed (tokens per second in all, milliseconds per further token). The
panels of parameters and milliseconds also hold a small point for each shape that was tried when a model was pruned.
Without quality there is one panel, speed against size. Colours are Okabe and Ito's, which colour-blind readers can tell
apart; a marker's shape says the runtime as well. Labels are moved until none lies on another, on a point or on a line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from bench.report.row import FIGURES, ReportRow

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = {"checkpoint": ("o", "torch"), "quantized": ("s", "torch, de-quantized"), "bundle": ("D", "onnx bundle")}
PEER = ("^", "peer")
INK, FAINT = "#333333", "#DDDDDD"
Candidates = Mapping[str, Sequence[Mapping[str, Any]]]
Point = tuple[float, float]
# Where a label may stand about its point, in points: right, left, above, below, then further away.
_OFFSETS = [
    (dx * reach, dy * reach, align)
    for reach in (1.0, 1.8, 2.8, 4.0)
    for dx, dy, align in ((9, 0, "left"), (-9, 0, "right"), (0, 11, "center"), (0, -11, "center"))
] + [
    (dx * reach, dy * reach, align)
    for reach in (1.0, 2.0, 3.0)
    for dx, align in ((9, "left"), (-9, "right"))
    for dy in (11, -11)
]


@dataclass(frozen=True)
class Axis:
    """One measure of a row: its key and title, whether its scale is logarithmic, what one of it is.

    What is smaller than `least` stands there.
    """

    key: str
    title: str
    log: bool = False
    unit: float = 1.0
    least: float = 0.0

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return FIGURES[self.key].better == "higher"

    def has(self, row: ReportRow) -> bool:
        """Whether the row has this measure; those of another tokenizer have no perplexity."""
        return getattr(row, self.key) is not None

    def of(self, row: ReportRow) -> float:
        """Where a row stands on this axis."""
        return max(float(getattr(row, self.key)) / self.unit, self.least)


SIZE = Axis("file_mb", "all files, MB  (left is smaller)", log=True)
SPEED = Axis("tokens_per_s", "new tokens per second  (right is faster)", log=True)
QUALITY = Axis("bits_per_byte", "bits per byte on held-out conversations  (lower is better)")
LOSS = Axis("kl", "KL from the first row, nats a token  (lower is better)", log=True, least=1e-7)
RATE = Axis("tokens_per_s", "new tokens per second  (higher is faster)")
PARAMETERS = Axis("parameters", "parameters, millions  (left is smaller)", log=True, unit=1e6)
STEP = Axis("tpot_ms_p50", "ms per token  (left is faster)", log=True)
PERPLEXITY = Axis("perplexity", "perplexity on held-out conversations  (lower is better)")
_OF_CANDIDATE = {"tpot_ms_p50": "ms_per_token"}  # what a candidate calls what a row has under the axis's key


def draw_report(rows: Sequence[ReportRow], path: Path, candidates: Candidates | None = None) -> None:
    """Write the picture of `rows` as a PNG."""
    build_figure(rows, candidates).savefig(path, format="png", metadata={"Software": None})


def build_figure(rows: Sequence[ReportRow], candidates: Candidates | None = None) -> Figure:
    """The picture of `rows`; those that were lost are left out. `candidates` are shapes by the row they led to."""
    alive = [row for row in rows if row.error is None]
    scored = [row for row in alive if row.bits_per_byte is not None]
    axes = [(SIZE, RATE)]
    if scored:  # perplexity where there are shapes that were tried, since that is what they were chosen by
        axes = [(SIZE, QUALITY), (SPEED, QUALITY), (PARAMETERS, PERPLEXITY), (STEP, PERPLEXITY)]
    across, down = min(2, len(axes)), max(1, len(axes) // 2)
    figure = new_figure(6.2 * across, 5.0 * down, dpi=150)
    panels = []
    for index, (x, y) in enumerate(axes):
        panel = Panel(figure.add_subplot(down, across, index + 1), x, y, rows)
        tried = _tried(candidates or {}, x, scored[0].perplexity or 0.0) if y is PERPLEXITY else []
        panel.draw([row for row in scored or alive if x.has(row) and y.has(row)], tried)
        panels.append(panel)
    _explain_markers(figure, alive, bool(scored and candidates))
    figure.canvas.draw()  # the layout is known only after a first drawing
    for panel in panels:
        panel.label()
    return figure


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure, inches, whose texts can be measured."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def _tried(candidates: Candidates, across: Axis, uncut: float) -> list[tuple[str, Point, bool]]:
    """The shapes that have the measure across: their row, where they stand, whether they were chosen.

    They were scored on other tokens than the rows: they stand as far above the first row, whose perplexity is `uncut`,
    as they did above the uncut model.
    """
    key = _OF_CANDIDATE.get(across.key, across.key)
    return [
        (name, (float(shape[key]) / across.unit, uncut * float(shape["perplexity_ratio"])), bool(shape["chosen"]))
        for name, shapes in candidates.items()
        for shape in shapes
        if shape.get(key) is not None and shape.get("perplexity_ratio") is not None
    ]


def _explain_markers(figure: Figure, rows: Sequence[ReportRow], tried: bool) -> None:
    shown = dict.fromkeys(marker for kind, marker in MARKERS.items() if kind in {row.kind for row in rows})
    shown |= dict.fromkeys(PEER for row in rows if row.kind not in MARKERS)
    handles = [Line2D([], [], marker=mark, color=INK, linestyle="none", label=label) for mark, label in shown]
    if tried:
        label = "shape that was tried; ringed: chosen"
        handles.append(Line2D([], [], marker=".", color=INK, linestyle="none", alpha=0.6, label=label))
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, labelcolor=INK)


class Panel:
    """A pair of axes with a labelled point a row; colours are those of the rows' places in `all_rows`."""

    def __init__(self, axes: Axes, x: Axis, y: Axis, all_rows: Sequence[ReportRow]) -> None:
        self.axes, self.x, self.y = axes, x, y
        self.colours = colours(all_rows)
        self.points: dict[str, Point] = {}
        tidy(axes)
        axes.set_xlabel(x.title, color=INK)
        axes.set_ylabel(y.title, color=INK)

    def draw(self, rows: Sequence[ReportRow], tried: Sequence[tuple[str, Point, bool]] = ()) -> None:
        """A point a row, the shapes that were `tried` as small ones behind them."""
        for name, point, chosen in tried:
            self._mark(name, point, ".", 8, INK if chosen else "none", zorder=2, alpha=0.6)
        for row in rows:
            self.points[row.name] = point = (self.x.of(row), self.y.of(row))
            told = [f"{axis.title.split('  ')[0]} {at:.4g}" for axis, at in zip((self.x, self.y), point, strict=True)]
            tip = f"tip:{row.name}: {', '.join(told)}"
            self._mark(row.name, point, MARKERS.get(row.kind, PEER)[0], 9, "white", zorder=3, gid=tip)
        everything = [*self.points.values(), *(point for _, point, _ in tried)]
        _scale(self.axes, "x", self.x, [x for x, _ in everything])
        _scale(self.axes, "y", self.y, [y for _, y in everything])

    def _mark(self, name: str, point: Point, marker: str, size: int, edge: str, **style: Any) -> None:
        style |= {"linestyle": "none", "markersize": size, "markeredgecolor": edge, "markeredgewidth": 1.0}
        self.axes.plot(*point, marker=marker, color=self.colours[name], **style)

    def label(self, line: Sequence[Point] = ()) -> None:
        """Write each row's name where it touches neither a point, nor `line`, nor another label, nor the border."""
        to_pixels = self.axes.transData.transform
        taken = [Bbox.from_bounds(x - 11, y - 11, 22, 22) for x, y in map(to_pixels, self.points.values())]
        for before, after in pairwise(map(to_pixels, line)):
            steps = np.linspace(before, after, 2 + int(np.hypot(*(after - before)) // 4))
            taken += [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in steps]
        for name, point in self.points.items():
            dark = [0.75 * part for part in colors.to_rgb(self.colours[name])]  # pale text is hard to read
            style = {"fontsize": 9.5, "fontweight": "bold", "va": "center", "zorder": 4}
            text = self.axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", color=dark, **style)
            text.set_in_layout(False)  # or the next drawing moves the axes that the label was placed in
            best = min(_OFFSETS, key=lambda offset: self._overlap(text, offset, taken))
            self._overlap(text, best, taken)
            taken.append(text.get_window_extent())

    def _overlap(self, text: Annotation, offset: tuple[float, float, str], taken: Sequence[Bbox]) -> float:
        """Move the label by `offset`; the area (pixels) on which it lies over something or outside the frame."""
        text.set_position(offset[:2])
        text.set_ha(offset[2])
        box, frame = text.get_window_extent(), self.axes.get_window_extent()
        hits = (Bbox.intersection(box, other) for other in taken)
        return _area(box) - _area(Bbox.intersection(box, frame)) + sum(map(_area, hits))


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else float(box.width * box.height)


def colours(rows: Sequence[ReportRow]) -> dict[str, str]:
    """The colour of each row, by its place."""
    return {row.name: COLOURS[index % len(COLOURS)] for index, row in enumerate(rows)}


def front(points: Sequence[Point], higher_x: bool = False, higher_y: bool = False) -> list[int]:
    """The Pareto front: numbers of the points that no other equals or beats in both and beats in one, best x first.

    Lower is better unless `higher_x` or `higher_y` says otherwise; of equal points all stand on the front.
    """
    turned = [(-x if higher_x else x, -y if higher_y else y) for x, y in points]
    kept: list[int] = []
    for number in sorted(range(len(points)), key=lambda number: turned[number]):
        x, y = turned[number]
        if not kept or y < turned[kept[-1]][1] or (x, y) == turned[kept[-1]]:
            kept.append(number)
    return kept


def tidy(axes: Axes) -> None:
    """A light grid, and no frame above and on the right."""
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, length=0)


def _scale(axes: Axes, side: str, axis: Axis, values: Sequence[float]) -> None:
    """Limits with room for labels, and a handful of plain ticks, whatever the spread."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    direction = axes.xaxis if side == "x" else axes.yaxis
    if axis.log and low > 0:
        margin = max((high / low) ** 0.22, 2.4 / (high / low) ** 0.5)  # two ticks of 1, 2, 5 at least
        low, high = low / margin, high * margin
        axes.set(**{f"{side}scale": "log"})
        direction.set_ticks(_round_ticks(low, high), minor=False)
        direction.set_ticks([], minor=True)
    else:
        # At least a tenth of the value is shown, so that a difference of nothing does not look like a cliff.
        middle, span = (low + high) / 2, max(high - low, 0.1 * abs(high), 1e-6)
        low, high = middle - 0.68 * span, middle + 0.68 * span
    axes.set(**{f"{side}lim": (low, high)})
    direction.set_major_formatter(FuncFormatter(lambda value, index: f"{value:g}"))


def _round_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the limits; with 2 and 5 times them where they are few."""
    ticks = [unit * 10.0**power for power in range(-8, 7) for unit in (1, 2, 5) if low <= unit * 10.0**power <= high]
    decades = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    return decades if len(decades) >= 4 else ticks
