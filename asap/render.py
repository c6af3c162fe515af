"""Evidence for a person: a box around the face in the image, and marked words in the text.

Everything here works on a `Finding` and needs no model. Only `segments` turns word offsets into pieces of text; the
image, the HTML and the terminal output are made from it.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont, ImageOps

from asap.finding import NOT_JUDGED, Box, Finding, Word, score_text
from asap.labels import IMAGE_TYPES

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Piece = tuple[str, Word | None]
Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
PAPER: Color = (250, 249, 246)
INK: Color = (28, 27, 31)
QUIET: Color = (104, 101, 110)
PLATE: Color = (232, 229, 222)
VERDICT_COLORS: dict[str | None, Color] = {
    "manipulated": (200, 44, 28),
    "review": (158, 98, 0),
    "authentic": (15, 112, 104),
    "unfamiliar": (71, 96, 122),
    None: QUIET,
}
LEVEL_EDGES = (0.6, 0.75, 0.9)
LEVEL_COLORS: tuple[Color, ...] = ((255, 238, 196), (255, 217, 148), (255, 188, 118), (255, 154, 112))
"""Background of a marked word, by `level`. INK on each of them has a contrast of 8 to 1 or more."""

MIN_WIDTH = 640
"""Width, in pixels, that an image with a strip has at least, so that the words fit.

A smaller image is enlarged until its longer side has this length.
"""
MAX_LINES = 14
"""Lines of text in the strip; the words after them are counted, not drawn."""
_MAX_LIMITS_CHARS = 800
"""Characters of the model's id and limits in the strip."""


def segments(text: str, words: Sequence[Word] | None) -> list[Piece]:
    """Split the text into pieces, each with the flagged word it belongs to, or None.

    Joined, the pieces are the text. Offsets beyond the text are cut to it. If words overlap, the one
    that starts first keeps the overlap.
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
    """Return how strongly to mark a word with this probability of being manipulated, from 1 to 4."""
    return 1 + sum(score >= edge for edge in LEVEL_EDGES)


def mark_words_html(text: str, words: Sequence[Word] | None) -> Markup:
    """Return the text as safe HTML: all of it escaped, and flagged words in `<mark data-level title>`."""
    mark = Markup('<mark data-level="{}" title="manipulated: {}">{}</mark>')
    return Markup("").join(
        mark.format(level(word.score), score_text(word.score), piece) if word else piece
        for piece, word in segments(text, words)
    )


def draw_evidence(
    image: Image.Image, finding: Finding, text: str | None = None, *, font: Path | None = None
) -> Image.Image:
    """Return a new RGB image with the face box and its types, and a strip of evidence below it.

    The strip holds the verdict, the score, the types, the text with its flagged words, and the limits of the model. A
    pair that was not judged has the reason instead of score and types.

    Args:
        image: the image, upright (EXIF rotation applied). It may be smaller than the original: the box is scaled from
            `finding.width` and `finding.height`.
        finding: the result to draw.
        text: the text of the pair; None draws no strip.
        font: a TrueType file with the script of the text. The built-in font has little more than ASCII (é is drawn as
            e).
    """
    picture = image.convert("RGB")
    if text is not None and (scale := MIN_WIDTH / max(picture.size)) > 1:
        picture = ImageOps.scale(picture, scale)
    if finding.box_px is not None:
        size = finding.width or image.width, finding.height or image.height
        _draw_box(picture, _scaled_box(finding.box_px, size, picture.size), _labels(finding, IMAGE_TYPES))
    if text is None:
        return picture
    strip = _strip(finding, text, picture.width, font)
    whole = Image.new("RGB", (strip.width, picture.height + strip.height), PAPER)
    whole.paste(picture, ((strip.width - picture.width) // 2, 0))
    whole.paste(strip, (0, picture.height))
    return whole


def _labels(finding: Finding, names: Sequence[str]) -> list[str]:
    """Return the flagged types among `names`, each with its probability if it has one."""
    scores = finding.types or {}
    labels = []
    for name in finding.flagged_types:
        if name in names:
            score = scores.get(name)
            labels.append(name.replace("_", " ") + ("" if score is None else f" {score_text(score)}"))
    return labels


# The box on the image.


def _scaled_box(box: Box, original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Scale the box to whole pixels inside an image of this size, at least one pixel wide and high."""
    width, height = size
    sx, sy = width / original[0], height / original[1]
    x0, x1 = sorted(min(max(round(x * sx), 0), width) for x in (box[0], box[2]))
    y0, y1 = sorted(min(max(round(y * sy), 0), height) for y in (box[1], box[3]))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def _draw_box(picture: Image.Image, box: tuple[int, int, int, int], labels: list[str]) -> None:
    """Draw the box, with a white halo that is visible on any background, and a chip with the types."""
    line = max(2, round(min(picture.size) / 150))
    halo = max(1, round(line / 3))
    x0, y0, x1, y1 = box
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x0 - halo, y0 - halo, x1 - 1 + halo, y1 - 1 + halo), outline=WHITE, width=line + 2 * halo)
    draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=VERDICT_COLORS["manipulated"], width=line)
    if labels and (chip := _fitting_chip(labels, picture.size)):
        picture.paste(chip, _beside(box, chip.size, picture.size, gap=2 * halo), chip)


def _fitting_chip(labels: list[str], size: tuple[int, int]) -> Image.Image | None:
    """Return the largest chip that fits in the image, or None if it would be too small to read."""
    for points in range(min(36, max(13, round(min(size) / 31))), 7, -1):
        chip = _chip(labels, VERDICT_COLORS["manipulated"], points, rim=max(1, points // 10))
        if chip.width <= size[0] and chip.height <= size[1]:
            return chip
    return None


def _beside(box: tuple[int, int, int, int], chip: tuple[int, int], size: tuple[int, int], gap: int) -> tuple[int, int]:
    """Return the position of the chip: above the box, else below, else inside its top; never outside the image."""
    x0, y0, _, y1 = box
    x = max(0, min(x0 - gap, size[0] - chip[0]))
    if y0 - gap - chip[1] >= 0:
        return x, y0 - gap - chip[1]
    if y1 + gap + chip[1] <= size[1]:
        return x, y1 + gap
    return x, max(0, min(y0 + gap, size[1] - chip[1]))


def _chip(lines: list[str], color: Color, points: int, *, ink: Color = WHITE, rim: int = 0) -> Image.Image:
    """Draw lines of text on an RGBA plate with round corners; a white rim sets it off from an image."""
    face = _face(points)
    drawn = [_drawable(line) for line in lines]
    pad, row = round(points * 0.5), round(points * 1.3)
    width = math.ceil(max(face.getlength(line) for line in drawn)) + 2 * (pad + rim)
    height = row * len(lines) + 2 * (round(points * 0.16) + rim)
    chip = Image.new("RGBA", (width, height), (*WHITE, 0))
    _plate(chip, (0, 0, width, height), round(points * 0.4) + rim, WHITE)
    _plate(chip, (rim, rim, width - rim, height - rim), round(points * 0.4), color)
    for number, line in enumerate(drawn):
        middle = rim + round(points * 0.16) + row * (number + 0.5)
        ImageDraw.Draw(chip).text((pad + rim, middle), line, fill=ink, font=face, anchor="lm")
    return chip


def _plate(picture: Image.Image, box: tuple[int, int, int, int], radius: int, color: Color) -> None:
    """Draw a filled rectangle with round corners."""
    # Pillow draws round corners jagged. A mask that is drawn four times as large and reduced is smooth.
    width, height = box[2] - box[0], box[3] - box[1]
    mask = Image.new("L", (width * 4, height * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * 4 - 1, height * 4 - 1), radius * 4, fill=255)
    picture.paste(Image.new(picture.mode, (width, height), color), box[:2], mask.resize((width, height)))


# The strip below the image.


class _Paragraph(NamedTuple):
    """Lines of the strip in one size and color."""

    lines: list[list[list[Piece]]]
    face: Font
    points: int
    ink: Color = INK
    right_to_left: bool = False

    @property
    def row(self) -> int:
        """The height of a line."""
        return round(self.points * 1.75)

    @property
    def height(self) -> int:
        """The height of all lines."""
        return self.row * len(self.lines)


def _strip(finding: Finding, text: str, width: int, font: Path | None) -> Image.Image:
    """Draw rows of chips with verdict, score and types, and below them the note, the marked text and the limits."""
    width = max(width, MIN_WIDTH)  # a tall narrow image stays narrower than its strip
    points = min(40, max(16, round(width / 34)))
    pad = round(points * 1.1)
    chips = _wrapped_chips(finding, points, width - 2 * pad)
    # The first letter with a direction decides the direction of the text, as in Unicode's bidirectional algorithm.
    directions = (unicodedata.bidirectional(character) for character in text)
    right_to_left = next((kind in ("R", "AL") for kind in directions if kind in ("L", "R", "AL")), False)

    def wrapped(pieces: list[Piece], size: float, ink: Color, right_to_left: bool = False) -> _Paragraph:
        face = _face(round(size), font)
        return _Paragraph(_wrapped_text(pieces, face, width - 2 * pad, font), face, round(size), ink, right_to_left)

    about = textwrap.shorten(f"Model {finding.model_id}. {finding.limits}", _MAX_LIMITS_CHARS, placeholder=" …")
    paragraphs = [
        wrapped([(finding.note, None)], points * 0.86, INK),
        wrapped(segments(text, finding.words), points, INK, right_to_left),
        wrapped([(about, None)], max(12, points * 0.66), QUIET),
    ]
    paragraphs = [paragraph for paragraph in paragraphs if paragraph.lines]

    # Each paragraph is set off from the one before it by a gap.
    chip_row, gap = round(points * 1.85), round(points * 0.35)
    height = 2 * pad + chip_row * len(chips) + sum(paragraph.height + gap for paragraph in paragraphs) - gap
    strip = Image.new("RGB", (width, height), PAPER)
    for number, chips_of_row in enumerate(chips):
        x = pad
        for chip in chips_of_row:
            strip.paste(chip, (x, pad + chip_row * number), chip)
            x += chip.width + round(points * 0.5)
    top = pad + chip_row * len(chips)
    for paragraph in paragraphs:
        for number, line in enumerate(paragraph.lines):
            _draw_line(strip, line, paragraph, pad, top + paragraph.row * (number + 0.5))
        top += paragraph.height + gap
    return strip


def _wrapped_chips(finding: Finding, points: int, width: int) -> list[list[Image.Image]]:
    """Return rows of chips no wider than `width`: the verdict with its score first, then each flagged type."""
    score = "" if finding.score is None else f" {score_text(finding.score)}"
    if finding.verdict == "unfamiliar":
        headline = NOT_JUDGED
    elif finding.verdict:
        headline = f"{finding.verdict}{score}"
    else:
        headline = f"not analyzed: {finding.error or 'unknown error'}"
    small = round(points * 0.86)
    face = _face(small)
    while len(headline) > 1 and face.getlength(headline) > width - 2 * small:
        headline = headline.removesuffix("…")[:-1] + "…"
    chips = [_chip([headline], VERDICT_COLORS[finding.verdict], small)]
    chips += [_chip([label], PLATE, small, ink=INK) for label in _labels(finding, finding.flagged_types)]
    rows: list[list[Image.Image]] = [[]]
    for chip in chips:
        if rows[-1] and sum(other.width + points for other in rows[-1]) + chip.width > width:
            rows.append([])
        rows[-1].append(chip)
    return rows


def _wrapped_text(pieces: list[Piece], face: Font, width: int, font: Path | None) -> list[list[list[Piece]]]:
    """Break tokens of pieces into lines at white space; a token longer than a line is split."""
    lines: list[list[list[Piece]]] = []
    room = 0.0
    tokens = _tokens(pieces, font)
    for number, token in enumerate(tokens):
        for part in _broken(token, face, width):
            needed = _length(part, face)
            if not lines or needed > room:
                # Measuring is slow, so stop at the last line instead of laying out a text of any length.
                if len(lines) == MAX_LINES:
                    rest = tokens[number:]
                    flagged = sum(any(word for _, word in token) for token in rest)
                    return [*lines, [[(f"… and {len(rest)} more words, {flagged} of them flagged", None)]]]
                lines.append([])
                room = width
            lines[-1].append(part)
            room -= needed + _space(face)
    return lines


def _tokens(pieces: list[Piece], font: Path | None) -> list[list[Piece]]:
    """Regroup the pieces by the white space of the text, in characters that the font can draw."""
    tokens: list[list[Piece]] = [[]]
    for piece, word in pieces:
        for number, part in enumerate(re.split(r"\s+", piece)):
            if number:
                tokens.append([])
            if part:
                tokens[-1].append((_drawable(part, font), word))
    return [token for token in tokens if token]


def _broken(token: list[Piece], face: Font, width: int) -> Iterator[list[Piece]]:
    """Yield the token, or, if it is longer than a line, parts of it that fit."""
    # A token with more characters than the line has pixels is too long, and is not measured: that would be slow.
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


def _draw_line(strip: Image.Image, line: list[list[Piece]], style: _Paragraph, pad: int, middle: float) -> None:
    """Draw one line of text, with a plate behind each flagged word, from the side where its script begins."""
    draw = ImageDraw.Draw(strip)
    face, points, right_to_left = style.face, style.points, style.right_to_left
    x = float(strip.width - pad if right_to_left else pad)
    for token in line:
        for piece, word in token:
            advance = face.getlength(piece)
            left = x - advance if right_to_left else x
            if word is not None:
                box = (round(left - points * 0.15), round(middle - points * 0.72),
                       round(left + advance + points * 0.15), round(middle + points * 0.72))  # fmt: skip
                _plate(strip, box, round(points * 0.28), LEVEL_COLORS[level(word.score) - 1])
            draw.text((left, middle), piece, fill=style.ink, font=face, anchor="lm")
            x = left if right_to_left else left + advance
        x += -_space(face) if right_to_left else _space(face)


def _space(face: Font) -> float:
    """Return the width of a space, wider than the font's, so that plates of adjacent words do not touch."""
    return face.getlength(" ") * 1.4


def _face(points: int, font: Path | None = None) -> Font:
    return ImageFont.load_default(points) if font is None else ImageFont.truetype(font, points)


def _drawable(text: str, font: Path | None = None) -> str:
    """Return the text in characters that the built-in font has: letters without accents, plain dashes."""
    if font is not None or text.isascii():
        return text
    plain = text.translate({0x2010: "-", 0x2011: "-", 0x2012: "-", 0x2013: "-", 0x2014: "-", 0x2212: "-"})
    kept = (c if c in "“”‘’…·" else unicodedata.normalize("NFKD", c) for c in plain)
    return "".join(c for c in "".join(kept) if not unicodedata.combining(c))
