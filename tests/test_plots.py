"""The picture of a report: every living row is a point with a label that can be read."""

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.report.plots import QUALITY, SPEED, Panel, build_figure, draw_report
from bench.report.row import ReportRow


def row(
    name: str, kind: str, file_mb: float, bits: float | None, speed: float | None, error: str | None = None
) -> ReportRow:
    return ReportRow(
        name=name,
        kind=kind,
        file_mb=file_mb,
        bits_per_byte=bits,
        tokens_per_s=speed,
        error=error,
        parameters=round(file_mb * 250_000),
        perplexity=None if bits is None else 2 ** (3 * bits),
        tpot_ms_p50=None if speed is None else 900 / speed,
    )


CLOSE = [
    row("teacher", "checkpoint", 12.9, 2.31, 310),
    row("pruned", "checkpoint", 6.6, 2.39, 520),
    row("bundle-fp32", "bundle", 6.4, 2.39, 1400),
    row("bundle", "bundle", 1.9, 2.391, 1900),
    row("a-long-name-of-a-model", "quantized", 1.95, 2.392, 1880),
]


def test_labels_lie_on_no_other_label_and_within_the_picture() -> None:
    """Two exports of one checkpoint have like figures, and their names were printed over each other."""
    figure = build_figure(CLOSE)
    figure.canvas.draw()
    assert len(figure.axes) == 4
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert [text.get_text() for text in axes.texts] == [entry.name for entry in CLOSE]
        assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))
        frame = axes.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_no_label_lies_on_the_line_of_the_front() -> None:
    """The dashed line ran through the names of models of like quality."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panel = Panel(figure.add_subplot(), SPEED, QUALITY, CLOSE)
    panel.draw(CLOSE)
    figure.canvas.draw()
    line = [panel.points[name] for name in ("teacher", "pruned", "bundle-fp32", "bundle")]
    panel.label(line)
    ends = panel.axes.transData.transform(line)
    drawn = np.concatenate([np.linspace(*pair, 500) for pair in pairwise(ends)])
    for text in panel.axes.texts:
        (left, bottom), (right, top) = text.get_window_extent().get_points()
        x, y = drawn.T
        assert not np.any((left < x) & (x < right) & (bottom < y) & (y < top)), text.get_text()


def test_points_stand_where_the_rows_say() -> None:
    """Size and speed were drawn on each other's axis."""
    size, speed, parameters, step = build_figure(CLOSE).axes
    assert [line.get_xydata().tolist()[0] for line in size.lines][:2] == [[12.9, 2.31], [6.6, 2.39]]
    assert [line.get_xydata().tolist()[0] for line in speed.lines][:2] == [[310, 2.31], [520, 2.39]]
    assert parameters.lines[0].get_xydata().tolist()[0] == [12.9 / 4, pytest.approx(2**6.93)]
    assert step.lines[0].get_xydata().tolist()[0] == [pytest.approx(900 / 310), pytest.approx(2**6.93)]
    assert (size.get_xscale(), size.get_yscale()) == ("log", "linear")
    assert len(size.get_xticks()) >= 2


def test_a_lost_row_is_left_out_and_keeps_the_colours_of_the_others() -> None:
    """A row without figures ended the drawing, and with it the whole report."""
    lost = row("lost", "bundle", 5.0, None, None, error="killed")
    axes, *_ = build_figure([CLOSE[0], lost, CLOSE[1]]).axes
    assert [text.get_text() for text in axes.texts] == ["teacher", "pruned"]
    whole, *_ = build_figure([CLOSE[0], CLOSE[2], CLOSE[1]]).axes
    assert axes.lines[1].get_color() == whole.lines[2].get_color()


def test_shapes_that_were_tried_are_small_points_beside_the_models() -> None:
    """The losers of a search were drawn as models, or stretched beyond the axes, or hid without a latency."""
    shapes = [
        {"parameters": 500_000, "perplexity_ratio": 1.6, "ms_per_token": 0.2, "chosen": True},
        {"parameters": 9_000_000, "perplexity_ratio": 4.0, "ms_per_token": None, "chosen": False},
    ]
    without, figure = build_figure(CLOSE), build_figure(CLOSE, {"pruned": shapes})
    figure.canvas.draw()
    size, speed, parameters, step = figure.axes
    points = [line.get_xydata().tolist()[0] for line in parameters.lines if line.get_marker() == "."]
    uncut = CLOSE[0].perplexity
    assert points == [[0.5, 1.6 * uncut], [9.0, 4 * uncut]]
    assert [line.get_xydata().tolist()[0] for line in step.lines if line.get_marker() == "."] == [[0.2, 1.6 * uncut]]
    (low, high), (bottom, top) = parameters.get_xlim(), parameters.get_ylim()
    assert low < 0.5
    assert high > 9
    assert bottom < uncut
    assert top > 4 * uncut
    chosen, loser = [line for line in parameters.lines if line.get_marker() == "."]
    assert chosen.get_color() == parameters.lines[3].get_color(), "the colour of the row that it became"
    assert chosen.get_markeredgecolor() != loser.get_markeredgecolor()
    assert [len(axes.lines) for axes in (size, speed)] == [len(axes.lines) for axes in without.axes[:2]]


@pytest.mark.parametrize(
    "rows", [[row("one", "bundle", 0.2, None, 9000.0)], [row("one", "checkpoint", 500.0, 1.2, 3.5)]]
)
def test_one_model_and_no_quality_make_a_picture_too(tmp_path: Path, rows: list[Any]) -> None:
    """A single point has no spread: limits were equal, or an axis had no tick at all."""
    draw_report(rows, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    for axes in build_figure(rows).axes:
        low, high = axes.get_xlim()
        assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2
