"""The plan of a picture: everything about it and its people that is decided before a pixel is drawn.

All random values are integers, so annotations are the same on any machine.
"""

from dataclasses import dataclass

import numpy as np

from asap.newsroom import lexicon
from asap.newsroom.grammar import GLAD, GRIM, PEOPLE, Facts, chance, pick
from asap.newsroom.lexicon import SCENES

Rng = np.random.Generator
Box = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax in pixels

SKINS: tuple[tuple[int, int, int], ...] = (
    (255, 222, 196), (246, 204, 168), (232, 184, 140), (212, 158, 112),
    (184, 128, 86), (152, 100, 64), (118, 76, 48), (90, 58, 40),
)  # fmt: skip
HAIR_STYLES = ("short", "long", "bald", "bob", "curly", "bun", "side", "spiky", "receding")
HATS = ("none",) * 9 + ("cap", "beanie", "brim", "helmet")
BEARDS = ("none",) * 5 + ("full", "moustache", "goatee", "stubble")
GLASSES = ("none",) * 4 + ("round", "square", "dark")
SIZES = ((320, 240), (336, 224), (288, 288), (256, 320), (352, 256), (256, 256), (304, 224), (240, 304))
# The face's width in thousandths of the picture's shorter side, by number of people.
_FACE_WIDTHS = {1: (270, 400), 2: (230, 310), 3: (190, 240), 4: (175, 205)}


@dataclass(frozen=True)
class Identity:
    """The features that a face swap brings along.

    `skin` is an index into SKINS, `tint` a small RGB shift. Shapes are in percent. So are `tan` and `sunburn`: a face
    is never quite as light as its neck, and some are far from it.
    """

    skin: int
    tint: tuple[int, int, int]
    hair: str
    hair_color: str
    beard: str
    glasses: str
    wrinkles: int
    eye: int
    eye_size: int
    eye_gap: int
    nose: int
    mouth: int
    brow: int
    jaw: int
    tan: int
    sunburn: int
    blush: int


@dataclass(frozen=True)
class Person:
    """One person in the picture. `box` is the face box, `tilt` in degrees, `turn` in percent of half a face."""

    identity: Identity
    box: Box
    mood: int
    expression: int
    hat: str
    hat_color: str
    garment: str
    color: str
    tilt: int
    turn: int


@dataclass(frozen=True)
class Plan:
    """A picture before it is drawn. `tamper` is "", "swap" or "attribute"; `target` is the index of that face."""

    size: tuple[int, int]
    facts: Facts
    people: tuple[Person, ...]
    lead: int
    tamper: str = ""
    target: int = 0
    donor: Identity | None = None
    attribute: str = ""

    @property
    def boxes(self) -> list[Box]:
        """The face boxes of all people, left to right."""
        return [person.box for person in self.people]


def draw_identity(rng: Rng) -> Identity:
    """Draw a new face."""
    tint = tuple(int(v) for v in rng.integers(-7, 8, 3))
    return Identity(
        skin=int(rng.integers(len(SKINS))),
        tint=(tint[0], tint[1], tint[2]),
        hair=pick(rng, HAIR_STYLES),
        hair_color=pick(rng, list(lexicon.HAIR_COLORS)),
        beard=pick(rng, BEARDS),
        glasses=pick(rng, GLASSES),
        wrinkles=int(chance(rng, 15)),
        eye=int(rng.integers(5)),
        eye_size=int(rng.integers(85, 121)),
        eye_gap=int(rng.integers(90, 113)),
        nose=int(rng.integers(3)),
        mouth=int(rng.integers(85, 118)),
        brow=int(rng.integers(70, 131)),
        jaw=int(rng.integers(-10, 14)),
        tan=int(rng.integers(-6, 5)) if chance(rng, 75) else int(rng.integers(-20, 17)),
        sunburn=int(rng.integers(5, 26)) if chance(rng, 20) else 0,
        blush=int(chance(rng, 30)),
    )


def draw_donor(rng: Rng, target: Identity) -> Identity:
    """Draw a face for a swap: its skin is usually far from the target's, sometimes only one tone away."""
    least = 2 if chance(rng, 80) else 1
    while True:
        donor = draw_identity(rng)
        if abs(donor.skin - target.skin) >= least:
            return donor


def draw_plan(rng: Rng, tamper: str) -> Plan:
    """Draw the scene, people and layout of a picture.

    Everything but the manipulation is the same for any `tamper`.
    """
    size = SIZES[int(rng.integers(len(SIZES)))]
    scene = int(rng.integers(len(SCENES)))
    mood = GLAD if chance(rng, 50) else GRIM
    count = PEOPLE[int(rng.integers(len(PEOPLE)))]
    boxes = _draw_boxes(rng, size, count)
    lead = max(range(count), key=lambda i: boxes[i][3])  # the one in front
    people = tuple(_draw_person(rng, box, mood, i == lead) for i, box in enumerate(boxes))
    prop = pick(rng, SCENES[scene].props)
    facts = Facts(scene, mood, count, prop, people[lead].color, people[lead].garment)
    # The manipulation is drawn even if it is not used: the random numbers that follow are the same either way.
    target = int(rng.integers(count))
    donor = draw_donor(rng, people[target].identity)
    attribute = "expression" if chance(rng, 65) else "age"
    if not tamper:
        return Plan(size, facts, people, lead)
    return Plan(size, facts, people, lead, tamper, target, donor, attribute)


def _draw_person(rng: Rng, box: Box, mood: int, lead: bool) -> Person:
    # Companions do not always share the lead's mood: a single sad face does not prove a manipulation.
    mood = mood if lead or chance(rng, 90) else 1 - mood
    return Person(
        identity=draw_identity(rng),
        box=box,
        mood=mood,
        expression=int(rng.integers(3)),
        hat=pick(rng, HATS),
        hat_color=pick(rng, list(lexicon.COLORS)),
        garment=pick(rng, lexicon.GARMENTS),
        color=pick(rng, list(lexicon.COLORS)),
        tilt=int(rng.integers(-9, 10)),
        turn=int(rng.integers(-14, 15)),
    )


def _draw_boxes(rng: Rng, size: tuple[int, int], count: int) -> list[Box]:
    """Draw face boxes from left to right.

    They do not overlap, and heads and shoulders lie inside the picture.
    """
    width, height = size
    low, high = _FACE_WIDTHS[count]
    slot = width // count
    boxes = []
    for i in range(count):
        face_w = min(width, height) * int(rng.integers(low, high + 1)) // 1000
        # No face is narrower or shorter than 16 % of the picture's width, so wide pictures get larger faces.
        face_w = min(max(face_w, width * 17 // 100), slot * 74 // 100)
        face_h = face_w * 5 // 4
        slack = max((slot - face_w * 13 // 10) // 2, 1)
        x = i * slot + slot // 2 - face_w // 2 + int(rng.integers(-slack, slack + 1))
        top = face_h * 24 // 100
        room = height - face_h * 176 // 100 - top  # below the chin: chest, hand, and what it holds
        y = top + int(rng.integers(0, max(room, height // 20)))
        boxes.append((x, y, x + face_w, y + face_h))
    return boxes
