"""report.html: one file, offline, safe, and the same numbers as report.json."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reports import full_report

from bench.report.charts import curves, distribution, tradeoff
from bench.report.page import as_html
from bench.report.plots import LOSS, SIZE, front
from bench.report.row import FIGURES, MAIN_COLUMNS, SCENARIO_COLUMNS, ReportRow, read_rows
from bench.report.tables import main_table

SMALL = st.integers(0, 6).map(float)


@given(points=st.lists(st.tuples(SMALL, SMALL), max_size=25), higher_x=st.booleans(), higher_y=st.booleans())
def test_the_front_is_that_of_comparing_every_pair(points: list[tuple[float, float]], higher_x, higher_y) -> None:
    """Ties at the end of a run of equal x let a beaten model onto the front."""

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        gains = [(a - b) * (1 if higher else -1) for a, b, higher in zip(one, other, (higher_x, higher_y), strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    wanted = {index for index, point in enumerate(points) if not any(beats(other, point) for other in points)}
    found = front(points, higher_x=higher_x, higher_y=higher_y)
    assert set(found) == wanted
    assert len(found) == len(wanted)
    xs = [points[index][0] for index in found]
    assert xs == sorted(xs, reverse=higher_x), "from the best x on"


@pytest.mark.parametrize(
    ("points", "turns", "wanted"),
    [
        ([(1, 3), (2, 2), (3, 1)], {}, [0, 1, 2]),
        ([(1, 1), (2, 2), (3, 3)], {}, [0]),
        ([(1, 3), (2, 4), (3, 1), (2, 2)], {}, [0, 3, 2]),
        ([(1, 1), (5, 2), (9, 3), (7, 3)], {"higher_x": True}, [2, 1, 0]),
        ([(1, 1), (1, 1), (1, 2)], {}, [0, 1]),
        ([(5, 5)], {"higher_x": True, "higher_y": True}, [0]),
        ([], {}, []),
    ],
)
def test_the_front_holds_what_nothing_beats(points: Any, turns: Any, wanted: list[int]) -> None:
    """Stops a front that runs through models that others beat in both."""
    assert front(points, **turns) == wanted


class Page(HTMLParser):
    """Collects what a browser would load, and checks that elements close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if (
                name in ("src", "href", "xlink:href", "action", "data")
                and value
                and not value.startswith(("#", "data:"))
            ):
                self.asked.append(value)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_asks_for_nothing_and_is_whole() -> None:
    """Stops a font, a script or a picture from elsewhere, which an offline reader does not get."""
    text = as_html(full_report())
    page = Page(text)
    assert page.asked == []
    assert page.open == []
    assert page.tags.count("svg") == 3
    assert not re.search(r"@import|url\(\s*['\"]?http", text)


def test_names_and_last_words_are_text() -> None:
    """Stops a model's name, or what a worker said last, from becoming markup."""
    text = as_html(full_report())
    assert "<b>" not in text
    assert "alert(1)</script>" not in text
    assert Page(text).tags.count("script") == 1


def test_it_holds_the_numbers_it_was_made_from() -> None:
    """Stops a page that cannot be checked."""
    made = full_report()
    text = as_html(made)
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL)
    assert found
    assert json.loads(found[1])["rows"] == made["rows"]
    assert "quality" not in json.loads(found[1])


def test_every_column_is_explained() -> None:
    """Stops a number whose making nobody can look up."""
    assert {key for key, figure in FIGURES.items() if figure.title} == {*MAIN_COLUMNS, *SCENARIO_COLUMNS}
    assert all(figure.meaning for figure in FIGURES.values())
    shown = set(main_table(read_rows(full_report()["rows"])).heads) - {"model", "runtime", "parameters"}
    text = as_html(full_report())
    assert len(shown) > 6
    assert all(f"<dt>{title}</dt>" in text for title in shown)


def test_what_decides_stands_first() -> None:
    """At 1,300 pixels tokens/s, speed and the ceiling stood to the right of a scroll."""
    row = ReportRow(**dict.fromkeys(MAIN_COLUMNS, 1))
    heads = main_table([row]).heads
    assert heads[:8] == ["model", "file MB", "perplexity", "KL", "TTFT ms", "ms/token", "tokens/s", "speed"]
    assert len(heads) == len(MAIN_COLUMNS)


def test_a_busy_row_a_lost_row_and_a_partial_run_are_marked() -> None:
    """Stops a table that looks complete and calm."""
    text = as_html(full_report() | {"partial": True})
    assert '<tr class="marked">' in text
    assert "w8&quot; (busy)" in text
    assert '<tr class="lost">' in text
    assert "stopped before its end" in text


def test_points_have_their_figures_as_tooltips() -> None:
    """Stops a picture that must be guessed at."""
    rows = read_rows(full_report()["rows"][:2])
    svg = tradeoff(rows, SIZE)
    assert svg is not None
    assert svg.startswith("<svg")
    assert "<title>teacher: all files, MB 4, bits per byte on held-out conversations 2</title>" in svg
    assert "<title>&lt;b&gt;&amp;" in svg or "&lt;b&gt;" in svg


def test_nothing_is_drawn_of_nothing() -> None:
    """Stops an empty frame where a single model, or no quality, leaves nothing to compare."""
    rows = read_rows(full_report()["rows"])
    assert tradeoff(rows[:1], SIZE) is None
    assert distribution(rows, {}) is None
    assert curves(rows, {"teacher": [(1, 2)]}, "x", "y") is None
    line = curves(rows, {"teacher": [(1, 2), (2, 3)]}, "threads", "tokens/s")
    assert line is not None
    assert "threads" in line


def test_what_is_lost_is_drawn_over_decades_and_the_same_numbers_stand_at_the_bottom() -> None:
    """Bits per byte of 8 and 4 bits lay on one line; a KL of 0 has no place on a logarithmic axis."""
    row, *_ = read_rows(full_report()["rows"])
    rows = [replace(row, name=name, kl=kl) for name, kl in zip("abcd", (None, 0.0, 8e-5, 2e-3), strict=True)]
    svg = tradeoff(rows, SIZE, LOSS)
    assert svg is not None
    told = re.findall(r"<title>(\w): .*?KL from the first row, nats a token (\S+)</title>", svg)
    assert told == [("b", "1e-07"), ("c", "8e-05"), ("d", "0.002")], "the first row is what the others are measured by"
    assert ">1e-05<" in svg
    assert ">0.001<" in svg


def test_many_curves_are_told_apart_and_stand_clear_of_their_names() -> None:
    """Twenty names lay on the lines, in seven colours."""
    rows = [ReportRow(name=f"row {number}", kind="bundle") for number in range(16)]
    points = {row.name: [(1.0, 1.0 + place), (2.0, 2.0 + place)] for place, row in enumerate(rows)}
    svg = curves(rows, points, "threads", "tokens/s")
    assert svg is not None
    styles = re.findall(r'style="(fill: none; stroke(?:-dasharray)?: .*?)"', svg)
    assert len({style for style in styles if "stroke-linecap" in style or "dasharray" in style}) >= 16
    frame = re.search(r'id="patch_2">\s*<path d="M (\S+) \S+ \nL (\S+)', svg)
    assert frame is not None
    names = [float(x) for x in re.findall(r'<text[^>]* x="(\S+)"[^>]*>row \d+<', svg)]
    assert len(names) == 16
    assert min(names) > float(frame[2]), "beside the frame, not in it"
