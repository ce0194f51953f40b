"""The pictures of report.html: quality against speed and size with the Pareto front, distributions, sweeps. As SVG.

Same colours and markers as `bench.report.plots`. Text stays text, so that it can be searched and read aloud; every
point has its figures as a tooltip.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.report.pareto import front
from bench.report.plots import COLOURS, MARKERS, QUALITY, Axis, draw_panel, label_points

Row = Mapping[str, Any]
_INK, _FAINT, _FRONT = "#333333", "#DDDDDD", "#999999"
_STYLES = ("-", "--", ":", "-.")  # where the colours are used up
_SHOWN = 400  # points of a distribution that are drawn, evenly taken


def tradeoff(rows: Sequence[Row], across: Axis, up: Axis = QUALITY) -> str | None:
    """Each row as a point, and the front that no row beats; None where fewer than two rows have both measures."""
    shown = [row for row in rows if row.get(across.key) and row.get(up.key) is not None]
    if len(shown) < 2:
        return None
    figure, axes = _canvas(6.4, 4.6)
    colours = {row["name"]: _colour(rows, row) for row in shown}
    draw_panel(axes, across, up, shown, colours, [])
    points = [(across.of(row), up.of(row)) for row in shown]
    for row, (x, y), point in zip(shown, points, axes.lines, strict=True):
        told = f"{across.title.split('  ')[0]} {x:.4g}, {up.title.split('  ')[0]} {y:.4g}"
        point.set_gid(f"tip:{row['name']}: {told}")
    best = [points[number] for number in front(points, higher_x=across.higher, higher_y=up.higher)]
    axes.plot(*zip(*best, strict=True), color=_FRONT, linewidth=1.2, linestyle="--", zorder=1, label="Pareto front")
    axes.legend(handles=axes.lines[-1:], frameon=False, fontsize=8.5)
    figure.canvas.draw()  # the layout is known only after a first drawing
    label_points(axes, across, up, shown, colours)
    return _svg(figure)


def distribution(rows: Sequence[Row], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """Every further token's time of each row, with its median, 95th and 99th percentile."""
    shown = [row for row in rows if samples.get(row["name"])]
    if not shown:
        return None
    figure, axes = _canvas(10.5, 0.8 + 0.3 * len(shown))
    for place, row in enumerate(reversed(shown)):
        times = sorted(step for sample in samples[row["name"]] for step in sample["token_ms"])
        few = times[:: max(1, len(times) // _SHOWN)]
        axes.plot(few, [place] * len(few), "|", color=_colour(rows, row), alpha=0.35, markersize=11)
        for name, style in (("tpot_ms_p50", "o"), ("tpot_ms_p95", "D"), ("tpot_ms_p99", "s")):
            if row.get(name):
                axes.plot(row[name], place, style, color=_INK, markersize=4.5, zorder=3)
                axes.lines[-1].set_gid(f"tip:{row['name']}: {name[-3:]} {row[name]:.3g} ms")
    axes.set_yticks(range(len(shown)), [row["name"] for row in reversed(shown)])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.set_xlabel("ms a token: every one; dot median, diamond p95, square p99", fontsize=8.5)
    axes.tick_params(labelsize=8.5)
    axes.margins(y=0.6 / len(shown))
    return _svg(figure)


def curves(
    rows: Sequence[Row], points: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str
) -> str | None:
    """A line a row over what a sweep varied; `points` are (x, y) by row."""
    shown = [row for row in rows if len(points.get(row["name"], ())) > 1]
    if not shown:
        return None
    many = len(shown) > len(COLOURS)
    figure, axes = _canvas(7.4 if many else 6.4, max(3.8, 0.24 * len(shown)))
    for row in shown:
        xs, ys = zip(*sorted(points[row["name"]]), strict=True)
        style = _STYLES[_number(rows, row) // len(COLOURS) % len(_STYLES)]
        marker = MARKERS.get(row["kind"], "^")
        axes.plot(xs, ys, style, marker=marker, color=_colour(rows, row), label=row["name"], markersize=6)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({x for row in shown for x, _ in points[row["name"]]})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    if many:  # they would hide the lines
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    else:
        axes.legend(frameon=False, fontsize=8.5)
    return _svg(figure)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # measures text; what is written is SVG
    axes = figure.add_subplot()
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, length=0)
    return figure, axes


def _colour(rows: Sequence[Row], row: Row) -> str:
    return COLOURS[_number(rows, row) % len(COLOURS)]


def _number(rows: Sequence[Row], row: Row) -> int:
    return [each["name"] for each in rows].index(row["name"])


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales, loads nothing, and has tooltips."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chitchat-compress", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"| height="[\d.]+pt"| width="[\d.]+pt"', "", text, count=2)
    return re.sub(r'<g id="tip:([^"]*)">', lambda found: f"<g><title>{found[1]}</title>", text)
