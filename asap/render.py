"""Evidence for a person: the face boxed on the picture, the words marked in the text.

Everything here works on a `Finding` and knows no model. `segments` is the one place that turns word offsets
into pieces of text; the picture, the HTML and the terminal are drawn from it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont, ImageOps

from asap.finding import Box, Finding, Word
from asap.labels import IMAGE_TYPES

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Piece = tuple[str, Word | None]
Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
PAPER: Colour = (250, 249, 246)
INK: Colour = (28, 27, 31)
QUIET: Colour = (104, 101, 110)
PLATE: Colour = (232, 229, 222)
VERDICT_COLOURS: dict[str | None, Colour] = {
    "manipulated": (200, 44, 28),
    "review": (158, 98, 0),
    "authentic": (15, 112, 104),
    None: QUIET,
}
LEVEL_EDGES = (0.6, 0.75, 0.9)
LEVEL_COLOURS: tuple[Colour, ...] = ((255, 238, 196), (255, 217, 148), (255, 188, 118), (255, 154, 112))
"""Behind a marked word, by `level`; INK on each of them has a contrast of 8 to 1 or more."""

MIN_WIDTH = 640
"""Pixels of a picture with a strip: a narrower one is enlarged, at most to this height too, so that its words fit."""
MAX_LINES = 14
"""Lines of text in the strip; what is beyond is counted, not drawn."""


def segments(text: str, words: Sequence[Word] | None) -> list[Piece]:
    """The text in pieces, each with the flagged word it belongs to, or None; joined they are the text again.

    Offsets beyond the text are cut to it. Where words overlap, the one that starts first keeps the overlap.
    """
    pieces: list[Piece] = []
    cursor = 0
    for word in sorted(words or (), key=lambda word: (word.start, word.end)):
        start, end = max(word.start, cursor), min(word.end, len(text))
        if start >= end:
            continue
        if start > cursor:
            pieces.append((text[cursor:start], None))
        pieces.append((text[start:end], word))
        cursor = end
    if cursor < len(text):
        pieces.append((text[cursor:], None))
    return pieces


def level(score: float) -> int:
    """How strongly a word is marked, 1 to 4, for its probability of being manipulated."""
    return 1 + sum(score >= edge for edge in LEVEL_EDGES)


def mark_words_html(text: str, words: Sequence[Word] | None) -> Markup:
    """The text as HTML, safe whatever it holds: everything escaped, flagged words in `<mark data-level title>`."""
    mark = Markup('<mark data-level="{}" title="manipulated: {:.2f}">{}</mark>')
    return Markup("").join(
        mark.format(level(word.score), word.score, piece) if word else piece for piece, word in segments(text, words)
    )


def draw_evidence(
    image: Image.Image, finding: Finding, text: str | None = None, *, font: Path | None = None
) -> Image.Image:
    """A new RGB picture: the face box with its types, and below it, where `text` is given, a strip of evidence.

    `image` is upright (EXIF rotation applied) and may be smaller than the original: the box is scaled from
    `finding.width` and `height`. The strip holds verdict, score, types and the text with its flagged words.
    The built-in font has ASCII and little more (é is drawn as e); `font`, a TrueType file, brings the text's script.
    """
    picture = image.convert("RGB") if text is None else _enlarged(image.convert("RGB"))
    if finding.box_px is not None:
        size = finding.width or image.width, finding.height or image.height
        _draw_box(picture, _scaled_box(finding.box_px, size, picture.size), _labels(finding, IMAGE_TYPES))
    return picture if text is None else _above_strip(picture, _strip(finding, text, picture.width, font))


def _enlarged(picture: Image.Image) -> Image.Image:
    scale = MIN_WIDTH / max(picture.size)
    return picture if scale <= 1 else ImageOps.scale(picture, scale)


def _labels(finding: Finding, names: Sequence[str]) -> list[str]:
    types = finding.types or {}
    return [
        f"{name.replace('_', ' ')} {types[name]:.2f}" if name in types else name.replace("_", " ")
        for name in finding.flagged_types
        if name in names
    ]


# The box on the picture.


def _scaled_box(box: Box, original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box in whole pixels of a picture of this size, inside it, at least one pixel wide and high."""
    width, height = size
    sx, sy = width / original[0], height / original[1]
    x0, x1 = sorted(min(max(round(x * sx), 0), width) for x in (box[0], box[2]))
    y0, y1 = sorted(min(max(round(y * sy), 0), height) for y in (box[1], box[3]))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _draw_box(picture: Image.Image, box: tuple[int, int, int, int], labels: list[str]) -> None:
    """A line with a white halo on both sides, which shows on any background; a chip with the types beside it."""
    line = max(2, round(min(picture.size) / 150))
    halo = max(1, round(line / 3))
    x0, y0, x1, y1 = box
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x0 - halo, y0 - halo, x1 - 1 + halo, y1 - 1 + halo), outline=WHITE, width=line + 2 * halo)
    draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=VERDICT_COLOURS["manipulated"], width=line)
    if labels and (chip := _fitting_chip(labels, picture.size)):
        picture.paste(chip, _beside(box, chip.size, picture.size, gap=2 * halo), chip)


def _fitting_chip(labels: list[str], size: tuple[int, int]) -> Image.Image | None:
    """The largest chip that fits in the picture, or None where it would be too small to read."""
    for points in range(min(36, max(13, round(min(size) / 31))), 7, -1):
        chip = _chip(labels, VERDICT_COLOURS["manipulated"], points, rim=max(1, points // 10))
        if chip.width <= size[0] and chip.height <= size[1]:
            return chip
    return None


def _beside(box: tuple[int, int, int, int], chip: tuple[int, int], size: tuple[int, int], gap: int) -> tuple[int, int]:
    """Where the chip goes: above the box, else below, else inside its top; never beyond the picture."""
    x0, y0, _, y1 = box
    x = max(0, min(x0 - gap, size[0] - chip[0]))
    if y0 - gap - chip[1] >= 0:
        return x, y0 - gap - chip[1]
    if y1 + gap + chip[1] <= size[1]:
        return x, y1 + gap
    return x, max(0, min(y0 + gap, size[1] - chip[1]))


def _chip(lines: list[str], colour: Colour, points: int, *, ink: Colour = WHITE, rim: int = 0) -> Image.Image:
    """Lines of text on a round-cornered plate (RGBA), with a white rim where it lies on a picture."""
    face = _face(points)
    drawn = [_drawable(line) for line in lines]
    pad, row = round(points * 0.5), round(points * 1.3)
    width = math.ceil(max(face.getlength(line) for line in drawn)) + 2 * (pad + rim)
    height = row * len(lines) + 2 * (round(points * 0.16) + rim)
    chip = Image.new("RGBA", (width, height), (*WHITE, 0))
    _plate(chip, (0, 0, width, height), round(points * 0.4) + rim, WHITE)
    _plate(chip, (rim, rim, width - rim, height - rim), round(points * 0.4), colour)
    for number, line in enumerate(drawn):
        middle = rim + round(points * 0.16) + row * (number + 0.5)
        ImageDraw.Draw(chip).text((pad + rim, middle), line, fill=ink, font=face, anchor="lm")
    return chip


def _plate(picture: Image.Image, box: tuple[int, int, int, int], radius: int, colour: Colour) -> None:
    """A filled rectangle with smooth round corners: Pillow draws them jagged, so draw large and reduce."""
    width, height = box[2] - box[0], box[3] - box[1]
    mask = Image.new("L", (width * 4, height * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * 4 - 1, height * 4 - 1), radius * 4, fill=255)
    picture.paste(Image.new(picture.mode, (width, height), colour), box[:2], mask.resize((width, height)))


# The strip below the picture.


def _above_strip(picture: Image.Image, strip: Image.Image) -> Image.Image:
    whole = Image.new("RGB", (strip.width, picture.height + strip.height), PAPER)
    whole.paste(picture, ((strip.width - picture.width) // 2, 0))
    whole.paste(strip, (0, picture.height))
    return whole


def _strip(finding: Finding, text: str, width: int, font: Path | None) -> Image.Image:
    """Verdict, score and types in one row (or more, where they do not fit), the marked text below."""
    width = max(width, MIN_WIDTH)
    points = min(40, max(16, round(width / 34)))
    pad, row = round(points * 1.1), round(points * 1.75)
    face = _face(points, font)
    chips = _wrapped_chips(finding, points, width - 2 * pad)
    lines = _wrapped_text(segments(text, finding.words), face, width - 2 * pad, font)
    chip_row = round(points * 1.85)
    strip = Image.new("RGB", (width, 2 * pad + chip_row * len(chips) + row * len(lines)), PAPER)
    for number, chips_of_row in enumerate(chips):
        x = pad
        for chip in chips_of_row:
            strip.paste(chip, (x, pad + chip_row * number), chip)
            x += chip.width + round(points * 0.5)
    top = pad + chip_row * len(chips)
    for number, line in enumerate(lines):
        _draw_line(strip, line, face, pad, top + row * (number + 0.5), points, right_to_left=_right_to_left(text))
    return strip


def _wrapped_chips(finding: Finding, points: int, width: int) -> list[list[Image.Image]]:
    """Rows of chips no wider than the strip: the verdict with its score first, then each flagged type."""
    score = "" if finding.score is None else f" {finding.score:.2f}"
    headline = f"{finding.verdict}{score}" if finding.verdict else f"not judged: {finding.error or 'unknown error'}"
    colour = VERDICT_COLOURS[finding.verdict]
    small = round(points * 0.86)
    chips = [_chip([_clipped(headline, _face(small), width - 2 * small)], colour, small)]
    chips += [_chip([label], PLATE, small, ink=INK) for label in _labels(finding, finding.flagged_types)]
    rows: list[list[Image.Image]] = [[]]
    for chip in chips:
        if rows[-1] and sum(other.width + points for other in rows[-1]) + chip.width > width:
            rows.append([])
        rows[-1].append(chip)
    return rows


def _clipped(line: str, face: Font, width: int) -> str:
    while len(line) > 1 and face.getlength(line) > width:
        line = line.removesuffix("…")[:-1] + "…"
    return line


def _wrapped_text(pieces: list[Piece], face: Font, width: int, font: Path | None) -> list[list[list[Piece]]]:
    """Lines of tokens of pieces: broken at white space, a token longer than a line where the line ends."""
    lines: list[list[list[Piece]]] = []
    room = 0.0
    tokens = _tokens(pieces, font)
    for number, token in enumerate(tokens):
        for part in _broken(token, face, width):
            needed = _length(part, face)
            if not lines or needed > room:
                if len(lines) == MAX_LINES:
                    return [*lines, [[(_left_out(tokens[number:]), None)]]]
                lines.append([])
                room = width
            lines[-1].append(part)
            room -= needed + _space(face)
    return lines


def _left_out(tokens: list[list[Piece]]) -> str:
    flagged = sum(any(word for _, word in token) for token in tokens)
    return f"… and {len(tokens)} more words, {flagged} of them flagged"


def _tokens(pieces: list[Piece], font: Path | None) -> list[list[Piece]]:
    """The pieces regrouped by the white space of the text, in characters that the font can draw."""
    tokens: list[list[Piece]] = [[]]
    for piece, word in pieces:
        for number, part in enumerate(re.split(r"\s+", piece)):
            if number:
                tokens.append([])
            if part:
                tokens[-1].append((_drawable(part, font), word))
    return [token for token in tokens if token]


def _broken(token: list[Piece], face: Font, width: int) -> Iterator[list[Piece]]:
    """The token, or where it is longer than a line, as many characters of it as fit, and again."""
    if sum(len(piece) for piece, _ in token) <= width and _length(token, face) <= width:
        yield token
        return
    part: list[Piece] = []
    for character, word in ((character, word) for piece, word in token for character in piece):
        if part and _length([*part, (character, None)], face) > width:
            yield part
            part = []
        before = part.pop()[0] if part and part[-1][1] is word else ""
        part.append((before + character, word))
    yield part


def _length(token: list[Piece], face: Font) -> float:
    return sum(face.getlength(piece) for piece, _ in token)


def _draw_line(
    strip: Image.Image, line: list[list[Piece]], face: Font, pad: int, middle: float, points: int, right_to_left: bool
) -> None:
    """One line of text, a plate behind each flagged word, from the side where its script begins."""
    draw = ImageDraw.Draw(strip)
    x = float(strip.width - pad if right_to_left else pad)
    for token in line:
        for piece, word in token:
            advance = face.getlength(piece)
            left = x - advance if right_to_left else x
            if word is not None:
                box = (round(left - points * 0.15), round(middle - points * 0.72),
                       round(left + advance + points * 0.15), round(middle + points * 0.72))  # fmt: skip
                _plate(strip, box, round(points * 0.28), LEVEL_COLOURS[level(word.score) - 1])
            draw.text((left, middle), piece, fill=INK, font=face, anchor="lm")
            x = left if right_to_left else left + advance
        x += -_space(face) if right_to_left else _space(face)


def _space(face: Font) -> float:
    """Between words: wider than the font has it, so that plates of neighbouring words stay apart."""
    return face.getlength(" ") * 1.4


def _right_to_left(text: str) -> bool:
    """Whether the first letter with a direction is of a script that runs from right to left."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((kind in ("R", "AL") for kind in directions if kind in ("L", "R", "AL")), False)


def _face(points: int, font: Path | None = None) -> Font:
    return ImageFont.load_default(points) if font is None else ImageFont.truetype(font, points)


def _drawable(text: str, font: Path | None = None) -> str:
    """What the built-in font can draw of a text: letters without their accents, plain dashes."""
    if font is not None or text.isascii():
        return text
    plain = text.translate({0x2010: "-", 0x2011: "-", 0x2012: "-", 0x2013: "-", 0x2014: "-", 0x2212: "-"})
    kept = (c if c in "“”‘’…·" else unicodedata.normalize("NFKD", c) for c in plain)
    return "".join(c for c in "".join(kept) if not unicodedata.combining(c))
