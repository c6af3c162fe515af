"""Manipulated faces, and what shows that they are.

The manipulation happens on the scene, before the camera: a manipulated face has the noise, blur and compression of its
picture. What shows is visible structure. A swap leaves the donor's skin inside a soft oval, between the forehead, ears
and neck of the target; it is slightly shifted, and has a seam around it. An edit of an attribute leaves a patch that a
generator rendered again: its tones are too rich for the neck, it ends at a border across forehead and cheeks, and it
has a faint regular texture; an edited expression may leave the brows as they were. The strength of all this varies;
few are faint.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from asap.newsroom.looks import Identity, Person, Plan
from asap.newsroom.pen import SCALE
from asap.newsroom.people import draw_face, draw_hair_and_hat, pen_for

Rng = np.random.Generator
Pixels = np.ndarray  # (height, width, 3) float32, 0 to 255
Window = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax in pixels


@dataclass(frozen=True)
class Studio:
    """The means of drawing a face of a picture anew."""

    canvas: Image.Image
    """The drawing without weather, at SCALE times the size of the picture."""
    weather: Image.Image
    """Confetti or rain on a transparent ground, at the same size: it stays in front of a manipulated face."""
    light: Callable[[Pixels], Pixels]
    """The light of the picture."""


def tamper(plan: Plan, rng: Rng, studio: Studio, pixels: Pixels) -> None:
    """Manipulate the target's face in `pixels`, in place.

    Args:
        plan: the picture, with the kind of manipulation.
        rng: decides the details.
        studio: what the picture was drawn with.
        pixels: (height, width, 3), the picture before the camera's noise.
    """
    person = plan.people[plan.target]
    strength = _draw_strength(rng)
    if plan.tamper == "swap" and plan.donor is not None:
        _swap_face(rng, person, plan.donor, studio, pixels, strength)
    elif plan.tamper == "attribute":
        _edit_attribute(rng, person, plan.attribute, studio, pixels, strength)


def _draw_strength(rng: Rng) -> float:
    """Draw a strength from 0 (faint) to 1 (plain): seven in ten are plain, one in ten is faint."""
    level = int(rng.integers(10))
    base = 0.1 if level == 0 else 0.45 if level < 3 else 0.7
    return base + 0.3 * float(rng.random())


def face_window(person: Person, pixels: Pixels, margin: float = 0.2) -> Window:
    """Return the face box with a margin, in widths of the face, clipped to the picture."""
    x0, y0, x1, y1 = person.box
    more = int((x1 - x0) * margin)
    return (max(0, x0 - more), max(0, y0 - more), min(pixels.shape[1], x1 + more), min(pixels.shape[0], y1 + more))


def face_grid(person: Person, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the window's pixels in units of the face, rotated with it; both (height, width)."""
    x0, y0, x1, y1 = person.box
    unit = (x1 - x0) / 2
    xs = (np.arange(window[0], window[2], dtype=np.float32) + 0.5 - (x0 + x1) / 2) / unit
    ys = (np.arange(window[1], window[3], dtype=np.float32) + 0.5 - (y0 + y1) / 2) / unit
    cos, sin = np.cos(np.radians(person.tilt)), np.sin(np.radians(person.tilt))
    return xs[None] * cos + ys[:, None] * sin, ys[:, None] * cos - xs[None] * sin


def _redraw(
    rng: Rng, studio: Studio, window: Window, person: Person, draw_on: Callable[[ImageDraw.ImageDraw], None]
) -> Pixels:
    """Draw a face on a copy of the canvas, below the person's hair and hat and the weather.

    Return the window at the size of the picture, as sharp as the picture, or a little softer or sharper.
    """
    x0, y0, x1, y1 = window
    large = (x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE)
    copy = studio.canvas.copy()
    draw = ImageDraw.Draw(copy)
    draw_on(draw)
    draw_hair_and_hat(draw, person)
    patch = copy.crop(large)
    focus, amount = int(rng.integers(4)), float(rng.random())
    if focus == 0:
        patch = patch.filter(ImageFilter.GaussianBlur(amount * SCALE * 0.01 * (person.box[2] - person.box[0])))
    elif focus == 1:
        patch = patch.filter(ImageFilter.UnsharpMask(2 * SCALE, int(100 * amount), 0))
    weather = studio.weather.crop(large)
    patch.paste(weather, (0, 0), weather)
    return studio.light(np.asarray(patch.reduce(SCALE), np.float32))


def _blend(pixels: Pixels, window: Window, patch: Pixels, mask: np.ndarray) -> None:
    view = pixels[window[1] : window[3], window[0] : window[2]]
    view += (patch - view) * mask[:, :, None]


def _swap_face(rng: Rng, person: Person, donor: Identity, studio: Studio, pixels: Pixels, strength: float) -> None:
    window = face_window(person, pixels)
    unit = (person.box[2] - person.box[0]) / 2
    dx, dy = ((rng.random(2) - 0.5) * 0.16 * unit * SCALE).tolist()
    grow = 0.94 + 0.1 * float(rng.random())
    pose = replace(person, expression=int(rng.integers(3)), turn=person.turn + int(rng.integers(-6, 7)))
    patch = _redraw(rng, studio, window, person, lambda draw: draw_face(pen_for(draw, pose, dx, dy, grow), pose, donor))
    # The soft oval; it leaves forehead, ears and hair of the target.
    x, y = face_grid(person, window)
    distance = np.sqrt((x / 0.80) ** 2 + ((y - 0.2) / 0.95) ** 2)
    soft = 0.12 + 0.14 * float(rng.random())
    mask = np.clip((1 + soft / 2 - distance) / soft, 0, 1)
    # Blending tools pull the donor's tones towards the target's. A strong trace means that this failed.
    view = pixels[window[1] : window[3], window[0] : window[2]]
    inner = mask > 0.5
    pull = 0.8 - 0.6 * strength
    patch += (view[inner].mean(0) - patch[inner].mean(0)) * pull
    _blend(pixels, window, patch, mask * (0.9 + 0.1 * strength))
    # The seam is a ring along the border of the oval, lighter or darker than its surroundings.
    seam = np.exp(-(((distance - 1) / 0.08) ** 2)) * (3 + 8 * strength)
    view += (seam if rng.random() < 0.5 else -seam)[:, :, None]


def _edit_attribute(rng: Rng, person: Person, attribute: str, studio: Studio, pixels: Pixels, strength: float) -> None:
    window = face_window(person, pixels)
    face, mood, brow_mood = person.identity, person.mood, None
    # A generator often edits the mouth and the eyes, and leaves the brows.
    keeps_brows = rng.random() < 0.5
    if attribute == "expression":
        mood = 1 - mood
        brow_mood = person.mood if keeps_brows else None
    else:
        face = _change_age(rng, face)
    patch = _redraw(
        rng, studio, window, person, lambda draw: draw_face(pen_for(draw, person), person, face, mood, brow_mood)
    )
    # The generator's tones: richer than those of the neck, and warmer or pinker.
    gray = patch.mean(2, keepdims=True)
    patch = gray + (patch - gray) * np.float32(1.15 + 0.4 * strength)
    tone = np.array(((16, 4, -14), (14, -8, 8))[int(rng.integers(2))], np.float32)
    patch += tone * np.float32(0.4 + 0.8 * strength)
    patch += screen_texture(rng, patch.shape[:2], pixels.shape[1] / 128, 1 + 2.5 * strength)
    # The patch has the shape of a rounded rectangle.
    x, y = face_grid(person, window)
    distance = (np.abs(x / 0.86) ** 5 + np.abs((y - 0.12) / 1.0) ** 5) ** 0.2
    _blend(pixels, window, patch, np.clip((1.05 - distance) / 0.1, 0, 1))


def _change_age(rng: Rng, face: Identity) -> Identity:
    """Make a face older by wrinkles, white brows and a white beard, or young if it has wrinkles."""
    if face.wrinkles:
        return replace(face, wrinkles=0, beard="none")
    beard = face.beard if rng.random() < 0.4 else "full"
    return replace(face, wrinkles=1, hair_color="white", beard=beard)


def screen_texture(rng: Rng, shape: tuple[int, ...], period: float, height: float) -> Pixels:
    """Return (height, width, 1): a regular texture, about 4 pixels of 128 wide, as screens and generators leave it."""
    phase = rng.random(2) * 6.283
    k = 6.283 / (period * (3.6 + 0.9 * float(rng.random())))
    xs = np.sin(np.arange(shape[1]) * k + phase[0])
    ys = np.sin(np.arange(shape[0]) * k + phase[1])
    return (ys[:, None] * xs[None] * height)[:, :, None].astype(np.float32)
