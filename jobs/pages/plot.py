"""Plots as SVG: axes, lines, bars and points, drawn by a template. Light, and in colours that the colour-blind tell
apart (Okabe and Ito, 2008), each with a dash or a shape of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from math import ceil
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(N, 2): x and y in the units of the axes."""
Shape = dict[str, Any]

BLUE, VERMILION, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#a8578a", "#a3d3f0"
INK, QUIET, GRID = "#1c1b1f", "#5e5b64", "#e4e2dc"
DASHES = ("", "9 4", "2.5 3.5", "12 4 2.5 4")
"""For the first, second … line of a plot."""

WIDTH, HEIGHT = 640, 520
_LEFT, _RIGHT = 74, 20
_TOP, _BOTTOM = 78, 60
_LEGEND_ROW, _LEGEND_COLUMNS = 23, (20, 330)
_GAP = 26
"""Pixels between panels."""


@dataclass(frozen=True)
class Axis:
    """What is counted along it, and from where to where."""

    label: str
    high: float = 1.0
    ticks: Sequence[float] = (0, 0.2, 0.4, 0.6, 0.8, 1)
    show: Callable[[float], str] = "{:g}".format
    """A tick as text."""


@dataclass(frozen=True)
class Line:
    """A polyline, or with `step` a staircase whose value holds until the next point."""

    points: Points
    colour: str
    label: str = ""
    dash: str = ""
    width: float = 2.25
    step: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars of equal width over the whole x axis, standing on `base`."""

    heights: NDArray[np.float64]
    colour: str
    label: str = ""
    base: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Dots:
    """Dots, with a whisker each where `low` and `high` are given."""

    points: Points
    colour: str
    label: str = ""
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    hollow: bool = False


Mark = Line | Bars | Dots


@dataclass(frozen=True)
class Panel:
    """One y axis and what is drawn against it; `share` of the height, next to the other panels."""

    y: Axis
    marks: Sequence[Mark]
    share: float = 1.0


@dataclass(frozen=True)
class Plot:
    """Panels one below the other, over one x axis."""

    title: str
    note: str
    """One line below the title."""
    x: Axis
    panels: Sequence[Panel]
    summary: str = field(default="", kw_only=True)
    """What the plot shows, for those who cannot see it."""

    def svg(self) -> str:
        """The plot as a file of its own: no script, no style sheet, nothing fetched."""
        shapes = [*self._head(), *(shape for frame in self._frames() for shape in frame.shapes())]
        return _template().render(width=WIDTH, height=HEIGHT, plot=self, shapes=[*shapes, *self._legend()])

    def _frames(self) -> list[_Frame]:
        top = float(_TOP + _LEGEND_ROW * ceil(len(self._labelled()) / 2))
        room = HEIGHT - top - _BOTTOM - _GAP * (len(self.panels) - 1)
        whole = sum(panel.share for panel in self.panels)
        frames: list[_Frame] = []
        for panel in self.panels:
            height = room * panel.share / whole
            frames.append(_Frame(self.x, panel, top, height, is_last=panel is self.panels[-1]))
            top += height + _GAP
        return frames

    def _head(self) -> list[Shape]:
        return [
            _text(20, 34, self.title, size=19, weight=650, fill=INK),
            _text(20, 58, self.note, size=13.5),
        ]

    def _labelled(self) -> list[Mark]:
        return [mark for panel in self.panels for mark in panel.marks if mark.label]

    def _legend(self) -> Iterable[Shape]:
        """In two columns above the panels, where no curve can cross it."""
        for number, mark in enumerate(self._labelled()):
            x, y = _LEGEND_COLUMNS[number % 2], 84 + _LEGEND_ROW * (number // 2)
            yield from _key(mark, x, y - 4.5)
            yield _text(x + 38, y, mark.label, size=14, fill=INK)


@dataclass(frozen=True)
class _Frame:
    """A panel in its place."""

    x: Axis
    panel: Panel
    top: float
    height: float
    is_last: bool

    def shapes(self) -> list[Shape]:
        return [*self._axes(), self._base_line(), *(shape for mark in self.panel.marks for shape in self._draw(mark))]

    def _at(self, points: Points) -> Points:
        """Pixels of the picture."""
        scale = np.array([(WIDTH - _LEFT - _RIGHT) / self.x.high, -self.height / self.panel.y.high])
        pixels: Points = np.asarray(points, np.float64) * scale + (_LEFT, self.top + self.height)
        return pixels

    def _axes(self) -> Iterable[Shape]:
        right, bottom = WIDTH - _RIGHT, self.top + self.height
        for tick in self.panel.y.ticks:
            y = self._at(np.array([[0, tick]]))[0, 1]
            yield _path([(_LEFT, y), (right, y)], stroke=GRID, width=1)
            yield _text(_LEFT - 9, y + 4.5, self.panel.y.show(tick), size=13, anchor="end")
        for tick in self.x.ticks:
            x = self._at(np.array([[tick, 0]]))[0, 0]
            yield _path([(x, self.top), (x, bottom)], stroke=GRID, width=1)
            if self.is_last:
                yield _text(x, bottom + 20, self.x.show(tick), size=13, anchor="middle")
        middle = self.top + self.height / 2
        yield _text(22, middle, self.panel.y.label, size=14, anchor="middle", fill=INK, turned=True)
        if self.is_last:
            yield _text((_LEFT + right) / 2, bottom + 44, self.x.label, size=14, anchor="middle", fill=INK)

    def _base_line(self) -> Shape:
        bottom = self.top + self.height
        return _path([(_LEFT, self.top), (_LEFT, bottom), (WIDTH - _RIGHT, bottom)], stroke=QUIET, width=1.25)

    def _draw(self, mark: Mark) -> Iterable[Shape]:
        if isinstance(mark, Line):
            points = _steps(mark.points) if mark.step else mark.points
            yield _path(self._at(points), stroke=mark.colour, width=mark.width, dash=mark.dash)
        elif isinstance(mark, Bars):
            yield from self._bars(mark)
        else:
            yield from self._dots(mark)

    def _bars(self, mark: Bars) -> Iterable[Shape]:
        step = self.x.high / len(mark.heights)
        base = np.zeros_like(mark.heights) if mark.base is None else mark.base
        for number, (low, height) in enumerate(zip(base, mark.heights, strict=True)):
            if height > 0:
                left, right = (number + 0.06) * step, (number + 0.94) * step
                corners = [(left, low), (left, low + height), (right, low + height), (right, low)]
                yield _path(self._at(np.array(corners)), fill=mark.colour, closed=True)

    def _dots(self, mark: Dots) -> Iterable[Shape]:
        if mark.low is not None and mark.high is not None:
            for (x, _), low, high in zip(mark.points, mark.low, mark.high, strict=True):
                yield _path(self._at(np.array([(x, low), (x, high)])), stroke=mark.colour, width=1.5)
        for x, y in self._at(mark.points):
            yield _dot(x, y, mark)


def _steps(points: Points) -> Points:
    """The corners of the staircase."""
    corners = np.repeat(points, 2, axis=0)
    return np.stack([corners[1:, 0], corners[:-1, 1]], axis=1)


def _key(mark: Mark, x: float, y: float) -> Iterable[Shape]:
    """The mark as the legend shows it, 28 pixels wide."""
    if isinstance(mark, Bars):
        yield _path([(x, y - 7), (x + 28, y - 7), (x + 28, y + 7), (x, y + 7)], fill=mark.colour, closed=True)
    elif isinstance(mark, Line):
        yield _path([(x, y), (x + 28, y)], stroke=mark.colour, width=mark.width, dash=mark.dash)
    else:
        yield _dot(x + 14, y, mark)


def _path(
    points: Iterable[Sequence[float]] | Points, *, stroke: str = "none", width: float = 0, dash: str = "",
    fill: str = "none", closed: bool = False,
) -> Shape:  # fmt: skip
    """Points on the same half of a pixel as the one before are left out: a curve over many pairs stays small."""
    rounded = [place for place, _ in groupby(f"{round(x * 2) / 2:g} {round(y * 2) / 2:g}" for x, y in points)]
    data = f"M{'L'.join(rounded)}{'Z' if closed else ''}"
    return {"kind": "path", "d": data, "stroke": stroke, "width": width, "dash": dash, "fill": fill}


def _dot(x: float, y: float, mark: Dots) -> Shape:
    fill, stroke = ("#ffffff", mark.colour) if mark.hollow else (mark.colour, "#ffffff")
    return {"kind": "dot", "x": round(float(x), 1), "y": round(float(y), 1), "fill": fill, "stroke": stroke}


def _text(
    x: float, y: float, text: str, *, size: float, fill: str = QUIET, anchor: str = "start", weight: int = 400,
    turned: bool = False,
) -> Shape:  # fmt: skip
    """`turned`: from bottom to top."""
    place = {"x": round(float(x), 1), "y": round(float(y), 1), "text": text, "size": size}
    return {"kind": "text", **place, "fill": fill, "anchor": anchor, "weight": weight, "turned": turned}


@cache
def _template() -> Template:
    loader = PackageLoader("jobs.pages")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("plot.svg.j2")
