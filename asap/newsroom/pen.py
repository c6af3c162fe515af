"""Drawing in a body's own coordinates, on a canvas that is twice the picture's size."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw

SCALE = 2  # canvas pixels per picture pixel, per side; the reduction smooths the edges

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

_CIRCLE = [(math.cos(a * math.pi / 16), math.sin(a * math.pi / 16)) for a in range(32)]


def shade(colour: Colour, factor: float) -> Colour:
    """The colour darker (factor below 1) or, towards white, lighter (above 1)."""
    if factor <= 1:
        return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))
    k = factor - 1
    return mix(colour, (255, 255, 255), k)


def mix(a: Colour, b: Colour, k: float) -> Colour:
    """The colour `k` of the way from `a` to `b`."""
    return (int(a[0] + (b[0] - a[0]) * k), int(a[1] + (b[1] - a[1]) * k), int(a[2] + (b[2] - a[2]) * k))


class Pen:
    """Draws shapes given in units around an origin: `unit` canvas pixels long, turned by `angle` degrees."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, unit: float, angle: float = 0.0) -> None:
        self.draw, self.x, self.y, self.unit = draw, x, y, unit
        self._cos = math.cos(math.radians(angle)) * unit
        self._sin = math.sin(math.radians(angle)) * unit

    def at(self, x: float, y: float, unit: float = 1.0) -> "Pen":
        """An upright pen whose origin is at (x, y) of this one."""
        px, py = self._place(((x, y),))[0]
        return Pen(self.draw, px, py, self.unit * unit)

    def _place(self, points: Points) -> list[tuple[float, float]]:
        c, s, x0, y0 = self._cos, self._sin, self.x, self.y
        return [(x0 + x * c - y * s, y0 + x * s + y * c) for x, y in points]

    def shape(self, points: Points, fill: Colour) -> None:
        """A filled polygon."""
        self.draw.polygon(self._place(points), fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """A filled ellipse around (x, y)."""
        self.shape([(x + rx * c, y + ry * s) for c, s in _CIRCLE], fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """A filled rectangle between two corners."""
        self.shape(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), fill)

    def line(self, points: Points, width: float, fill: Colour) -> None:
        """A line through the points, `width` units wide, at least one pixel of the picture."""
        self.draw.line(self._place(points), fill=fill, width=max(SCALE, round(width * self.unit)), joint="curve")

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, fill: Colour) -> None:
        """The outline of an ellipse."""
        self.line([(x + rx * c, y + ry * s) for c, s in (*_CIRCLE, *_CIRCLE[:2])], width, fill)

    def arc(self, x: float, y: float, rx: float, ry: float, width: float, fill: Colour) -> None:
        """Half an ellipse: the lower one where `ry` is positive, the upper one where it is negative."""
        self.line([(x + rx * c, y + ry * s) for c, s in _CIRCLE[:17]], width, fill)


def half_oval(x: float, y: float, rx: float, ry: float) -> list[tuple[float, float]]:
    """The lower (or, `ry` negative, upper) half of an ellipse as a polygon."""
    return [(x + rx * c, y + ry * s) for c, s in _CIRCLE[:17]]


def wave(rng: np.random.Generator, x0: float, x1: float, y: float, height: float, count: int) -> Points:
    """A ragged line from left to right, for skylines, hills and flames."""
    xs = np.linspace(x0, x1, count)
    ys = y - height * rng.random(count)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
