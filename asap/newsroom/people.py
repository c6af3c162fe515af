"""A person, drawn: body, head, face. One unit is half the width of the face; the origin is the center of the face."""

from PIL import ImageDraw

from asap.newsroom import lexicon
from asap.newsroom.grammar import GLAD
from asap.newsroom.looks import SKINS, Identity, Person
from asap.newsroom.pen import SCALE, Color, Pen, half_oval, mix, shade

_EYES: tuple[Color, ...] = ((70, 42, 24), (44, 78, 122), (52, 92, 58), (96, 72, 36), (34, 30, 34))
_DARK: Color = (36, 26, 28)


def skin_of(identity: Identity) -> Color:
    """Return the RGB color of the identity's skin."""
    base = SKINS[identity.skin]
    r, g, b = (max(0, min(255, base[i] + identity.tint[i])) for i in range(3))
    return (r, g, b)


def pen_for(draw: ImageDraw.ImageDraw, person: Person, dx: float = 0, dy: float = 0, grow: float = 1.0) -> Pen:
    """Return a pen for the person's face, shifted by (dx, dy) canvas pixels and scaled by `grow`."""
    x0, y0, x1, y1 = person.box
    unit = (x1 - x0) / 2 * SCALE
    return Pen(draw, (x0 + x1) / 2 * SCALE + dx, (y0 + y1) / 2 * SCALE + dy, unit * grow, person.tilt)


def draw_person(draw: ImageDraw.ImageDraw, person: Person) -> None:
    """Draw the whole person, from back to front."""
    pen = pen_for(draw, person)
    skin = skin_of(person.identity)
    hair = lexicon.HAIR_COLORS[person.identity.hair_color]
    _draw_back_hair(pen, person.identity.hair, hair)
    _draw_body(pen, person, skin)
    for side in (-1, 1):
        pen.oval(side * 0.99, 0.12, 0.16, 0.26, shade(skin, 0.9))
    draw_face(pen, person, person.identity)
    draw_hair_and_hat(draw, person)


def draw_hair_and_hat(draw: ImageDraw.ImageDraw, person: Person) -> None:
    """Draw what lies over the face: the front hair and the hat."""
    pen = pen_for(draw, person)
    _draw_front_hair(pen, person.identity.hair, lexicon.HAIR_COLORS[person.identity.hair_color])
    _draw_hat(pen, person)


def _draw_body(pen: Pen, person: Person, skin: Color) -> None:
    body = pen.at(0, 0)  # upright: only the head is tilted
    color = lexicon.COLORS[person.color]
    dark = shade(color, 0.78)
    torso = [(-0.5, 1.42), (-1.45, 1.72), (-1.9, 2.3), (-2.15, 8), (2.15, 8), (1.9, 2.3), (1.45, 1.72), (0.5, 1.42)]
    body.shape(torso, color)
    body.line([(-1.35, 2.75), (-1.5, 8)], 0.07, dark)
    body.line([(1.35, 2.75), (1.5, 8)], 0.07, dark)
    pen.shape([(-0.48, 0.6), (0.48, 0.6), (0.52, 1.62), (0, 1.86), (-0.52, 1.62)], skin)
    pen.shape([(-0.48, 1.05), (0, 1.42), (0.48, 1.05), (0.48, 1.25), (0, 1.55), (-0.48, 1.25)], shade(skin, 0.84))
    if person.garment in ("jacket", "coat"):
        body.shape([(-0.5, 1.42), (0.5, 1.42), (0, 3.0)], (240, 240, 238) if person.color != "white" else (60, 70, 90))
        pen.shape([(-0.42, 1.2), (0.42, 1.2), (0, 1.78)], shade(skin, 0.84))
        body.shape([(-0.55, 1.42), (-1.0, 1.95), (-0.1, 3.1), (-0.1, 2.7)], dark)
        body.shape([(0.55, 1.42), (1.0, 1.95), (0.1, 3.1), (0.1, 2.7)], dark)
    elif person.garment == "shirt":
        body.shape([(-0.55, 1.4), (-0.62, 1.85), (0, 1.95), (0, 1.75)], shade(color, 1.25))
        body.shape([(0.55, 1.4), (0.62, 1.85), (0, 1.95), (0, 1.75)], shade(color, 1.25))
        body.line([(0, 1.9), (0, 8)], 0.05, dark)
    elif person.garment == "sweater":
        body.arc(0, 1.42, 0.56, 0.42, 0.16, dark)
        for y in (2.5, 2.8):
            body.line([(-1.3, y), (1.3, y)], 0.09, shade(color, 1.35))
    else:
        body.shape([(-0.75, 1.3), (0.75, 1.3), (0.85, 1.85), (0, 2.05), (-0.85, 1.85)], shade(color, 0.88))
        body.shape([(0.15, 1.8), (0.6, 1.8), (0.7, 3.4), (0.25, 3.4)], shade(color, 0.7))


def draw_face(
    pen: Pen, person: Person, identity: Identity, mood: int | None = None, brow_mood: int | None = None
) -> None:
    """Draw a face.

    Args:
        pen: the pen of the face.
        person: the pose and the mood.
        identity: the features.
        mood: a mood in place of the person's.
        brow_mood: another mood for the brows alone.
    """
    skin = mix(shade(skin_of(identity), 1 + identity.tan / 100), (222, 84, 64), identity.sunburn / 100)
    jaw = identity.jaw / 100
    turn = person.turn / 100
    pen.oval(0, -0.18, 1.0, 1.06, skin)
    pen.shape([(-1.0, -0.15), (-0.95, 0.45), (-0.72 - jaw, 0.95), (-0.3, 1.24), (0.3, 1.24), (0.72 + jaw, 0.95),
               (0.95, 0.45), (1.0, -0.15)], skin)  # fmt: skip
    # The side that is turned away lies in shade.
    side = 1 if turn > 0 else -1
    pen.shape([(-side * 1.0, -0.5), (-side * 0.95, 0.45), (-side * (0.72 + jaw), 0.95), (-side * 0.3, 1.24),
               (-side * 0.62, 0.6), (-side * 0.82, -0.5)], shade(skin, 0.9))  # fmt: skip
    glad = (person.mood if mood is None else mood) == GLAD
    if identity.blush:
        for side in (-1, 1):
            pen.oval(side * 0.56 + turn, 0.38, 0.22, 0.16, mix(skin, (226, 84, 84), 0.3))
    _draw_beard(pen, identity, turn)
    _draw_eyes(pen, identity, turn, glad, glad if brow_mood is None else brow_mood == GLAD)
    _draw_nose(pen, identity, turn, skin)
    _draw_mouth(pen, identity, person.expression, turn, glad, skin)
    if identity.wrinkles:
        _draw_wrinkles(pen, turn, skin)
    _draw_glasses(pen, identity, turn)


def _draw_eyes(pen: Pen, identity: Identity, turn: float, glad: bool, glad_brows: bool) -> None:
    brow = shade(lexicon.HAIR_COLORS[identity.hair_color], 0.7)
    size = identity.eye_size / 100
    for side in (-1, 1):
        x = side * 0.4 * identity.eye_gap / 100 + turn
        pen.oval(x, -0.1, 0.21 * size, (0.15 if glad else 0.12) * size, (250, 250, 248))
        pen.oval(x + turn * 0.4, -0.09, 0.105 * size, 0.115 * size, _EYES[identity.eye])
        pen.oval(x + turn * 0.4, -0.09, 0.05 * size, 0.055 * size, (16, 14, 16))
        # Grim brows are low between the eyes and steep.
        inner, bend, outer = (-0.44, -0.52, -0.42) if glad_brows else (-0.27, -0.4, -0.4)
        width = 0.11 * identity.brow / 100
        pen.line([(x - side * 0.23, inner), (x, bend), (x + side * 0.25, outer)], width, brow)


def _draw_nose(pen: Pen, identity: Identity, turn: float, skin: Color) -> None:
    dark = shade(skin, 0.76)
    x = turn * 1.5
    if identity.nose == 0:
        pen.arc(x, 0.27, 0.16, 0.12, 0.07, dark)
    elif identity.nose == 1:
        pen.shape([(turn, -0.05), (x + 0.19, 0.36), (x - 0.16, 0.36)], shade(skin, 0.86))
    else:
        pen.line([(turn, -0.02), (x + 0.15, 0.32), (x - 0.06, 0.36)], 0.07, dark)


def _draw_mouth(pen: Pen, identity: Identity, style: int, turn: float, glad: bool, skin: Color) -> None:
    x, width = turn * 1.2, 0.46 * identity.mouth / 100
    lip = (150, 46, 48) if identity.skin < 5 else (128, 40, 44)
    if glad:
        if style == 2:
            pen.arc(x, 0.6, width, 0.24, 0.1, lip)
        else:
            pen.shape(half_oval(x, 0.56, width, 0.4 if style else 0.3), lip)
            pen.shape(half_oval(x, 0.56, width * 0.86, 0.15), (252, 250, 246))
        return
    if style == 2:
        pen.oval(x, 0.78, width * 0.5, 0.16, (92, 26, 30))
        pen.arc(x, 0.82, width * 0.8, -0.26, 0.09, lip)
    else:
        pen.arc(x, 0.9, width, -0.28 if style else -0.22, 0.11, lip)
        pen.line([(x - 0.16, 1.0), (x + 0.16, 1.0)], 0.05, shade(skin, 0.78))


def _draw_beard(pen: Pen, identity: Identity, turn: float) -> None:
    color = shade(lexicon.HAIR_COLORS[identity.hair_color], 0.9)
    x = turn * 1.2
    if identity.beard in ("full", "stubble"):
        if identity.beard == "stubble":
            color = shade(skin_of(identity), 0.78)
        pen.shape([(-0.97, 0.15), (-0.92, 0.55), (-0.72, 1.0), (-0.3, 1.3), (0.3, 1.3), (0.72, 1.0), (0.92, 0.55),
                   (0.97, 0.15), (0.74, 0.42), (x + 0.3, 0.44), (x - 0.3, 0.44), (-0.74, 0.42)], color)  # fmt: skip
    elif identity.beard == "goatee":
        pen.oval(x, 1.05, 0.36, 0.26, color)
    elif identity.beard == "moustache":
        pen.shape([(x - 0.5, 0.58), (x - 0.3, 0.42), (x, 0.46), (x + 0.3, 0.42), (x + 0.5, 0.58), (x, 0.56)], color)


def _draw_wrinkles(pen: Pen, turn: float, skin: Color) -> None:
    dark = shade(skin, 0.72)
    for y in (-0.74, -0.6):
        pen.line([(-0.42 + turn, y), (turn, y - 0.05), (0.42 + turn, y)], 0.045, dark)
    for side in (-1, 1):
        x = side * 0.42 + turn
        pen.arc(x, 0.06, 0.22, 0.1, 0.05, dark)
        pen.line([(side * 0.34 + turn, 0.3), (side * 0.58 + turn, 0.68)], 0.055, dark)
        pen.line([(side * 0.72 + turn, -0.16), (side * 0.88 + turn, -0.24)], 0.045, dark)


def _draw_glasses(pen: Pen, identity: Identity, turn: float) -> None:
    if identity.glasses == "none":
        return
    gap = 0.42 * identity.eye_gap / 100
    for side in (-1, 1):
        x = side * gap + turn
        if identity.glasses == "dark":
            pen.oval(x, -0.08, 0.34, 0.27, (24, 24, 30))
            pen.line([(x - 0.16, -0.16), (x - 0.04, -0.24)], 0.05, (150, 156, 170))
        elif identity.glasses == "round":
            pen.ring(x, -0.08, 0.31, 0.29, 0.07, (40, 36, 40))
        else:
            pen.line([(x - 0.33, -0.3), (x + 0.33, -0.3), (x + 0.3, 0.14), (x - 0.3, 0.14), (x - 0.33, -0.34)], 0.08,
                     (88, 34, 38))  # fmt: skip
        pen.line([(x + side * 0.31, -0.14), (side * 0.98, -0.12)], 0.06, (40, 36, 40))
    pen.line([(turn - 0.12, -0.12), (turn + 0.12, -0.12)], 0.06, (40, 36, 40))


def _draw_back_hair(pen: Pen, style: str, hair: Color) -> None:
    if style == "long":
        pen.shape([(-1.2, -0.5), (-1.34, 1.0), (-1.22, 1.9), (1.22, 1.9), (1.34, 1.0), (1.2, -0.5)], shade(hair, 0.85))
        pen.oval(0, -0.45, 1.2, 0.98, shade(hair, 0.85))
    elif style == "bob":
        pen.oval(0, -0.05, 1.32, 1.28, shade(hair, 0.85))
    elif style == "curly":
        for x, y in ((-0.95, -0.5), (0.95, -0.5), (-0.7, -1.05), (0.7, -1.05), (0, -1.2), (-1.1, 0), (1.1, 0)):
            pen.oval(x, y, 0.48, 0.46, shade(hair, 0.88))
    elif style == "bun":
        pen.oval(0, -1.45, 0.45, 0.4, hair)
        pen.oval(0, -0.35, 1.1, 1.05, shade(hair, 0.85))
    elif style in ("short", "side", "spiky"):
        pen.oval(0, -0.4, 1.1, 0.96, shade(hair, 0.85))


def _draw_front_hair(pen: Pen, style: str, hair: Color) -> None:
    cap = [(1.04, -0.42), *half_oval(0, -0.44, 1.05, -0.92), (-1.04, -0.42)]
    if style == "bald":
        pen.line([(-0.36, -1.02), (-0.12, -1.1)], 0.09, shade((255, 255, 255), 0.97))
    elif style == "receding":
        for side in (-1, 1):
            pen.shape([(side * 1.06, 0.0), (side * 1.07, -0.5), (side * 0.86, -0.92), (side * 0.84, -0.4)], hair)
    elif style == "side":
        pen.shape([*cap, (-0.86, -0.5), (-0.5, -0.95), (0.7, -0.62)], hair)
    elif style == "spiky":
        pen.shape([(1.04, -0.4), (1.12, -0.95), (0.84, -0.98), (0.7, -1.48), (0.4, -1.2), (0.16, -1.62), (-0.12, -1.24),
                   (-0.46, -1.55), (-0.62, -1.12), (-1.0, -1.24), (-1.04, -0.4), (-0.8, -0.72), (0.8, -0.72)],
                  hair)  # fmt: skip
    elif style == "curly":
        for i in range(-3, 4):
            pen.oval(i * 0.27, -0.92 + abs(i) * 0.07, 0.27, 0.27, hair)
    elif style == "bob":
        pen.shape([*cap, (-0.96, -0.1), (-0.8, -0.58), (0.8, -0.58), (0.96, -0.1)], hair)
    else:
        pen.shape([*cap, (-0.9, -0.55), (-0.3, -0.78), (0.4, -0.74), (0.9, -0.55)], hair)


def _draw_hat(pen: Pen, person: Person) -> None:
    color = lexicon.COLORS[person.hat_color]
    if person.hat == "cap":
        pen.shape(half_oval(0, -0.66, 1.1, -0.78), color)
        pen.shape([(-1.1, -0.7), (1.1, -0.7), (1.3, -0.56), (-0.9, -0.54)], shade(color, 0.7))
    elif person.hat == "beanie":
        pen.shape(half_oval(0, -0.62, 1.12, -0.92), color)
        pen.rect(-1.14, -0.86, 1.14, -0.58, shade(color, 0.8))
        pen.oval(0, -1.56, 0.2, 0.2, shade(color, 1.3))
    elif person.hat == "brim":
        pen.shape([(-0.88, -0.7), (-0.76, -1.45), (0.76, -1.45), (0.88, -0.7)], color)
        pen.oval(0, -0.7, 1.5, 0.2, shade(color, 0.82))
        pen.rect(-0.86, -0.98, 0.86, -0.8, shade(color, 0.5))
    elif person.hat == "helmet":
        pen.shape(half_oval(0, -0.55, 1.18, -1.0), color)
        pen.rect(-1.24, -0.68, 1.24, -0.5, shade(color, 0.72))
        pen.rect(-0.12, -1.54, 0.12, -0.66, shade(color, 1.3))
