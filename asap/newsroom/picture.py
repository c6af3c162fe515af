"""A plan becomes a picture: scene, people, light, the manipulation, then the camera and a newsroom's edits."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from asap.newsroom.grammar import GLAD
from asap.newsroom.lexicon import SCENES
from asap.newsroom.looks import Person, Plan
from asap.newsroom.pen import SCALE, Pen
from asap.newsroom.people import draw_person, skin_of
from asap.newsroom.props import HANGING, draw_prop
from asap.newsroom.scenes import draw_mood, draw_scene
from asap.newsroom.tamper import Pixels, Studio, Window, face_grid, face_window, screen_texture, tamper

Rng = np.random.Generator


def draw_picture(plan: Plan, rng: Rng, tamper_rng: Rng) -> Image.Image:
    """Draw the picture of a plan.

    Args:
        plan: the plan.
        rng: decides everything but the manipulation, so it is the same for a picture and its manipulated twin.
        tamper_rng: decides the details of the manipulation.
    """
    canvas, weather = _draw_canvas(plan, rng)
    light = _draw_light(plan.facts.mood, rng)
    shown = canvas.copy()
    shown.paste(weather, (0, 0), weather)
    pixels = light(np.asarray(shown.reduce(SCALE), np.float32))
    tamper(plan, tamper_rng, Studio(canvas, weather, light), pixels)
    # What follows happens to authentic and manipulated faces alike, so no statistic of it tells them apart.
    for person in plan.people:
        _flatter(person, rng, pixels)
    _expose(rng, pixels)
    for person in plan.people:
        _smooth(person, rng, pixels)
    if rng.random() < 0.25:
        _retouch(plan, rng, pixels)
    return _publish(pixels, rng)


def _draw_canvas(plan: Plan, rng: Rng) -> tuple[Image.Image, Image.Image]:
    """Return the drawing, and the confetti or rain in front of it on a transparent ground."""
    width, height = plan.size
    canvas = Image.new("RGB", (width * SCALE, height * SCALE))
    pen = Pen(ImageDraw.Draw(canvas), 0, 0, height * SCALE)
    draw_scene(pen, rng, width / height, SCENES[plan.facts.scene].name)
    if rng.random() < 0.35:  # a shallow depth of field, on authentic and manipulated pictures alike
        canvas = canvas.filter(ImageFilter.BoxBlur(1 + 4 * float(rng.random())))
    draw = ImageDraw.Draw(canvas)
    # The lowest face is in front, so it is drawn last.
    for person in sorted(plan.people, key=lambda person: person.box[3]):
        draw_person(draw, person)
    _draw_prop(draw, plan, plan.people[plan.lead], rng)
    _draw_other_hands(draw, plan)
    weather = Image.new("RGBA", canvas.size)
    draw_mood(Pen(ImageDraw.Draw(weather), 0, 0, height * SCALE), rng, width / height, plan.facts.mood, 60)
    return canvas, weather


def _draw_prop(draw: ImageDraw.ImageDraw, plan: Plan, lead: Person, rng: Rng) -> None:
    """Draw the prop in the lead's hand: below the face, beside the chest, on the side with more room."""
    x0, _, x1, y1 = lead.box
    unit = (x1 - x0) / 2
    side = 1 if (x0 + x1) / 2 < plan.size[0] / 2 else -1
    x = (x0 + x1) / 2 + side * unit * 0.8
    reach = unit * (1.35 if plan.facts.prop in HANGING else 0.4)
    y = min(y1 + unit * 1.75, plan.size[1] - reach)
    draw_prop(Pen(draw, x * SCALE, y * SCALE, unit * SCALE), plan.facts.prop, skin_of(lead.identity))


def _draw_other_hands(draw: ImageDraw.ImageDraw, plan: Plan) -> None:
    """Draw a hand low at the side of the other people: its skin can be compared with the face."""
    for i, person in enumerate(plan.people):
        if i != plan.lead:
            x0, _, x1, y1 = person.box
            unit = (x1 - x0) / 2
            Pen(draw, (x0 + x1) / 2 * SCALE, (y1 + 1.7 * unit) * SCALE, unit * SCALE).oval(
                0.4, 0, 0.26, 0.2, skin_of(person.identity)
            )


def _draw_light(mood: int, rng: Rng) -> Callable[[Pixels], Pixels]:
    """Return a function that lights all pixels alike: warm and bright if glad, dim, cold and pale if grim."""
    a, b, c = rng.random(3).tolist()
    if mood == GLAD:
        gain = np.array([1.06, 1.02, 0.94], np.float32) * (0.94 + 0.08 * a)
        keep, lift = 1.0 + 0.2 * b, 8 * c
    else:
        gain = np.array([0.82, 0.88, 0.97], np.float32) * (0.84 + 0.14 * a)
        keep, lift = 0.5 + 0.3 * b, 6 * c

    def light(pixels: Pixels) -> Pixels:
        gray = pixels.mean(2, keepdims=True)
        out: Pixels = (gray + (pixels - gray) * np.float32(keep)) * gain + np.float32(lift)
        return out

    return light


def _flatter(person: Person, rng: Rng, pixels: Pixels) -> None:
    """Treat some heads as photographers do: a flash or a shadow in the face, a soft focus, or more clarity."""
    choice, amount = int(rng.integers(10)), float(rng.random())
    if choice >= 6:
        return
    window = face_window(person, pixels, 0.5)
    view = pixels[window[1] : window[3], window[0] : window[2]]
    if choice < 3:
        # A flash reaches the middle of the face more than forehead and neck. Its light falls off without an edge.
        view *= 1 + np.float32(0.5 * (amount - 0.5)) * _around_head(person, window, 0.9, 0.8)
    else:
        unit = (person.box[2] - person.box[0]) / 2
        soft = _blur(view, unit * (0.01 + 0.03 * amount))
        change = (soft - view) if choice < 5 else (view - soft) * np.float32(0.6)
        view += change * _around_head(person, window, 1.5, 0.5)


def _smooth(person: Person, rng: Rng, pixels: Pixels) -> None:
    """Take the noise off some heads, as the beauty filter of a telephone does, or add some."""
    choice, amount = int(rng.integers(10)), float(rng.random())
    if choice >= 4:
        return
    window = face_window(person, pixels, 0.5)
    view = pixels[window[1] : window[3], window[0] : window[2]]
    mask = _around_head(person, window, 1.5, 0.5)
    if choice < 3:
        view += (_blur(view, 0.5 + 0.7 * amount) - view) * mask
    else:
        view += rng.standard_normal(view.shape[:2], np.float32)[:, :, None] * mask * np.float32(1 + 4 * amount)


def _around_head(person: Person, window: Window, reach: float, soft: float) -> np.ndarray:
    """Return (height, width, 1): 1 in the middle of the face, falling to 0 around it without an edge.

    Args:
        person: the person with the face.
        window: the window of the picture.
        reach: half the width of the ellipse at whose border it is one half, in units of the face.
        soft: the width of the fall, in half widths of the ellipse.
    """
    x, y = face_grid(person, window)
    distance = np.sqrt(x**2 + ((y - 0.1) / 1.15) ** 2) / reach
    return np.clip((1 + soft / 2 - distance) / soft, 0, 1)[:, :, None].astype(np.float32)


def _blur(view: Pixels, radius: float) -> Pixels:
    image = Image.fromarray(np.clip(view, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def _expose(rng: Rng, pixels: Pixels) -> None:
    """Add the camera's noise to the whole picture, stronger or weaker where it is bright; rarely a screen's pattern."""
    sigma, slope, grain = 1.5 + 5.0 * float(rng.random()), 0.8 * (float(rng.random()) - 0.5), rng.random()
    noise = rng.standard_normal(pixels.shape[:2], np.float32)
    if grain < 0.4:  # noise of a camera that interpolates its pixels: coarser
        shifted = noise + np.roll(noise, 1, 0)
        noise = (shifted + np.roll(shifted, 1, 1)) / np.float32(2)
    level = 1 + np.float32(slope) * (pixels.mean(2) / 128 - 1)
    pixels += (noise * level * np.float32(sigma))[:, :, None]
    screened, height = rng.random() < 0.2, 1 + 3 * float(rng.random())
    texture = screen_texture(rng, pixels.shape[:2], pixels.shape[1] / 128, height)
    if screened:
        pixels += texture


def _retouch(plan: Plan, rng: Rng, pixels: Pixels) -> None:
    """Edit a spot harmlessly, away from every face: smooth it, or give it the fine pattern of a screen."""
    width, height = plan.size
    w, h = (rng.integers(16, 34, 2) * (width, height) // 100).tolist()
    x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
    if any(x < x1 and x + w > x0 and y < y1 and y + h > y0 for x0, y0, x1, y1 in plan.boxes):
        return
    view = pixels[y : y + h, x : x + w]
    if rng.random() < 0.5:
        view[:] = _blur(view, 3)
    else:
        view += screen_texture(rng, view.shape[:2], width / 128, 4 + 8 * float(rng.random()))


def _publish(pixels: Pixels, rng: Rng) -> Image.Image:
    """Apply the edits that any picture, manipulated or not, goes through before it is printed."""
    contrast, shift = 0.88 + 0.24 * float(rng.random()), 24 * (float(rng.random()) - 0.5)
    pixels = (pixels - 128) * np.float32(contrast) + np.float32(128 + shift)
    if rng.random() < 0.3:  # a vignette: brighter in the middle, darker in the corners
        ys = np.linspace(-1, 1, pixels.shape[0], dtype=np.float32)[:, None, None]
        xs = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32)[None, :, None]
        pixels *= 1.04 - np.float32(0.16) * (xs * xs + ys * ys)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    nearly_gray, amount = int(rng.integers(20)) == 0, float(rng.random())
    if nearly_gray:
        image = ImageEnhance.Color(image).enhance(0.4 * amount)
    edit = int(rng.integers(10))
    if edit < 2:
        image = image.filter(ImageFilter.UnsharpMask(1, 60, 2))
    elif edit < 4:
        image = image.filter(ImageFilter.GaussianBlur(0.4 + 1.2 * amount))
    elif edit < 6:  # a copy that was smaller once
        small = (round(image.width * (0.4 + 0.5 * amount)), round(image.height * (0.4 + 0.5 * amount)))
        image = image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)
    if rng.random() < 0.25:
        _draw_logo(image, rng)
    return image


def _draw_logo(image: Image.Image, rng: Rng) -> None:
    """Draw an agency's logo in a lower corner."""
    width, height = image.size
    color = ((210, 40, 40), (30, 60, 140), (240, 240, 240), (30, 30, 30))[int(rng.integers(4))]
    size = height // 14
    x = 4 if rng.random() < 0.5 else width - 4 - 3 * size
    draw = ImageDraw.Draw(image)
    draw.rectangle((x, height - 4 - size, x + 3 * size, height - 4), fill=color)
    ink = (30, 30, 30) if sum(color) > 500 else (250, 250, 250)
    for i in range(3):
        draw.rectangle((x + 4 + i * size, height - size, x + i * size + size - 3, height - 8), fill=ink)
