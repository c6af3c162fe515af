"""Plots as SVG."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from jobs.pages.plot import DASHES, HEIGHT, WIDTH, Axis, Bars, Dots, Line, Panel, Plot

SVG = "{http://www.w3.org/2000/svg}"
DIAGONAL = np.array([[0.0, 0.0], [1.0, 1.0]])


def draw(*panels: Panel, x: Axis | None = None, title: str = "Title") -> ElementTree.Element:
    svg = Plot(title, "a note", x or Axis("across"), panels, summary="it rises").svg()
    return ElementTree.fromstring(svg)  # noqa: S314  # our own


def corners(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])]


def paths(root: ElementTree.Element, **attributes: str) -> list[ElementTree.Element]:
    return [path for path in root.iter(f"{SVG}path") if attributes.items() <= path.attrib.items()]


def texts(root: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {str(text.text): text for text in root.iter(f"{SVG}text")}


def test_a_line_goes_from_the_lower_left_to_the_upper_right() -> None:
    root = draw(Panel(Axis("up"), [Line(DIAGONAL, "#123456")]))
    (x0, y0), (x1, y1) = corners(paths(root, stroke="#123456")[0])
    assert 0 < x0 < x1 < WIDTH
    assert 0 < y1 < y0 < HEIGHT


def test_what_an_axis_counts_is_written_at_it_with_its_ticks() -> None:
    root = draw(Panel(Axis("Pairs", 2000, [0, 1000, 2000], "{:,.0f}".format), [Line(DIAGONAL, "#123456")]))
    found = texts(root)
    assert {"Title", "a note", "across", "Pairs", "0", "1,000", "2,000", "0.8"} <= set(found)
    assert "rotate(-90" in found["Pairs"].attrib["transform"]
    assert root.find(f"{SVG}desc").text == "it rises"  # type: ignore[union-attr]


def test_a_staircase_holds_its_value_until_the_next_point() -> None:
    steps = Line(np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 0.5]]), "#123456", step=True)
    found = corners(paths(draw(Panel(Axis("up"), [steps])), stroke="#123456")[0])
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(found))
    assert len(found) == 5


def test_bars_stand_on_their_base_and_share_the_axis() -> None:
    low, high = np.array([1.0, 0.0, 3.0]), np.array([1.0, 2.0, 0.0])
    root = draw(Panel(Axis("n", 4, [0, 4]), [Bars(low, "#111111"), Bars(high, "#222222", base=low)]))
    below, above = paths(root, fill="#111111"), paths(root, fill="#222222")
    assert (len(below), len(above)) == (2, 2), "a bar of nothing is not drawn"
    assert min(y for _, y in corners(below[0])) == max(y for _, y in corners(above[0]))
    assert corners(below[0])[0][0] < corners(above[1])[0][0] < corners(below[1])[0][0]


def test_a_dot_has_its_whisker() -> None:
    dots = Dots(np.array([[0.5, 0.5]]), "#123456", low=np.array([0.25]), high=np.array([0.75]))
    root = draw(Panel(Axis("up"), [dots]))
    circle = next(root.iter(f"{SVG}circle"))
    (x, top), (_, bottom) = sorted(corners(paths(root, stroke="#123456")[0]), key=lambda corner: corner[1])
    assert x == pytest.approx(float(circle.attrib["cx"]), abs=0.5)
    assert top < float(circle.attrib["cy"]) < bottom


def test_the_legend_has_a_line_for_each_label_above_the_panels() -> None:
    marks = [Line(DIAGONAL, f"#00000{number}", f"label {number}", DASHES[number]) for number in range(4)]
    root = draw(Panel(Axis("up"), [*marks, Line(DIAGONAL, "#000009")]))
    found = texts(root)
    assert [f"label {number}" in found for number in range(5)] == [True] * 4 + [False]
    lowest = max(float(found[f"label {number}"].attrib["y"]) for number in range(4))
    assert lowest < min(y for path in paths(root, stroke="#000009") for _, y in corners(path))
    assert len(paths(root, **{"stroke-dasharray": DASHES[1]})) == 2, "the curve and its key"


def test_panels_lie_below_each_other_and_share_the_lower_axis() -> None:
    root = draw(
        Panel(Axis("upper"), [Line(DIAGONAL, "#111111")], share=3), Panel(Axis("lower"), [Line(DIAGONAL, "#222222")])
    )
    upper, lower = (corners(paths(root, stroke=colour)[0]) for colour in ("#111111", "#222222"))
    assert max(y for _, y in upper) < min(y for _, y in lower) < HEIGHT
    assert sum(text.text == "across" for text in root.iter(f"{SVG}text")) == 1


def test_points_that_fall_together_are_drawn_once() -> None:
    many = np.stack([np.linspace(0, 1, 100_000), np.linspace(0, 1, 100_000)], 1)
    assert len(Plot("t", "n", Axis("x"), [Panel(Axis("y"), [Line(many, "#123456")])]).svg()) < 60_000


def test_text_from_outside_cannot_become_markup() -> None:
    root = draw(Panel(Axis("</text><script>"), [Line(DIAGONAL, "#123456", "<b>")]), title="a & <b>")
    assert {"a & <b>", "</text><script>", "<b>"} <= set(texts(root))
    assert not list(root.iter(f"{SVG}script"))
