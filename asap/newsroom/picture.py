"""A plan becomes a picture: scene, people, light and camera noise, then the manipulation, then a newsroom's edits."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from asap.newsroom.grammar import GLAD
from asap.newsroom.lexicon import SCENES
from asap.newsroom.looks import Person, Plan
from asap.newsroom.pen import SCALE, Pen
from asap.newsroom.people import draw_person, skin_of
from asap.newsroom.props import HANGING, draw_prop
from asap.newsroom.scenes import draw_mood, draw_scene
from asap.newsroom.tamper import Pixels, generator_look, tamper

Rng = np.random.Generator


def draw_picture(plan: Plan, rng: Rng, tamper_rng: Rng) -> Image.Image:
    """Draw the picture of a plan.

    Args:
        plan: the plan.
        rng: decides everything but the manipulation, so it is the same for a picture and its manipulated twin.
        tamper_rng: decides the details of the manipulation.
    """
    canvas = _draw_canvas(plan, rng)
    light = _draw_light(plan.facts.mood, rng)
    pixels = light(np.asarray(canvas.reduce(SCALE), np.float32))
    # The camera's noise comes before the manipulation: a swapped face does not have it.
    sigma = np.float32(2.0 + 5.0 * float(rng.random()))
    pixels += rng.standard_normal(pixels.shape[:2], np.float32)[:, :, None] * sigma
    if rng.random() < 0.25:
        _retouch(plan, rng, pixels)
    tamper(plan, tamper_rng, canvas, pixels, light)
    return _publish(pixels, rng)


def _draw_canvas(plan: Plan, rng: Rng) -> Image.Image:
    width, height = plan.size
    canvas = Image.new("RGB", (width * SCALE, height * SCALE))
    pen = Pen(ImageDraw.Draw(canvas), 0, 0, height * SCALE)
    draw_scene(pen, rng, width / height, SCENES[plan.facts.scene].name)
    if rng.random() < 0.35:  # a shallow depth of field, on authentic and manipulated pictures alike
        canvas = canvas.filter(ImageFilter.BoxBlur(1 + 4 * float(rng.random())))
    draw = ImageDraw.Draw(canvas)
    pen = Pen(draw, 0, 0, height * SCALE)
    # The lowest face is in front, so it is drawn last.
    for person in sorted(plan.people, key=lambda person: person.box[3]):
        draw_person(draw, person)
    _draw_prop(draw, plan, plan.people[plan.lead], rng)
    _draw_other_hands(draw, plan)
    draw_mood(pen, rng, width / height, plan.facts.mood, 60)
    return canvas


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


def _retouch(plan: Plan, rng: Rng, pixels: Pixels) -> None:
    """Edit a spot harmlessly, away from every face: smooth it, or give it the fine pattern of a screen."""
    width, height = plan.size
    w, h = (rng.integers(16, 34, 2) * (width, height) // 100).tolist()
    x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
    if any(x < x1 and x + w > x0 and y < y1 and y + h > y0 for x0, y0, x1, y1 in plan.boxes):
        return
    view = pixels[y : y + h, x : x + w]
    if rng.random() < 0.5:
        spot = Image.fromarray(np.clip(view, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
        view[:] = np.asarray(spot, np.float32)
    else:
        view[:] = generator_look(rng, view, width / 128, float(rng.random()))


def _publish(pixels: Pixels, rng: Rng) -> Image.Image:
    """Apply the edits that any picture, manipulated or not, goes through before it is printed."""
    contrast, shift = 0.92 + 0.16 * float(rng.random()), 12 * (float(rng.random()) - 0.5)
    pixels = (pixels - 128) * np.float32(contrast) + np.float32(128 + shift)
    if rng.random() < 0.3:  # a vignette: brighter in the middle, darker in the corners
        ys = np.linspace(-1, 1, pixels.shape[0], dtype=np.float32)[:, None, None]
        xs = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32)[None, :, None]
        pixels *= 1.04 - np.float32(0.16) * (xs * xs + ys * ys)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    edit = int(rng.integers(10))
    if edit < 2:
        image = image.filter(ImageFilter.UnsharpMask(1, 60, 2))
    elif edit < 4:
        image = image.filter(ImageFilter.GaussianBlur(0.6))
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
