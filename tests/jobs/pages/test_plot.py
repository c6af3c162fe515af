"""Plots as SVG."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes

from jobs.pages.plot import DASHES, HEIGHT, WIDTH, new_figure, plot_style, render_svg, round_ticks

SVG = "{http://www.w3.org/2000/svg}"
DIAGONAL = ([0, 1], [0, 1])


@plot_style()
def draw(*panels: Callable[[Axes], object], heights: Sequence[float] = (), title: str = "Title") -> str:
    """Return the SVG of a figure with a panel for each function that draws one."""
    figure, axes = new_figure(title, "a note", "across", heights or [1] * len(panels))
    for panel, draw_panel in zip(axes, panels, strict=True):
        draw_panel(panel)
    return render_svg(figure, "it rises & <b>")


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314  # our own


def corners(path: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])]


def paths(root: ElementTree.Element, style: str) -> list[ElementTree.Element]:
    return [path for path in root.iter(f"{SVG}path") if style in path.attrib.get("style", "")]


def texts(root: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {str(text.text): text for text in root.iter(f"{SVG}text")}


def line(color: str, **options: object) -> Callable[[Axes], object]:
    return lambda axes: axes.plot(*DIAGONAL, color=color, **options)  # type: ignore[arg-type]


def test_a_line_goes_from_the_lower_left_to_the_upper_right() -> None:
    root = parse(draw(line("#123456")))
    (x0, y0), (x1, y1) = corners(paths(root, "stroke: #123456")[0])
    assert 0 < x0 < x1 < WIDTH
    assert 0 < y1 < y0 < HEIGHT


def test_a_line_along_the_edge_keeps_its_full_width() -> None:
    (path,) = paths(parse(draw(line("#123456"))), "stroke: #123456")
    assert "clip-path" not in path.attrib


def test_the_labels_and_ticks_of_both_axes_are_written_as_text() -> None:
    def pairs(axes: Axes) -> None:
        axes.set(ylabel="Pairs", ylim=(0, 2000), yticks=[0, 1000, 2000])
        axes.yaxis.set_major_formatter("{x:,.0f}")

    found = texts(parse(draw(pairs)))
    assert {"Title", "a note", "across", "Pairs", "0", "1,000", "2,000", "0.8"} <= set(found)
    assert "rotate(-90" in found["Pairs"].attrib["transform"]


def test_a_screen_reader_gets_the_title_and_the_summary_of_an_image() -> None:
    root = parse(draw(line("#123456")))
    assert root.attrib["role"] == "img"
    assert root.findtext(f"{SVG}title") == "Title"
    assert root.findtext(f"{SVG}desc") == "it rises & <b>"


def test_the_file_has_its_size_in_pixels_and_neither_date_nor_script() -> None:
    svg = draw(line("#123456"))
    assert (parse(svg).attrib["width"], parse(svg).attrib["height"]) == (str(WIDTH), str(HEIGHT))
    assert "date" not in svg
    assert "<script" not in svg


def test_the_same_plot_has_the_same_bytes() -> None:
    assert draw(line("#123456", label="a line")) == draw(line("#123456", label="a line"))


def test_a_staircase_holds_its_value_until_the_next_point() -> None:
    steps = draw(lambda axes: axes.plot([0, 0.5, 1], [0, 1, 0.5], color="#123456", drawstyle="steps-post"))
    found = corners(paths(parse(steps), "stroke: #123456")[0])
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(found))
    assert len(found) == 5


def test_a_dot_has_its_whisker() -> None:
    def dot(axes: Axes) -> None:
        axes.vlines([0.5], [0.25], [0.75], color="#123456")
        axes.plot([0.5], [0.5], "o", color="#654321")

    root = parse(draw(dot))
    (mark,) = [use for use in root.iter(f"{SVG}use") if "fill: #654321" in use.attrib["style"]]
    (x, top), (_, bottom) = sorted(corners(paths(root, "stroke: #123456")[0]), key=lambda corner: corner[1])
    assert x == pytest.approx(float(mark.attrib["x"]), abs=0.5)
    assert top < float(mark.attrib["y"]) < bottom


def test_the_legend_has_a_line_for_each_label_above_the_panels() -> None:
    def lines(axes: Axes) -> None:
        for number in range(4):
            axes.plot(*DIAGONAL, color=f"#00000{number}", label=f"label {number}", linestyle=DASHES[number])
        axes.plot(*DIAGONAL, color="#000009")

    root = parse(draw(lines))
    found = texts(root)
    assert [f"label {number}" in found for number in range(5)] == [True] * 4 + [False]
    lowest = max(float(found[f"label {number}"].attrib["y"]) for number in range(4))
    assert lowest < min(y for path in paths(root, "stroke: #000009") for _, y in corners(path))
    assert len(paths(root, "stroke-dasharray: 9,4")) == 2, "the curve and its key"


def test_the_legend_is_read_row_by_row_across_all_panels() -> None:
    found = texts(parse(draw(*(line("#123456", label=f"label {number}") for number in range(3)))))
    (x0, y0), (x1, y1), (x2, y2) = (
        [float(found[f"label {number}"].attrib[key]) for key in "xy"] for number in range(3)
    )
    assert (x0, y0) == (x2, pytest.approx(y1))
    assert x0 < x1
    assert y0 < y2


def test_panels_lie_below_each_other_and_share_the_lower_axis() -> None:
    root = parse(draw(line("#111111"), line("#222222"), heights=(3, 1)))
    upper, lower = ([y for _, y in corners(paths(root, f"stroke: {color}")[0])] for color in ("#111111", "#222222"))
    assert max(upper) < min(lower) < max(lower) < HEIGHT
    assert max(upper) - min(upper) == pytest.approx(3 * (max(lower) - min(lower)), abs=1)
    assert sum(text.text == "across" for text in root.iter(f"{SVG}text")) == 1


def test_points_that_fall_together_are_drawn_once() -> None:
    many, noise = np.linspace(0, 1, 100_000), np.random.default_rng(0).uniform(0, 1e-3, 100_000)
    svg = draw(lambda axes: axes.plot(many, many**2 * (1 - noise), color="#123456", drawstyle="steps-post"))
    assert len(svg) < 60_000


def test_text_from_outside_becomes_neither_markup_nor_a_formula() -> None:
    def panel(axes: Axes) -> None:
        axes.set_ylabel("</text><script>")
        axes.plot(*DIAGONAL, label="<b> $x^2$")

    root = parse(draw(panel, title="a & <b>"))
    assert {"a & <b>", "</text><script>", "<b> $x^2$"} <= set(texts(root))
    assert not list(root.iter(f"{SVG}script"))


def test_a_font_that_is_not_installed_is_passed_over_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    draw(line("#123456", label="a line"))
    assert not caplog.records


@pytest.mark.parametrize("highest", [0.4, 1, 2, 7, 41, 100, 101, 12_345])
@pytest.mark.parametrize("steps", [2, 5])
def test_round_ticks_go_from_zero_to_the_highest_value_in_few_equal_steps(highest: float, steps: int) -> None:
    ticks = round_ticks(highest, steps)
    assert ticks[0] == 0
    assert ticks[-2] < highest <= ticks[-1]
    assert 2 <= len(ticks) <= steps + 1
    assert len(set(np.diff(ticks))) == 1
    assert f"{ticks[1]:.0f}".rstrip("0") in {"1", "2", "5"}


def test_matplotlib_is_loaded_only_where_something_is_drawn() -> None:
    code = "import sys, jobs.evaluate.outputs; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
