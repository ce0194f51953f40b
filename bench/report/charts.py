"""The pictures of report.html: quality against speed and size with the Pareto front, distributions, sweeps. As SVG.

Colours and markers are those of `bench.report.plots`. Text stays text, so that it can be searched and read aloud; every
point has its figures as a tooltip.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.report.plots import (
    COLOURS,
    INK,
    MARKERS,
    PEER,
    QUALITY,
    Axis,
    Panel,
    Point,
    colours,
    front,
    new_figure,
    tidy,
)
from bench.report.row import ReportRow

_STYLES = ("-", "--", ":", "-.")  # where the colours are used up
_SHOWN = 400  # points of a distribution that are drawn, evenly taken


def tradeoff(rows: Sequence[ReportRow], x: Axis, y: Axis = QUALITY) -> str | None:
    """Each row as a point, and the front that no row beats; None where fewer than two rows have both measures."""
    shown = [row for row in rows if getattr(row, x.key) and y.has(row)]
    if len(shown) < 2:
        return None
    figure, axes = _canvas(6.4, 4.6)
    panel = Panel(axes, x, y, rows)
    panel.draw(shown)
    points = list(panel.points.values())
    best = [points[index] for index in front(points, higher_x=x.higher, higher_y=y.higher)]
    axes.plot(*zip(*best, strict=True), color="#999999", linewidth=1.2, linestyle="--", zorder=1, label="Pareto front")
    axes.legend(handles=axes.lines[-1:], frameon=False, fontsize=8.5)
    figure.canvas.draw()  # the layout is known only after a first drawing
    panel.label(best)
    return _svg(figure)


def distribution(rows: Sequence[ReportRow], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """Every further token's time of each row, with its median, 95th and 99th percentile."""
    shown = [row for row in reversed(rows) if samples.get(row.name)]
    if not shown:
        return None
    figure, axes = _canvas(10.5, 0.8 + 0.3 * len(shown))
    for height, row in enumerate(shown):
        times = sorted(step for sample in samples[row.name] for step in sample["token_ms"])
        few = times[:: max(1, len(times) // _SHOWN)]
        axes.plot(few, [height] * len(few), "|", color=colours(rows)[row.name], alpha=0.35, markersize=11)
        for name, marker in (("tpot_ms_p50", "o"), ("tpot_ms_p95", "D"), ("tpot_ms_p99", "s")):
            if value := getattr(row, name):
                tip = f"tip:{row.name}: {name[-3:]} {value:.3g} ms"
                axes.plot(value, height, marker, color=INK, markersize=4.5, zorder=3, gid=tip)
    axes.set_yticks(range(len(shown)), [row.name for row in shown])
    axes.set_xscale("log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(FuncFormatter(lambda value, index: f"{value:g}" if f"{value:e}"[0] in "1235" else ""))
    axes.set_xlabel("ms a token: every one; dot median, diamond p95, square p99", fontsize=8.5)
    axes.tick_params(which="both", labelsize=8.5, length=0)
    axes.margins(y=0.6 / len(shown))
    return _svg(figure)


def curves(rows: Sequence[ReportRow], points: Mapping[str, Sequence[Point]], across: str, up: str) -> str | None:
    """A line a row over what a sweep varied; `points` are (x, y) by row."""
    shown = {index: row for index, row in enumerate(rows) if len(points.get(row.name, ())) > 1}
    if not shown:
        return None
    many = len(shown) > len(COLOURS)
    figure, axes = _canvas(7.4 if many else 6.4, max(3.8, 0.24 * len(shown)))
    for index, row in shown.items():
        line = zip(*sorted(points[row.name]), strict=True)
        look = {"marker": MARKERS.get(row.kind, PEER)[0], "color": colours(rows)[row.name], "markersize": 6}
        axes.plot(*line, _STYLES[index // len(COLOURS) % len(_STYLES)], label=row.name, **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({x for row in shown.values() for x, _ in points[row.name]})
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
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    tidy(axes)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales, loads nothing, and has tooltips."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chitchat-compress", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return re.sub(r'<g id="tip:([^"]*)">', lambda found: f"<g><title>{found[1]}</title>", text)
