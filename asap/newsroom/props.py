"""The objects that people hold, drawn. One unit is half the width of the holder's face; the origin is the hand."""

from collections.abc import Callable

from asap.newsroom.pen import Color, Pen, half_oval, shade

_WOOD: Color = (160, 108, 60)
_STEEL: Color = (176, 184, 192)
_DARK: Color = (44, 44, 50)

HANGING = frozenset({"suitcase", "bucket", "lantern", "basket"})  # these hang below the hand, the others stand above it


def draw_prop(pen: Pen, name: str, skin: Color) -> None:
    """Draw the object called `name`, and the hand that holds it."""
    _DRAWINGS[name](pen)
    pen.oval(-0.08, 0.0, 0.3, 0.24, skin)
    for i in range(3):
        pen.line([(-0.2 + i * 0.16, -0.12), (-0.2 + i * 0.16, 0.14)], 0.03, shade(skin, 0.8))


def _microphone(p: Pen) -> None:
    p.line([(0, 0.5), (0, -0.6)], 0.22, _DARK)
    p.oval(0, -0.8, 0.34, 0.38, (120, 124, 130))
    p.rect(-0.34, -0.78, 0.34, -0.7, (80, 82, 88))


def _book(p: Pen) -> None:
    p.rect(-0.85, -0.9, 0.85, 0.25, (36, 70, 150))
    p.rect(-0.78, -0.84, 0.78, 0.16, (246, 242, 226))
    p.line([(0, -0.88), (0, 0.22)], 0.08, (150, 140, 120))
    for y in (-0.6, -0.4, -0.2):
        p.line([(-0.65, y), (-0.15, y)], 0.04, (150, 150, 150))
        p.line([(0.15, y), (0.65, y)], 0.04, (150, 150, 150))


def _flag(p: Pen) -> None:
    p.line([(0, 0.9), (0, -1.5)], 0.1, _WOOD)
    for i, color in enumerate(((206, 40, 50), (245, 245, 245), (30, 80, 180))):
        y = -1.5 + i * 0.32
        p.shape([(0, y), (0.7, y + 0.08), (1.4, y - 0.05), (1.4, y + 0.27), (0.7, y + 0.4), (0, y + 0.32)], color)


def _papers(p: Pen) -> None:
    for i in range(3):
        p.shape([(-0.6 + i * 0.08, -0.9 - i * 0.06), (0.55 + i * 0.1, -0.8 - i * 0.06), (0.5, 0.3), (-0.65, 0.25)],
                (236 + i * 6, 236 + i * 6, 230 + i * 6))  # fmt: skip
    for y in (-0.7, -0.5, -0.3, -0.1):
        p.line([(-0.4, y), (0.4, y + 0.05)], 0.05, (120, 124, 134))


def _suitcase(p: Pen) -> None:
    p.ring(0, -0.02, 0.3, 0.28, 0.12, _DARK)
    p.rect(-0.95, 0.15, 0.95, 1.4, (150, 84, 40))
    p.rect(-0.62, 0.15, -0.44, 1.4, (98, 54, 26))
    p.rect(0.44, 0.15, 0.62, 1.4, (98, 54, 26))


def _camera(p: Pen) -> None:
    p.rect(-0.75, -0.75, 0.75, 0.25, _DARK)
    p.rect(-0.3, -0.95, 0.3, -0.7, _DARK)
    p.oval(0, -0.25, 0.42, 0.42, (110, 114, 124))
    p.oval(0, -0.25, 0.3, 0.3, (40, 60, 100))
    p.oval(-0.1, -0.35, 0.09, 0.09, (220, 230, 245))
    p.oval(0.58, -0.6, 0.09, 0.09, (230, 60, 50))


def _placard(p: Pen) -> None:
    p.line([(0, 0.9), (0, -0.4)], 0.13, _WOOD)
    p.rect(-0.95, -1.5, 0.95, -0.3, (250, 248, 240))
    for y, x in ((-1.2, 0.7), (-0.9, 0.55), (-0.6, 0.7)):
        p.line([(-x, y), (x, y)], 0.15, (200, 40, 44))


def _megaphone(p: Pen) -> None:
    p.shape([(-0.5, -0.3), (0.7, -0.95), (0.7, 0.2), (-0.5, -0.05)], (236, 120, 36))
    p.oval(0.72, -0.37, 0.16, 0.6, (250, 244, 236))
    p.rect(-0.68, -0.34, -0.48, -0.02, _DARK)


def _candle(p: Pen) -> None:
    p.rect(-0.2, -0.75, 0.2, 0.3, (248, 240, 216))
    p.oval(0, -1.08, 0.2, 0.36, (252, 170, 40))
    p.oval(0, -1.0, 0.1, 0.2, (255, 240, 150))


def _phone(p: Pen) -> None:
    p.rect(-0.36, -0.95, 0.36, 0.35, (26, 26, 30))
    p.rect(-0.28, -0.84, 0.28, 0.2, (90, 190, 235))


def _trophy(p: Pen) -> None:
    gold = (236, 186, 44)
    p.ring(0, -0.95, 0.66, 0.34, 0.1, shade(gold, 0.85))
    p.shape([(-0.5, -1.35), (0.5, -1.35), (0.4, -0.7), (0.12, -0.4), (-0.12, -0.4), (-0.4, -0.7)], gold)
    p.shape([(-0.38, -1.3), (-0.2, -1.3), (-0.12, -0.6), (-0.26, -0.7)], (255, 236, 150))
    p.rect(-0.1, -0.45, 0.1, 0.15, shade(gold, 0.8))
    p.rect(-0.38, 0.1, 0.38, 0.35, (90, 56, 30))


def _ball(p: Pen) -> None:
    p.oval(0.1, -0.35, 0.72, 0.72, (246, 246, 244))
    p.oval(0.1, -0.35, 0.24, 0.24, _DARK)
    for x, y in ((-0.35, -0.7), (0.55, -0.72), (-0.3, 0.1), (0.5, 0.08)):
        p.oval(x, y, 0.15, 0.15, _DARK)


def _medal(p: Pen) -> None:
    p.shape([(-0.4, -1.4), (-0.1, -1.4), (0.16, -0.5), (-0.1, -0.5)], (40, 80, 190))
    p.shape([(0.4, -1.4), (0.1, -1.4), (-0.16, -0.5), (0.1, -0.5)], (206, 44, 50))
    p.oval(0, -0.3, 0.42, 0.42, (240, 190, 50))
    p.oval(0, -0.3, 0.26, 0.26, (255, 226, 120))


def _bucket(p: Pen) -> None:
    p.ring(0, 0.1, 0.6, 0.5, 0.06, _DARK)
    p.shape([(-0.75, 0.2), (0.75, 0.2), (0.55, 1.3), (-0.55, 1.3)], (60, 120, 200))
    p.oval(0, 0.2, 0.75, 0.16, (32, 70, 130))


def _flowers(p: Pen) -> None:
    p.shape([(-0.16, 0.6), (0.16, 0.6), (0.6, -0.6), (-0.6, -0.6)], (70, 140, 70))
    for x, y, c in ((-0.5, -0.8, 0), (0, -1.0, 1), (0.5, -0.8, 2), (-0.25, -0.55, 2), (0.28, -0.55, 0)):
        p.oval(x, y, 0.27, 0.27, ((230, 70, 120), (250, 200, 60), (200, 60, 190))[c])
        p.oval(x, y, 0.1, 0.1, (255, 240, 190))


def _skis(p: Pen) -> None:
    for x, color in ((-0.2, (230, 50, 60)), (0.25, (240, 190, 40))):
        p.shape([(x - 0.13, 2.2), (x - 0.13, -1.5), (x, -1.75), (x + 0.13, -1.5), (x + 0.13, 2.2)], color)


def _umbrella(p: Pen) -> None:
    p.line([(0, 0.5), (0, -1.5)], 0.09, _DARK)
    for i, color in enumerate(((190, 40, 60), (240, 230, 220), (190, 40, 60), (240, 230, 220))):
        x = -1.2 + i * 0.6
        p.shape([(0, -1.7), (x, -0.7), (x + 0.3, -0.82), (x + 0.6, -0.7)], color)


def _lantern(p: Pen) -> None:
    p.ring(0, 0.12, 0.3, 0.28, 0.08, _DARK)
    p.rect(-0.45, 0.25, 0.45, 1.25, _DARK)
    p.rect(-0.32, 0.4, 0.32, 1.1, (255, 214, 90))
    p.oval(0, 0.75, 0.14, 0.24, (255, 250, 220))


def _shovel(p: Pen) -> None:
    p.line([(0, 1.6), (0, -0.7)], 0.14, _WOOD)
    p.shape([(-0.4, -0.6), (0.4, -0.6), (0.36, -1.3), (0, -1.7), (-0.36, -1.3)], _STEEL)


def _crate(p: Pen) -> None:
    p.rect(-1.0, -0.7, 1.0, 0.6, (192, 140, 82))
    for y in (-0.68, -0.28, 0.12, 0.52):
        p.line([(-1.0, y), (1.0, y)], 0.07, (120, 80, 44))
    p.line([(-1.0, -0.7), (1.0, 0.6)], 0.12, (140, 96, 54))


def _guitar(p: Pen) -> None:
    p.line([(0.1, 0.3), (1.3, -1.3)], 0.18, (84, 50, 28))
    p.oval(-0.3, 0.7, 0.62, 0.6, (198, 110, 40))
    p.oval(0.12, 0.22, 0.44, 0.42, (198, 110, 40))
    p.oval(-0.12, 0.48, 0.2, 0.2, (60, 34, 20))
    p.rect(1.14, -1.56, 1.48, -1.2, (60, 34, 20))


def _balloons(p: Pen) -> None:
    p.line([(0, 0.2), (-0.42, -0.9)], 0.04, _DARK)
    p.line([(0, 0.2), (0.5, -0.8)], 0.04, _DARK)
    p.oval(-0.42, -1.2, 0.42, 0.5, (226, 48, 60))
    p.oval(0.52, -1.1, 0.42, 0.5, (250, 200, 50))
    p.oval(-0.56, -1.38, 0.1, 0.14, (255, 190, 190))


def _wrench(p: Pen) -> None:
    p.line([(0, 0.9), (0, -0.8)], 0.22, _STEEL)
    p.oval(0, -1.0, 0.4, 0.4, _STEEL)
    p.rect(-0.14, -1.5, 0.14, -0.98, _DARK)


def _basket(p: Pen) -> None:
    p.ring(0, 0.2, 0.7, 0.6, 0.1, (150, 100, 50))
    for x, color in ((-0.45, (214, 44, 40)), (0.0, (240, 160, 40)), (0.45, (120, 180, 60))):
        p.oval(x, 0.32, 0.3, 0.28, color)
    p.shape([(-0.9, 0.4), (0.9, 0.4), (0.7, 1.2), (-0.7, 1.2)], (190, 134, 70))
    p.line([(-0.84, 0.7), (0.84, 0.7)], 0.06, (130, 86, 40))


def _fish(p: Pen) -> None:
    p.oval(0.2, -0.3, 0.85, 0.36, (150, 180, 204))
    p.shape([(-0.55, -0.3), (-1.05, -0.66), (-1.05, 0.06)], (110, 140, 170))
    p.shape(half_oval(0.2, -0.3, 0.8, 0.3), (226, 234, 240))
    p.oval(0.72, -0.4, 0.09, 0.09, _DARK)


def _flask(p: Pen) -> None:
    p.shape([(-0.16, -1.2), (0.16, -1.2), (0.18, -0.7), (0.62, 0.3), (-0.62, 0.3), (-0.18, -0.7)], (222, 236, 240))
    p.shape([(-0.36, -0.3), (0.36, -0.3), (0.62, 0.3), (-0.62, 0.3)], (70, 200, 110))
    p.rect(-0.22, -1.32, 0.22, -1.18, (180, 200, 208))


_DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "microphone": _microphone, "book": _book, "flag": _flag, "papers": _papers, "suitcase": _suitcase,
    "camera": _camera, "placard": _placard, "megaphone": _megaphone, "candle": _candle, "phone": _phone,
    "trophy": _trophy, "ball": _ball, "medal": _medal, "bucket": _bucket, "flowers": _flowers, "skis": _skis,
    "umbrella": _umbrella, "lantern": _lantern, "shovel": _shovel, "crate": _crate, "guitar": _guitar,
    "balloons": _balloons, "wrench": _wrench, "basket": _basket, "fish": _fish, "flask": _flask,
}  # fmt: skip
