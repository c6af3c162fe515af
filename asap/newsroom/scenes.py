"""Backgrounds, drawn. One unit is the height of the picture; x runs from 0 to `w`, y from 0 (top) to 1."""

from collections.abc import Callable

import numpy as np

from asap.newsroom.grammar import GLAD
from asap.newsroom.pen import Color, Pen, half_oval, mix, shade, wave

Rng = np.random.Generator


def draw_scene(p: Pen, rng: Rng, w: float, name: str) -> None:
    """Draw the background of the scene called `name`."""
    _DRAWINGS[name](p, rng, w)


def draw_mood(p: Pen, rng: Rng, w: float, mood: int, per_cent: int) -> None:
    """Draw confetti on a glad picture, rain on a grim one, each on `per_cent` of the pictures."""
    if rng.integers(100) >= per_cent:
        return
    if mood == GLAD:
        colors: tuple[Color, ...] = ((250, 210, 60), (240, 80, 110), (90, 200, 230), (140, 220, 110))
        for i in range(26):
            x, y = rng.random() * w, rng.random() * 0.75
            p.shape([(x, y), (x + 0.022, y + 0.01), (x + 0.016, y + 0.034), (x - 0.006, y + 0.024)], colors[i % 4])
    else:
        for _ in range(34):
            x, y = rng.random() * w * 1.1, rng.random() * 0.9
            p.line([(x, y), (x - 0.03, y + 0.09)], 0.005, (168, 178, 190))


def _fade(p: Pen, w: float, y0: float, y1: float, top: Color, bottom: Color, steps: int = 14) -> None:
    for i in range(steps):
        a, b = y0 + (y1 - y0) * i / steps, y0 + (y1 - y0) * (i + 1) / steps
        p.rect(0, a, w, b + 0.004, mix(top, bottom, i / (steps - 1)))


def _sky(p: Pen, rng: Rng, w: float, y: float, top: Color = (96, 168, 226), low: Color = (206, 230, 244)) -> None:
    _fade(p, w, 0, y, top, low)
    for _ in range(int(rng.integers(1, 4))):
        x, cy = rng.random() * w, 0.06 + rng.random() * y * 0.4
        for dx, r in ((-0.08, 0.04), (0, 0.06), (0.08, 0.045)):
            p.oval(x + dx, cy, r * 1.5, r, shade(low, 1.5))


def _crowd(p: Pen, rng: Rng, w: float, y0: float, y1: float, rows: int, size: float) -> None:
    colors: tuple[Color, ...] = ((206, 70, 70), (70, 110, 190), (230, 200, 90), (235, 235, 235), (60, 60, 80),
                                   (90, 160, 100))  # fmt: skip
    for row in range(rows):
        y = y0 + (y1 - y0) * row / max(rows - 1, 1)
        for i in range(int(w / size / 2.2)):
            x = (i + 0.5 * (row % 2) + rng.random() * 0.4) * size * 2.2
            p.oval(x, y + size * 1.3, size, size, colors[int(rng.integers(6))])
            p.oval(x, y, size * 0.62, size * 0.7, (224, 178, 140))


def _floor(p: Pen, w: float, y: float, color: Color) -> None:
    _fade(p, w, y, 1.0, color, shade(color, 0.72), 10)


def _parliament(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.42, (120, 84, 52), (160, 116, 74))
    for i in range(9):
        p.rect(i * w / 8 - 0.02, 0, i * w / 8 + 0.02, 0.36, (96, 64, 38))
    flag_x = w * (0.2 + 0.6 * rng.random())
    for i, color in enumerate(((30, 60, 150), (240, 240, 240), (190, 40, 50))):
        p.rect(flag_x - 0.12 + i * 0.08, 0.04, flag_x - 0.04 + i * 0.08, 0.24, color)
    for row in range(5):
        y = 0.38 + row * 0.14
        p.shape(half_oval(w / 2, y + 0.3, w * 0.85, -0.32), mix((32, 112, 76), (22, 84, 56), row / 4))
        p.arc(w / 2, y + 0.3, w * 0.85, -0.32, 0.025, (196, 150, 90))


def _courtroom(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 1, (112, 62, 34), (74, 38, 22))
    for i in range(int(w / 0.22) + 1):
        p.rect(i * 0.22 + 0.03, 0.06, i * 0.22 + 0.19, 0.48, (136, 80, 46))
        p.rect(i * 0.22 + 0.05, 0.09, i * 0.22 + 0.17, 0.45, (120, 68, 38))
    x = w * (0.25 + 0.5 * rng.random())
    gold = (232, 196, 90)
    p.line([(x, 0.06), (x, 0.36)], 0.02, gold)
    p.line([(x - 0.16, 0.11), (x + 0.16, 0.11)], 0.018, gold)
    for side in (-0.16, 0.16):
        p.shape(half_oval(x + side, 0.24, 0.08, 0.05), gold)
        p.line([(x + side - 0.07, 0.24), (x + side, 0.11), (x + side + 0.07, 0.24)], 0.008, gold)
    p.rect(0, 0.56, w, 0.64, (164, 104, 60))
    p.rect(0, 0.64, w, 1, (92, 50, 28))


def _demonstration(p: Pen, rng: Rng, w: float) -> None:
    _sky(p, rng, w, 0.3, (176, 196, 214), (226, 230, 232))
    for i in range(int(w / 0.3) + 1):
        h = 0.06 + 0.14 * rng.random()
        p.rect(i * 0.3, h, i * 0.3 + 0.28, 0.6, ((176, 150, 130), (150, 156, 166), (190, 170, 140))[i % 3])
        for k in range(6):
            p.rect(i * 0.3 + 0.04 + k % 2 * 0.12, h + 0.05 + k // 2 * 0.1, i * 0.3 + 0.1 + k % 2 * 0.12,
                   h + 0.11 + k // 2 * 0.1, (90, 104, 124))  # fmt: skip
    for _ in range(6):
        x, y = rng.random() * w, 0.22 + rng.random() * 0.16
        p.line([(x, y), (x, 0.7)], 0.014, (120, 84, 50))
        p.rect(x - 0.1, y - 0.07, x + 0.1, y + 0.06, ((250, 250, 246), (246, 214, 70), (226, 60, 60))[_ % 3])
        p.line([(x - 0.07, y), (x + 0.07, y)], 0.02, (40, 40, 46))
    _crowd(p, rng, w, 0.52, 0.9, 5, 0.055)


def _pressroom(p: Pen, rng: Rng, w: float) -> None:
    blue = ((24, 60, 132), (30, 80, 150), (20, 50, 110))[int(rng.integers(3))]
    _fade(p, w, 0, 0.8, blue, shade(blue, 0.75))
    for row in range(4):
        for i in range(int(w / 0.26) + 1):
            x, y = i * 0.26 + (row % 2) * 0.13, 0.08 + row * 0.17
            p.rect(x - 0.07, y - 0.03, x + 0.07, y + 0.03, (235, 240, 248))
            p.oval(x - 0.035, y, 0.02, 0.02, (220, 60, 60))
    p.rect(0, 0.8, w, 1, (52, 56, 66))


def _stadium(p: Pen, rng: Rng, w: float) -> None:
    _sky(p, rng, w, 0.16)
    p.rect(0, 0.1, w, 0.42, (92, 98, 112))
    _crowd(p, rng, w, 0.12, 0.36, 6, 0.024)
    p.rect(0, 0.42, w, 0.47, ((226, 60, 50), (250, 250, 250), (40, 90, 190))[int(rng.integers(3))])
    for i in range(8):
        p.rect(0, 0.47 + i * 0.07, w, 0.47 + i * 0.07 + 0.072, (60, 158, 66) if i % 2 else (78, 178, 80))
    x = w * (0.2 + 0.6 * rng.random())
    p.line([(x - 0.3, 0.66), (x - 0.3, 0.4), (x + 0.3, 0.4), (x + 0.3, 0.66)], 0.018, (250, 250, 250))
    p.line([(0, 0.72), (w, 0.72)], 0.012, (240, 246, 240))


def _pool(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.34, (214, 226, 230), (236, 242, 242))
    for i in range(6):
        p.rect(i * w / 5 + 0.02, 0.04, i * w / 5 + 0.16, 0.22, (150, 206, 236))
    p.rect(0, 0.3, w, 0.36, (232, 214, 180))
    _fade(p, w, 0.36, 1, (44, 176, 222), (16, 120, 190))
    shift = rng.random() * 0.2
    for i in range(-2, 8):
        x = w / 2 + (i - 3 + shift) * 0.16
        for k in range(8):
            a, b = k / 8, (k + 0.6) / 8
            p.line([(x + (x - w / 2) * 3 * a, 0.36 + 0.64 * a), (x + (x - w / 2) * 3 * b, 0.36 + 0.64 * b)], 0.014,
                   (240, 60, 50) if k % 2 else (250, 250, 250))  # fmt: skip


def _slope(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.6, (70, 140, 214), (190, 222, 244))
    for _ in range(3):
        x, h = rng.random() * w, 0.08 + 0.16 * rng.random()
        p.shape([(x - 0.55, 0.6), (x, h), (x + 0.55, 0.6)], (150, 168, 196))
        p.shape([(x - 0.2, h + 0.19), (x, h), (x + 0.2, h + 0.19), (x + 0.06, h + 0.15), (x - 0.05, h + 0.22)],
                (250, 252, 255))  # fmt: skip
    p.shape([(0, 0.5), (w, 0.38 + 0.2 * rng.random()), (w, 1), (0, 1)], (240, 246, 252))
    for i in range(6):
        x = rng.random() * w
        p.shape([(x - 0.05, 0.62), (x, 0.42), (x + 0.05, 0.62)], (40, 92, 70))
        y = 0.56 + rng.random() * 0.35
        p.line([(x, y), (x, y + 0.14)], 0.012, (220, 40, 50) if i % 2 else (40, 80, 200))
        p.rect(x, y, x + 0.08, y + 0.06, (220, 40, 50) if i % 2 else (40, 80, 200))


def _track(p: Pen, rng: Rng, w: float) -> None:
    _sky(p, rng, w, 0.2)
    p.rect(0, 0.16, w, 0.34, (120, 126, 138))
    _crowd(p, rng, w, 0.18, 0.3, 3, 0.028)
    p.rect(0, 0.34, w, 0.44, (84, 170, 84))
    _fade(p, w, 0.44, 1, (206, 92, 52), (176, 66, 36))
    vanish = w * (0.1 + 0.8 * rng.random())
    for i in range(-5, 8):
        p.line([(vanish + (i - 1) * 0.05, 0.44), (w / 2 + (i - 1) * 0.42, 1)], 0.012, (248, 240, 232))


def _flood(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.4, (136, 146, 154), (190, 194, 190))
    for i in range(4):
        x, h = (i + rng.random() * 0.5) * w / 3.4, 0.12 + 0.12 * rng.random()
        p.rect(x - 0.16, h + 0.1, x + 0.16, 0.6, ((196, 170, 140), (170, 120, 100), (206, 200, 180))[i % 3])
        p.shape([(x - 0.2, h + 0.11), (x, h - 0.04), (x + 0.2, h + 0.11)], (130, 60, 46))
        p.rect(x - 0.06, h + 0.17, x + 0.04, h + 0.27, (60, 74, 90))
    _fade(p, w, 0.42, 1, (150, 124, 84), (106, 82, 52))
    for _ in range(16):
        x, y = rng.random() * w, 0.45 + rng.random() * 0.5
        p.line([(x, y), (x + 0.06, y - 0.012), (x + 0.12, y), (x + 0.18, y - 0.01)], 0.01, (190, 168, 128))


def _fire(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.8, (62, 34, 38), (196, 88, 40))
    x0 = w * (0.1 + 0.15 * rng.random())
    p.rect(x0, 0.16, x0 + w * 0.65, 0.8, (58, 40, 40))
    for i in range(4):
        for k in range(3):
            x = x0 + w * 0.65 * (i + 0.5) / 4
            p.rect(x - 0.05, 0.24 + k * 0.17, x + 0.05, 0.34 + k * 0.17, (255, 190, 60))
    for color, low, high in (((226, 62, 24), 0.32, 0.3), ((250, 140, 30), 0.24, 0.2), ((255, 214, 80), 0.16, 0.12)):
        p.shape([(x0, 0.34), *wave(rng, x0, x0 + w * 0.65, low, high, 12), (x0 + w * 0.65, 0.34)], color)
    for _ in range(5):
        p.oval(rng.random() * w, rng.random() * 0.12, 0.14, 0.07, (48, 42, 46))
    p.rect(0, 0.8, w, 1, (50, 44, 46))


def _storm(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.7, (36, 42, 58), (98, 108, 124))
    for _ in range(8):
        p.oval(rng.random() * w, 0.02 + rng.random() * 0.16, 0.22, 0.09, (50, 56, 72))
    x = w * (0.15 + 0.7 * rng.random())
    p.shape([(x, 0.1), (x + 0.06, 0.1), (x + 0.02, 0.26), (x + 0.08, 0.26), (x - 0.06, 0.52), (x - 0.02, 0.32),
             (x - 0.07, 0.32)], (250, 246, 180))  # fmt: skip
    p.rect(0, 0.68, w, 1, (62, 78, 66))
    for _ in range(3):
        x = rng.random() * w
        p.line([(x, 0.8), (x + 0.06, 0.52), (x + 0.2, 0.38)], 0.035, (54, 40, 30))
        p.oval(x + 0.24, 0.36, 0.18, 0.08, (40, 76, 54))
    for _ in range(60):
        x, y = rng.random() * w * 1.2, rng.random()
        p.line([(x, y), (x - 0.05, y + 0.1)], 0.005, (176, 190, 208))


def _rubble(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.5, (198, 186, 166), (222, 210, 188))
    for i in range(3):
        x, h = (i + rng.random()) * w / 3, 0.08 + 0.2 * rng.random()
        p.shape([(x - 0.18, 0.6), (x - 0.18, h), (x - 0.06, h + 0.1), (x + 0.04, h + 0.02), (x + 0.16, h + 0.2),
                 (x + 0.18, 0.6)], (150, 138, 124))  # fmt: skip
        p.rect(x - 0.11, h + 0.16, x - 0.02, h + 0.27, (84, 76, 70))
    p.rect(0, 0.55, w, 1, (136, 124, 110))
    for _ in range(46):
        x, y, r = rng.random() * w, 0.44 + rng.random() * 0.56, 0.03 + rng.random() * 0.06
        a, b, c, d = (rng.random(4) * r).tolist()
        tone = shade((186, 173, 156), 0.5 + 0.5 * rng.random())
        p.shape([(x - r, y + a), (x - b, y - r), (x + r, y - c), (x + d, y + r)], tone)


def _concert(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 1, (26, 12, 52), (74, 26, 96))
    for i in range(6):
        x, end = (i + 0.5) * w / 6, rng.random() * w
        color = ((130, 60, 190), (220, 70, 170), (80, 110, 230))[i % 3]
        p.shape([(x - 0.01, 0), (x + 0.01, 0), (end + 0.13, 0.78), (end - 0.13, 0.78)], mix(color, (60, 20, 80), 0.35))
        p.oval(x, 0.02, 0.045, 0.03, (255, 250, 220))
    for x in (0.08, w - 0.08):
        p.rect(x - 0.12, 0.3, x + 0.12, 0.82, (22, 20, 26))
        for y in (0.42, 0.58, 0.73):
            p.oval(x, y, 0.075, 0.065, (66, 64, 74))
    p.rect(0, 0.8, w, 1, (34, 22, 44))


def _museum(p: Pen, rng: Rng, w: float) -> None:
    wall = ((236, 226, 208), (222, 228, 222), (228, 214, 206))[int(rng.integers(3))]
    _fade(p, w, 0, 0.78, shade(wall, 1.1), shade(wall, 0.92))
    _floor(p, w, 0.78, (168, 120, 74))
    x = 0.05 + rng.random() * 0.1
    while x < w - 0.1:
        wide, high = 0.22 + rng.random() * 0.16, 0.26 + rng.random() * 0.18
        p.rect(x, 0.08, x + wide, 0.08 + high, (196, 150, 60))
        a, b = rng.integers(40, 230, (2, 3)).tolist()
        p.rect(x + 0.025, 0.105, x + wide - 0.025, 0.055 + high, (a[0], a[1], a[2]))
        p.oval(x + wide / 2, 0.08 + high / 2, wide * 0.24, high * 0.24, (b[0], b[1], b[2]))
        x += wide + 0.1


def _theatre(p: Pen, rng: Rng, w: float) -> None:
    for i in range(int(w / 0.07) + 2):
        x = i * 0.07
        p.rect(x, 0, x + 0.045, 0.82, (158, 20, 34))
        p.rect(x + 0.045, 0, x + 0.075, 0.82, (112, 10, 24))
    gold = (230, 186, 80)
    for i in range(5):
        p.shape(half_oval((i + 0.5) * w / 5, 0, w / 10, 0.16), (176, 28, 40))
        p.arc((i + 0.5) * w / 5, 0, w / 10, 0.16, 0.02, gold)
    _floor(p, w, 0.82, (150, 96, 52))
    p.oval(w * (0.3 + 0.4 * rng.random()), 0.88, 0.42, 0.06, (236, 202, 140))


def _premiere(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.66, (14, 18, 44), (40, 34, 78))
    for _ in range(24):
        x, y = rng.random() * w, rng.random() * 0.5
        p.oval(x, y, 0.014, 0.014, (255, 250, 220))
    for _ in range(4):
        x, y = rng.random() * w, 0.2 + rng.random() * 0.3
        p.shape([(x, y - 0.1), (x + 0.02, y - 0.02), (x + 0.1, y), (x + 0.02, y + 0.02), (x, y + 0.1),
                 (x - 0.02, y + 0.02), (x - 0.1, y), (x - 0.02, y - 0.02)], (255, 252, 236))  # fmt: skip
    p.rect(0, 0.62, w, 1, (40, 36, 50))
    p.shape([(w * 0.34, 0.62), (w * 0.66, 0.62), (w * 1.0, 1), (0, 1)], (196, 20, 40))
    for x in (0.14, 0.3, 0.7, 0.86):
        p.line([(w * x, 0.56), (w * x, 0.86)], 0.025, (232, 190, 80))
    p.line([(0, 0.66), (w * 0.14, 0.62), (w * 0.3, 0.62)], 0.014, (140, 16, 30))
    p.line([(w, 0.66), (w * 0.86, 0.62), (w * 0.7, 0.62)], 0.014, (140, 16, 30))


def _gear(p: Pen, x: float, y: float, r: float, color: Color) -> None:
    teeth = [(np.cos(a) * k * r + x, np.sin(a) * k * r + y) for a, k in
             zip(np.linspace(0, 6.283, 33).tolist(), [1, 1, 0.78, 0.78] * 8 + [1], strict=True)]  # fmt: skip
    p.shape(teeth, color)
    p.oval(x, y, r * 0.3, r * 0.3, shade(color, 0.5))


def _factory(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.8, (104, 116, 126), (146, 156, 160))
    for i in range(5):
        p.rect(i * w / 4 - 0.02, 0, i * w / 4 + 0.03, 0.7, (74, 84, 94))
    p.rect(0, 0.08, w, 0.13, (226, 176, 40))
    for _ in range(4):
        _gear(p, rng.random() * w, 0.16 + rng.random() * 0.4, 0.09 + rng.random() * 0.08,
              ((190, 120, 50), (88, 98, 110), (210, 170, 60))[_ % 3])  # fmt: skip
    p.rect(0, 0.66, w, 0.74, (40, 42, 46))
    for i in range(int(w / 0.24) + 1):
        p.rect(i * 0.24 + 0.04, 0.56, i * 0.24 + 0.18, 0.66, (206, 130, 60))
    for i in range(int(w / 0.12) + 1):
        p.shape([(i * 0.12, 0.8), (i * 0.12 + 0.06, 0.8), (i * 0.12 + 0.02, 0.87), (i * 0.12 - 0.04, 0.87)],
                (236, 196, 40))  # fmt: skip
    p.rect(0, 0.87, w, 1, (84, 86, 90))


def _farm(p: Pen, rng: Rng, w: float) -> None:
    _sky(p, rng, w, 0.45)
    p.shape([(0, 0.5), *wave(rng, 0, w, 0.46, 0.12, 6), (w, 0.5)], (96, 156, 74))
    _fade(p, w, 0.46, 1, (232, 190, 76), (190, 142, 46))
    for i in range(-6, 10):
        p.line([(w / 2 + i * 0.06, 0.46), (w / 2 + i * 0.5, 1)], 0.014, (206, 160, 54))
    x = w * (0.12 + 0.2 * rng.random()) if rng.random() < 0.5 else w * (0.7 + 0.2 * rng.random())
    p.rect(x - 0.18, 0.26, x + 0.18, 0.52, (176, 40, 36))
    p.shape([(x - 0.22, 0.27), (x - 0.12, 0.14), (x + 0.12, 0.14), (x + 0.22, 0.27)], (96, 34, 34))
    p.line([(x - 0.07, 0.52), (x - 0.07, 0.36), (x + 0.07, 0.36), (x + 0.07, 0.52)], 0.016, (246, 240, 230))
    x = w - x
    p.rect(x - 0.12, 0.4, x + 0.1, 0.5, (40, 130, 60))
    p.rect(x, 0.3, x + 0.1, 0.42, (40, 130, 60))
    p.oval(x + 0.08, 0.5, 0.08, 0.08, (30, 30, 30))
    p.oval(x - 0.1, 0.53, 0.05, 0.05, (30, 30, 30))


def _harbour(p: Pen, rng: Rng, w: float) -> None:
    _sky(p, rng, w, 0.5, (120, 170, 206), (226, 232, 228))
    _fade(p, w, 0.48, 0.84, (38, 100, 142), (24, 70, 110))
    x = w * (0.3 + 0.4 * rng.random())
    p.shape([(x - 0.5, 0.42), (x + 0.5, 0.42), (x + 0.42, 0.58), (x - 0.44, 0.58)], (150, 34, 40))
    for i in range(6):
        for k in range(2):
            p.rect(x - 0.38 + i * 0.13, 0.26 + k * 0.08, x - 0.26 + i * 0.13, 0.335 + k * 0.08,
                   ((220, 120, 40), (50, 110, 180), (80, 150, 90), (230, 200, 80))[(i * 2 + k) % 4])  # fmt: skip
    for x in (w * 0.1, w * 0.88):
        p.line([(x, 0.6), (x, 0.08), (x + 0.26, 0.12)], 0.03, (236, 150, 40))
        p.line([(x - 0.12, 0.12), (x, 0.08)], 0.03, (236, 150, 40))
        p.line([(x + 0.22, 0.12), (x + 0.22, 0.3)], 0.008, (60, 60, 60))
    p.rect(0, 0.84, w, 1, (132, 130, 124))


def _market(p: Pen, rng: Rng, w: float) -> None:
    _sky(p, rng, w, 0.2, (150, 190, 220), (232, 236, 232))
    p.rect(0, 0.16, w, 0.8, (196, 172, 140))
    color = ((210, 46, 46), (40, 140, 90), (40, 100, 180))[int(rng.integers(3))]
    for i in range(int(w / 0.09) + 2):
        p.shape([(i * 0.09, 0.1), (i * 0.09 + 0.09, 0.1), (i * 0.09 + 0.1, 0.3), (i * 0.09 - 0.01, 0.3)],
                color if i % 2 else (250, 248, 240))  # fmt: skip
        p.oval(i * 0.09 + 0.045, 0.3, 0.05, 0.035, color if i % 2 else (250, 248, 240))
    fruit: tuple[Color, ...] = ((220, 50, 40), (246, 150, 40), (130, 180, 60), (240, 210, 70), (120, 60, 130))
    for i in range(int(w / 0.3) + 1):
        p.rect(i * 0.3 + 0.01, 0.62, i * 0.3 + 0.28, 0.78, (140, 96, 54))
        c = fruit[int(rng.integers(5))]
        for k in range(10):
            p.oval(i * 0.3 + 0.04 + k % 5 * 0.052, 0.6 - k // 5 * 0.04, 0.032, 0.032, c)
    p.rect(0, 0.78, w, 1, (120, 110, 104))


def _hospital(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.74, (206, 234, 226), (180, 216, 208))
    _floor(p, w, 0.74, (206, 214, 214))
    x = w * (0.15 + 0.2 * rng.random())
    p.rect(x - 0.13, 0.08, x + 0.13, 0.34, (250, 252, 252))
    p.rect(x - 0.03, 0.11, x + 0.03, 0.31, (220, 40, 46))
    p.rect(x - 0.1, 0.18, x + 0.1, 0.24, (220, 40, 46))
    x = w * (0.6 + 0.15 * rng.random())
    p.rect(x - 0.3, 0.46, x + 0.4, 0.56, (250, 250, 252))
    p.oval(x - 0.2, 0.44, 0.1, 0.05, (255, 255, 255))
    p.rect(x - 0.02, 0.46, x + 0.4, 0.6, (120, 180, 214))
    p.line([(x - 0.32, 0.38), (x - 0.32, 0.76)], 0.02, (120, 130, 140))
    p.line([(x + 0.42, 0.46), (x + 0.42, 0.76)], 0.02, (120, 130, 140))
    p.line([(x + 0.2, 0.5), (x + 0.2, 0.1)], 0.012, (130, 140, 150))
    p.rect(x + 0.14, 0.1, x + 0.26, 0.24, (236, 200, 200))


def _laboratory(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.7, (226, 236, 246), (200, 216, 232))
    for y in (0.24, 0.46):
        p.rect(0, y, w, y + 0.025, (120, 140, 164))
        for i in range(int(w / 0.15) + 1):
            x = i * 0.15 + 0.05 + rng.random() * 0.03
            c: Color = ((80, 200, 120), (230, 80, 150), (70, 150, 230), (240, 180, 50))[int(rng.integers(4))]
            if i % 2:
                p.rect(x - 0.02, y - 0.15, x + 0.02, y, (244, 250, 252))
                p.rect(x - 0.02, y - 0.09, x + 0.02, y, c)
            else:
                p.shape([(x - 0.015, y - 0.16), (x + 0.015, y - 0.16), (x + 0.055, y), (x - 0.055, y)], c)
    p.rect(0, 0.7, w, 0.76, (250, 252, 254))
    p.rect(0, 0.76, w, 1, (150, 168, 190))


def _school(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.8, (246, 226, 168), (234, 206, 140))
    p.rect(w * 0.08, 0.06, w * 0.92, 0.54, (150, 100, 56))
    p.rect(w * 0.1, 0.085, w * 0.9, 0.515, (36, 82, 62))
    for row in range(4):
        x = w * 0.14
        y = 0.15 + row * 0.09
        while x < w * 0.8:
            step = 0.03 + rng.random() * 0.07
            p.line([(x, y), (x + step * 0.5, y - 0.02 * rng.random()), (x + step, y)], 0.011, (232, 240, 232))
            x += step + 0.03
    _floor(p, w, 0.8, (186, 136, 84))


def _airport(p: Pen, rng: Rng, w: float) -> None:
    _fade(p, w, 0, 0.62, (130, 190, 234), (220, 236, 246))
    p.rect(0, 0.54, w, 0.7, (150, 154, 160))
    x, y = w * (0.35 + 0.3 * rng.random()), 0.3 + rng.random() * 0.12
    p.oval(x, y, 0.42, 0.065, (250, 250, 252))
    p.shape([(x - 0.4, y), (x - 0.5, y - 0.2), (x - 0.4, y - 0.2), (x - 0.26, y - 0.03)], (210, 40, 60))
    p.shape([(x - 0.08, y), (x + 0.12, y), (x - 0.14, y + 0.2), (x - 0.24, y + 0.2)], (196, 204, 214))
    for i in range(7):
        p.oval(x - 0.2 + i * 0.075, y - 0.015, 0.016, 0.02, (60, 90, 130))
    for i in range(6):
        p.rect(i * w / 5 - 0.012, 0, i * w / 5 + 0.012, 0.74, (84, 94, 108))
    p.rect(0, 0, w, 0.035, (84, 94, 108))
    p.rect(0, 0.7, w, 0.75, (84, 94, 108))
    _floor(p, w, 0.75, (206, 208, 206))


def _beach(p: Pen, rng: Rng, w: float) -> None:
    _sky(p, rng, w, 0.36, (60, 160, 230), (190, 230, 246))
    _fade(p, w, 0.34, 0.6, (22, 130, 190), (70, 196, 206))
    p.shape([(0, 0.62), *wave(rng, 0, w, 0.6, 0.04, 9), (w, 0.62)], (236, 250, 250))
    _fade(p, w, 0.61, 1, (244, 218, 158), (222, 186, 118))
    x = w * 0.08 if rng.random() < 0.5 else w * 0.9
    p.line([(x, 0.8), (x + 0.02, 0.5), (x + 0.07, 0.22)], 0.045, (132, 90, 52))
    for dx, dy in ((-0.24, -0.02), (-0.2, 0.12), (0.2, -0.06), (0.24, 0.08), (0, -0.16)):
        p.shape([(x + 0.07, 0.2), (x + 0.07 + dx / 2 - 0.02, 0.13 + dy / 2), (x + 0.07 + dx, 0.22 + dy),
                 (x + 0.07 + dx / 2 + 0.02, 0.2 + dy / 2)], (40, 140, 70))  # fmt: skip
    x = w * (0.3 + 0.4 * rng.random())
    p.shape([(x, 0.24), (x, 0.42), (x + 0.13, 0.42)], (250, 250, 250))
    p.shape([(x - 0.08, 0.43), (x + 0.16, 0.43), (x + 0.1, 0.47), (x - 0.04, 0.47)], (200, 60, 50))


_DRAWINGS: dict[str, Callable[[Pen, Rng, float], None]] = {
    "parliament": _parliament, "courtroom": _courtroom, "demonstration": _demonstration, "pressroom": _pressroom,
    "stadium": _stadium, "pool": _pool, "slope": _slope, "track": _track, "flood": _flood, "fire": _fire,
    "storm": _storm, "rubble": _rubble, "concert": _concert, "museum": _museum, "theatre": _theatre,
    "premiere": _premiere, "factory": _factory, "farm": _farm, "harbour": _harbour, "market": _market,
    "hospital": _hospital, "laboratory": _laboratory, "school": _school, "airport": _airport, "beach": _beach,
}  # fmt: skip
