"""Manipulated faces, with the traces that the two kinds of manipulation leave in a finished picture.

A swap leaves the donor's skin inside a soft oval: slightly shifted, blurred by resampling, without camera noise, and
with a seam around it. An edit of an attribute leaves a patch that a generator rendered again: a faint regular texture,
more contrast and saturation, and a crisp border. The strength of the traces varies; few are faint.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from asap.newsroom.looks import Identity, Person, Plan
from asap.newsroom.pen import SCALE
from asap.newsroom.people import draw_face, pen_for

Rng = np.random.Generator
Pixels = np.ndarray  # (height, width, 3) float32, 0 to 255


def tamper(plan: Plan, rng: Rng, canvas: Image.Image, pixels: Pixels, light: Callable[[Pixels], Pixels]) -> None:
    """Manipulate the target's face in `pixels`, in place.

    Args:
        plan: the picture, with the kind of manipulation.
        rng: decides the details.
        canvas: the clean drawing, at SCALE times the size of the picture.
        pixels: (height, width, 3), the picture.
        light: the light of the picture, applied to what is drawn anew.
    """
    person = plan.people[plan.target]
    strength = _draw_strength(rng)
    if plan.tamper == "swap" and plan.donor is not None:
        _swap_face(rng, person, plan.donor, canvas, pixels, light, strength)
    elif plan.tamper == "attribute":
        _edit_attribute(rng, person, plan.attribute, canvas, pixels, light, strength)


def _draw_strength(rng: Rng) -> float:
    """Draw a strength from 0 (faint) to 1 (plain): seven in ten are plain, one in ten is faint."""
    level = int(rng.integers(10))
    base = 0.1 if level == 0 else 0.45 if level < 3 else 0.7
    return base + 0.3 * float(rng.random())


def _window(person: Person, pixels: Pixels) -> tuple[int, int, int, int]:
    """Return the face box with a margin, clipped to the picture."""
    x0, y0, x1, y1 = person.box
    margin = (x1 - x0) // 5
    return (max(0, x0 - margin), max(0, y0 - margin), min(pixels.shape[1], x1 + margin),
            min(pixels.shape[0], y1 + margin))  # fmt: skip


def _grid(person: Person, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the window's pixels in units of the face, rotated with it; both (height, width)."""
    x0, y0, x1, y1 = person.box
    unit = (x1 - x0) / 2
    xs = (np.arange(window[0], window[2], dtype=np.float32) + 0.5 - (x0 + x1) / 2) / unit
    ys = (np.arange(window[1], window[3], dtype=np.float32) + 0.5 - (y0 + y1) / 2) / unit
    cos, sin = np.cos(np.radians(person.tilt)), np.sin(np.radians(person.tilt))
    return xs[None] * cos + ys[:, None] * sin, ys[:, None] * cos - xs[None] * sin


def _redraw(canvas: Image.Image, window: tuple[int, int, int, int], draw_on: Callable[[ImageDraw.ImageDraw], None],
            blur: float) -> Pixels:  # fmt: skip
    """Draw on a copy of the canvas; return the window at the size of the picture, blurred by `blur` pixels."""
    copy = canvas.copy()
    draw_on(ImageDraw.Draw(copy))
    x0, y0, x1, y1 = (v * SCALE for v in window)
    patch = copy.crop((x0, y0, x1, y1)).reduce(SCALE)
    if blur > 0:
        patch = patch.filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(patch, np.float32)


def _blend(pixels: Pixels, window: tuple[int, int, int, int], patch: Pixels, mask: np.ndarray) -> None:
    view = pixels[window[1] : window[3], window[0] : window[2]]
    view += (patch - view) * mask[:, :, None]


def _swap_face(rng: Rng, person: Person, donor: Identity, canvas: Image.Image, pixels: Pixels,
               light: Callable[[Pixels], Pixels], strength: float) -> None:  # fmt: skip
    window = _window(person, pixels)
    unit = (person.box[2] - person.box[0]) / 2
    dx, dy = ((rng.random(2) - 0.5) * 0.16 * unit * SCALE).tolist()
    grow = 0.94 + 0.1 * float(rng.random())
    pose = replace(person, expression=int(rng.integers(3)), turn=person.turn + int(rng.integers(-6, 7)))
    patch = _redraw(canvas, window, lambda draw: draw_face(pen_for(draw, pose, dx, dy, grow), pose, donor),
                    unit * (0.03 + 0.05 * strength))  # fmt: skip
    patch = light(patch)
    # The soft oval; it leaves forehead, ears and hair of the target.
    x, y = _grid(person, window)
    distance = np.sqrt((x / 0.80) ** 2 + ((y - 0.2) / 0.95) ** 2)
    soft = 0.12 + 0.14 * float(rng.random())
    mask = np.clip((1 + soft / 2 - distance) / soft, 0, 1)
    # Blending tools pull the donor's tones towards the target's. A strong trace means that this failed.
    view = pixels[window[1] : window[3], window[0] : window[2]]
    inner = mask > 0.5
    pull = 0.75 - 0.75 * strength
    patch += (view[inner].mean(0) - patch[inner].mean(0)) * pull
    _blend(pixels, window, patch, mask * (0.9 + 0.1 * strength))
    # The seam is a ring along the border of the oval, lighter or darker than its surroundings.
    seam = np.exp(-(((distance - 1) / 0.07) ** 2)) * (7 + 18 * strength)
    view += (seam if rng.random() < 0.5 else -seam)[:, :, None]


def _edit_attribute(rng: Rng, person: Person, attribute: str, canvas: Image.Image, pixels: Pixels,
                    light: Callable[[Pixels], Pixels], strength: float) -> None:  # fmt: skip
    window = _window(person, pixels)
    unit = (person.box[2] - person.box[0]) / 2
    face, mood = person.identity, person.mood
    if attribute == "expression":
        mood = 1 - mood
    else:
        face = _change_age(rng, face)
    patch = _redraw(canvas, window, lambda draw: draw_face(pen_for(draw, person), person, face, mood),
                    unit * 0.015)  # fmt: skip
    patch = generator_look(rng, light(patch), pixels.shape[1] / 128, strength)
    # The patch has the shape of a rounded rectangle.
    x, y = _grid(person, window)
    distance = (np.abs(x / 0.86) ** 5 + np.abs((y - 0.12) / 1.0) ** 5) ** 0.2
    _blend(pixels, window, patch, np.clip((1.05 - distance) / 0.1, 0, 1))


def _change_age(rng: Rng, face: Identity) -> Identity:
    """Make a face older by wrinkles, white brows and a white beard, or young if it has wrinkles."""
    if face.wrinkles:
        return replace(face, wrinkles=0, beard="none")
    beard = face.beard if rng.random() < 0.4 else "full"
    return replace(face, wrinkles=1, hair_color="white", beard=beard)


def generator_look(rng: Rng, patch: Pixels, period: float, strength: float) -> Pixels:
    """Make a patch glossy: more saturation and contrast, and a regular texture, about 4 pixels of 128 wide."""
    gray = patch.mean(2, keepdims=True)
    saturation = 1.15 + 0.45 * strength
    contrast = 1.1 + 0.25 * strength
    patch = gray + (patch - gray) * saturation
    patch = (patch - patch.mean((0, 1))) * contrast + patch.mean((0, 1))
    phase = rng.random(2) * 6.283
    k = 6.283 / (period * (3.6 + 0.9 * float(rng.random())))
    xs = np.sin(np.arange(patch.shape[1]) * k + phase[0])
    ys = np.sin(np.arange(patch.shape[0]) * k + phase[1])
    return patch + (ys[:, None] * xs[None] * (7 + 12 * strength))[:, :, None].astype(np.float32)
