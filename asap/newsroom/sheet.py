"""A contact sheet of a corpus: one pair of every class, with manipulated faces framed and manipulated words marked."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from asap.errors import CorpusError
from asap.newsroom.corpus import CLASS_SHARES

_TILE_W, _PICTURE_H, _TEXT_H, _GAP = 400, 300, 118, 16  # pixels
_INK, _FAKE, _FRAME, _PAPER = (34, 36, 40), (200, 24, 32), (255, 40, 48), (250, 249, 246)

Record = dict[str, Any]


def draw_sheet(corpus: Path, split: str = "test", start: int = 0, columns: int = 3) -> Image.Image:
    """Draw a tile for every class: its first record that has a picture wider than high.

    Args:
        corpus: the corpus folder.
        split: the split to take records from.
        start: the position in the split from which records are taken.
        columns: tiles side by side.
    """
    records: list[Record] = json.loads((corpus / "metadata" / f"{split}.json").read_text("utf-8"))[start:]
    shown: set[str] = set()
    tiles = []
    for name in CLASS_SHARES:
        record = _first_wide(corpus, [r for r in records if r["image"] not in shown], name)
        shown.add(record["image"])
        tiles.append(_draw_tile(corpus, record))
    rows = -(-len(tiles) // columns)
    tile_w, tile_h = _TILE_W + _GAP, _PICTURE_H + _TEXT_H + _GAP
    sheet = Image.new("RGB", (columns * tile_w + _GAP, rows * tile_h + _GAP), _PAPER)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP + i % columns * tile_w, _GAP + i // columns * tile_h))
    return sheet


def _first_wide(corpus: Path, records: list[Record], fake_cls: str) -> Record:
    of_class = [record for record in records if record["fake_cls"] == fake_cls]
    for record in of_class:
        with Image.open(corpus / record["image"]) as image:
            if image.width > image.height:
                return record
    raise CorpusError(
        f"no record of class {fake_cls} has a wide picture, of {len(records)} records. Draw a larger corpus."
    )


def _draw_tile(corpus: Path, record: Record) -> Image.Image:
    tile = Image.new("RGB", (_TILE_W, _PICTURE_H + _TEXT_H), _PAPER)
    with Image.open(corpus / record["image"]) as image:
        scale = min(_TILE_W / image.width, _PICTURE_H / image.height)
        size = (round(image.width * scale), round(image.height * scale))
        picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if record["fake_image_box"]:
        box = [v * scale for v in record["fake_image_box"]]
        ImageDraw.Draw(picture).rectangle(box, outline=_FRAME, width=3)
    tile.paste(picture, ((_TILE_W - picture.width) // 2, (_PICTURE_H - picture.height) // 2))
    draw = ImageDraw.Draw(tile)
    draw.text((2, _PICTURE_H + 8), record["fake_cls"].replace("&", " & "), _INK, ImageFont.load_default(17))
    _draw_words(draw, record["text"].split(), set(record["fake_text_pos"]), _PICTURE_H + 36)
    return tile


def _draw_words(draw: ImageDraw.ImageDraw, words: list[str], fake: set[int], y: int) -> None:
    font = ImageFont.load_default(16)
    x = 2.0
    for i, word in enumerate(words):
        width = draw.textlength(word + " ", font)
        if x + width > _TILE_W:
            x, y = 2.0, y + 22
        draw.text((x, y), word, _FAKE if i in fake else _INK, font)
        if i in fake:
            draw.line((x, y + 19, x + width - 4, y + 19), _FAKE, 2)
        x += width
