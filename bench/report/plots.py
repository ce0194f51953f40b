"""The picture of a bench run: quality against size and against speed, a labelled point a model.

Size is megabytes and parameters; speed is tokens per second in all and milliseconds per further token. The panels of
parameters and milliseconds also hold a small point for each shape that was tried when a model was pruned. Without
quality there is one panel, speed against size. Colours are Okabe and Ito's, which colour-blind readers can
tell apart; a marker's shape says the runtime as well. Labels are moved until none lies on another or on a point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = {"checkpoint": "o", "quantized": "s", "bundle": "D"}  # and _PEER for everybody else
MEANING = {"checkpoint": "torch", "quantized": "torch, de-quantized", "bundle": "onnx bundle"}
_PEER = "^"
Row = Mapping[str, Any]
Candidates = Mapping[str, Sequence[Mapping[str, Any]]]
_Point = tuple[str, float, float, bool]  # name of the row, x, y, chosen
_INK, _FAINT = "#333333", "#DDDDDD"
# Where a label may stand about its point, in points: right, left, above, below, then further away.
_PLACES = [
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

    What is smaller than `least` stands there; `higher` says whether more is better.
    """

    key: str
    title: str
    log: bool = False
    unit: float = 1.0
    least: float = 0.0
    higher: bool = False

    def of(self, row: Mapping[str, Any]) -> float:
        """Where a row stands on this axis."""
        return max(float(row[self.key]) / self.unit, self.least)


SIZE = Axis("file_mb", "all files, MB  (left is smaller)", log=True)
SPEED = Axis("tokens_per_s", "new tokens per second  (right is faster)", log=True, higher=True)
QUALITY = Axis("bits_per_byte", "bits per byte on held-out conversations  (lower is better)")
LOSS = Axis("kl", "KL from the first row, nats a token  (lower is better)", log=True, least=1e-7)
RATE = Axis("tokens_per_s", "new tokens per second  (higher is faster)", higher=True)
PARAMETERS = Axis("parameters", "parameters, millions  (left is smaller)", log=True, unit=1e6)
STEP = Axis("tpot_ms_p50", "ms per token  (left is faster)", log=True)
PERPLEXITY = Axis("perplexity", "perplexity on held-out conversations  (lower is better)")
# What a candidate calls what a row has under the axis's key.
_OF_CANDIDATE = {"tpot_ms_p50": "ms_per_token"}


def draw_report(rows: Sequence[Row], path: Path, candidates: Candidates | None = None) -> None:
    """Write the picture of `rows` (see bench.report.document) as a PNG."""
    build_figure(rows, candidates).savefig(path, format="png", metadata={"Software": None})


def build_figure(rows: Sequence[Row], candidates: Candidates | None = None) -> Figure:
    """The picture of `rows`; those that were lost are left out. `candidates` are shapes by the row they led to."""
    alive = [row for row in rows if row["error"] is None]
    scored = [row for row in alive if row[QUALITY.key] is not None]
    # Perplexity where there are shapes that were tried, since that is what they were chosen by.
    panels = [(SIZE, RATE)]
    if scored:
        panels = [(SIZE, QUALITY), (SPEED, QUALITY), (PARAMETERS, PERPLEXITY), (STEP, PERPLEXITY)]
    lines = max(1, len(panels) // 2)
    wide = min(2, len(panels))
    figure = Figure(figsize=(6.2 * wide, 5.0 * lines), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    colours = {row["name"]: COLOURS[place % len(COLOURS)] for place, row in enumerate(rows)}
    for place, (across, up) in enumerate(panels):
        axes = figure.add_subplot(lines, wide, place + 1)
        tried = _tried(candidates or {}, across, scored[0]["perplexity"]) if up is PERPLEXITY else []
        draw_panel(axes, across, up, _having(scored or alive, across, up), colours, tried)
    _explain_markers(figure, [row["kind"] for row in alive], bool(scored and candidates))
    figure.canvas.draw()  # the layout is known only after a first drawing
    for axes, (across, up) in zip(figure.axes, panels, strict=True):
        label_points(axes, across, up, _having(scored or alive, across, up), colours)
    return figure


def _having(rows: Sequence[Row], *axes: Axis) -> list[Row]:
    """The rows that have all measures; those of another tokenizer have no perplexity."""
    return [row for row in rows if all(row[axis.key] is not None for axis in axes)]


def _tried(candidates: Candidates, across: Axis, uncut: float) -> list[_Point]:
    """The shapes that have the measure across, as points: their row, where they stand, whether they were chosen.

    They were scored on other tokens than the rows: they stand as far above the first row, whose perplexity is `uncut`,
    as they did above the uncut model.
    """
    key = _OF_CANDIDATE.get(across.key, across.key)
    return [
        (name, float(shape[key]) / across.unit, uncut * float(shape["perplexity_ratio"]), bool(shape["chosen"]))
        for name, shapes in candidates.items()
        for shape in shapes
        if shape.get(key) is not None and shape.get("perplexity_ratio") is not None
    ]


def _explain_markers(figure: Figure, kinds: Sequence[str], tried: bool) -> None:
    shown = [(MARKERS[kind], MEANING[kind]) for kind in MARKERS if kind in kinds]
    if any(kind not in MARKERS for kind in kinds):
        shown.append((_PEER, "peer"))
    handles = [Line2D([], [], marker=mark, color=_INK, linestyle="none", label=label) for mark, label in shown]
    if tried:
        small = {"color": _INK, "linestyle": "none", "marker": ".", "alpha": 0.6}
        handles.append(Line2D([], [], label="shape that was tried; ringed: chosen", **small))
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, labelcolor=_INK)


def draw_panel(
    axes: Axes, across: Axis, up: Axis, rows: Sequence[Row], colours: dict[str, str], tried: Sequence[_Point]
) -> None:
    """A point a row, the shapes that were `tried` as small ones behind them, and axes with a handful of ticks."""
    for name, x, y, chosen in tried:
        ring = _INK if chosen else "none"
        axes.plot(x, y, ".", color=colours[name], alpha=0.6, markersize=8, markeredgecolor=ring, zorder=2)
    for row in rows:
        axes.plot(
            across.of(row),
            up.of(row),
            marker=MARKERS.get(row["kind"], _PEER),
            color=colours[row["name"]],
            markersize=9,
            markeredgecolor="white",
            markeredgewidth=1.0,
            linestyle="none",
            zorder=3,
        )
    _scale(axes, "x", across, [*map(across.of, rows), *(x for _, x, _, _ in tried)])
    _scale(axes, "y", up, [*map(up.of, rows), *(y for _, _, y, _ in tried)])
    axes.set_xlabel(across.title, color=_INK)
    axes.set_ylabel(up.title, color=_INK)
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, length=0)


def _scale(axes: Axes, side: str, axis: Axis, values: Sequence[float]) -> None:
    """Limits with room for labels, and a handful of plain ticks, whatever the spread."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if axis.log and low > 0:
        axes.set(**{f"{side}scale": "log"})
        room = max((high / low) ** 0.22, 2.2 / (high / low) ** 0.5)
        low, high = low / room, high * room
    else:
        # At least a tenth of the value is shown, so that a difference of nothing does not look like a cliff.
        middle, span = (low + high) / 2, max(high - low, 0.1 * abs(high), 1e-6)
        low, high = middle - 0.68 * span, middle + 0.68 * span
    axes.set(**{f"{side}lim": (low, high)})
    direction = axes.xaxis if side == "x" else axes.yaxis
    if axis.log:
        direction.set_major_locator(_RoundTicks(low, high))
        direction.set_minor_locator(NullLocator())
    direction.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))


class _RoundTicks(MaxNLocator):
    """1, 2, 5 times powers of ten within the limits: logarithmic axes of less than a decade get ticks too."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        steps = [unit * 10.0**power for power in range(-8, 7) for unit in (1, 1.5, 2, 3, 4, 5, 7)]
        inside = [step for step in steps if low <= step <= high]
        coarse = [step for step in inside if f"{step:e}"[0] in "125" and f"{step:.1e}"[2] == "0"]
        decades = [step for step in coarse if f"{step:e}"[0] == "1"]
        self._ticks = decades if len(decades) >= 4 else coarse if len(coarse) >= 3 else inside

    def tick_values(self, vmin: float, vmax: float) -> Any:
        return [tick for tick in self._ticks if min(vmin, vmax) <= tick <= max(vmin, vmax)]

    def __call__(self) -> Any:
        return self.tick_values(*self.axis.get_view_interval())


def label_points(axes: Axes, across: Axis, up: Axis, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Write each row's name where it touches neither a point, nor another label, nor the border."""
    frame = axes.get_window_extent()
    marks = [axes.transData.transform((across.of(row), up.of(row))) for row in rows]
    taken = [Bbox.from_bounds(x - 11, y - 11, 22, 22) for x, y in marks]
    for row in rows:
        text = axes.annotate(
            row["name"],
            (across.of(row), up.of(row)),
            xytext=(0, 0),
            textcoords="offset points",
            color=[0.75 * part for part in colors.to_rgb(colours[row["name"]])],  # darker: pale text is hard to read
            fontsize=9.5,
            fontweight="bold",
            va="center",
            zorder=4,
        )
        text.set_in_layout(False)  # or the next drawing moves the axes that the label was placed in
        best, least = _PLACES[0], float("inf")
        for place in _PLACES:
            overlap = _try(text, place, frame, taken)
            if overlap < least:
                best, least = place, overlap
            if overlap == 0:
                break
        _try(text, best, frame, taken)
        taken.append(text.get_window_extent())


def _try(text: Any, place: tuple[float, float, str], frame: Bbox, taken: Sequence[Bbox]) -> float:
    """Move the label to `place`; give the area (pixels) on which it lies over something or outside the frame."""
    dx, dy, align = place
    text.set_position((dx, dy))
    text.set_ha(align)
    box = text.get_window_extent()
    inside = Bbox.intersection(box, frame)
    outside = box.width * box.height - (inside.width * inside.height if inside else 0.0)
    hits = (Bbox.intersection(box, other) for other in taken)
    return float(max(outside, 0.0) + sum(hit.width * hit.height for hit in hits if hit))
