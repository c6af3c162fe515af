"""Shapes in the coordinates of a body, drawn on a canvas of twice the picture's size."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw

SCALE = 2  # canvas pixels per picture pixel, per side; the reduction smooths the edges

Color = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

_CIRCLE = [(math.cos(a * math.pi / 16), math.sin(a * math.pi / 16)) for a in range(32)]


def shade(color: Color, factor: float) -> Color:
    """Return the color darkened (factor below 1) or lightened towards white (factor above 1)."""
    if factor <= 1:
        return (int(color[0] * factor), int(color[1] * factor), int(color[2] * factor))
    return mix(color, (255, 255, 255), factor - 1)


def mix(a: Color, b: Color, k: float) -> Color:
    """Interpolate from `a` (at `k` = 0) to `b` (at `k` = 1)."""
    return (int(a[0] + (b[0] - a[0]) * k), int(a[1] + (b[1] - a[1]) * k), int(a[2] + (b[2] - a[2]) * k))


class Pen:
    """A pen with its own origin and unit: `unit` canvas pixels long, rotated by `angle` degrees."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, unit: float, angle: float = 0.0) -> None:
        self.draw, self.x, self.y, self.unit = draw, x, y, unit
        self._cos = math.cos(math.radians(angle)) * unit
        self._sin = math.sin(math.radians(angle)) * unit

    def at(self, x: float, y: float, unit: float = 1.0) -> "Pen":
        """Return an upright pen whose origin is at (x, y) of this one."""
        px, py = self._to_canvas(((x, y),))[0]
        return Pen(self.draw, px, py, self.unit * unit)

    def _to_canvas(self, points: Points) -> list[tuple[float, float]]:
        c, s, x0, y0 = self._cos, self._sin, self.x, self.y
        return [(x0 + x * c - y * s, y0 + x * s + y * c) for x, y in points]

    def shape(self, points: Points, fill: Color) -> None:
        """Draw a filled polygon."""
        self.draw.polygon(self._to_canvas(points), fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        """Draw a filled ellipse around (x, y)."""
        self.shape([(x + rx * c, y + ry * s) for c, s in _CIRCLE], fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Color) -> None:
        """Draw a filled rectangle between two corners."""
        self.shape(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), fill)

    def line(self, points: Points, width: float, fill: Color) -> None:
        """Draw a line through the points, `width` units wide but at least one pixel of the picture."""
        self.draw.line(self._to_canvas(points), fill=fill, width=max(SCALE, round(width * self.unit)), joint="curve")

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, fill: Color) -> None:
        """Draw the outline of an ellipse."""
        self.line([(x + rx * c, y + ry * s) for c, s in (*_CIRCLE, *_CIRCLE[:2])], width, fill)

    def arc(self, x: float, y: float, rx: float, ry: float, width: float, fill: Color) -> None:
        """Draw half the outline of an ellipse: the lower half if `ry` is positive, else the upper half."""
        self.line([(x + rx * c, y + ry * s) for c, s in _CIRCLE[:17]], width, fill)


def half_oval(x: float, y: float, rx: float, ry: float) -> list[tuple[float, float]]:
    """Return half an ellipse as a polygon: the lower half if `ry` is positive, else the upper half."""
    return [(x + rx * c, y + ry * s) for c, s in _CIRCLE[:17]]


def wave(rng: np.random.Generator, x0: float, x1: float, y: float, height: float, count: int) -> Points:
    """Draw the points of a ragged line from left to right, for skylines, hills and flames."""
    xs = np.linspace(x0, x1, count)
    ys = y - height * rng.random(count)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
