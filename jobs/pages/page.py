"""Self-contained HTML pages: templates, style sheets, and pictures embedded as data URIs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from asap.finding import score_text
from asap.preprocessing.images import DEFAULT_LIMITS, decode_image
from asap.storage.fetch import FetchSettings
from asap.storage.picture_address import PictureAddress, PictureReader

PICTURE_SIDE = 480
"""Longest side of an embedded picture, in pixels."""
PICTURE_BYTES = 56 * 1024
"""Largest size of an embedded picture, before base64: a page of 60 pictures has at most 4.5 MB."""
TEXT_SHOWN = 2000
"""Code points of a text that its card shows. The rest is counted."""


@dataclass(frozen=True)
class Picture:
    """A picture for the page, or the reason why there is none."""

    data_uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def embed_pictures(
    rows: Sequence[dict[str, Any]], *, left_out: bool = False, only_below: tuple[str, ...] | None = None
) -> dict[int, Picture]:
    """Embed the pictures of result rows, by row_id. Each part of a table is read once, in its order.

    Args:
        rows: Rows of results.
        left_out: True to leave all pictures out, which are then not read.
        only_below: Prefixes that pictures may be read below; None for any.
    """
    if left_out:
        return {row["row_id"]: Picture(problem="The report was made without pictures.") for row in rows}
    reader = PictureReader(FetchSettings(attempts=2, only_below=only_below))
    with_picture = {row["row_id"]: row for row in rows if row["image_uri"] is not None}
    addresses = {row_id: PictureAddress.of_row(row) for row_id, row in with_picture.items()}
    order = sorted(addresses, key=lambda row_id: (addresses[row_id].table or ("", 0, ""), addresses[row_id].row))
    pictures = {row_id: embed_picture(with_picture[row_id], reader) for row_id in order}
    return pictures | {row["row_id"]: embed_picture(row) for row in rows if row["image_uri"] is None}


def embed_picture(row: dict[str, Any], reader: PictureReader | None = None) -> Picture:
    """Read the picture of a row again by its address, check its `image_sha256`, and encode it as a data URI.

    Args:
        row: A row of results.
        reader: The reader that reads the pictures of several rows, one after the other.
    """
    try:
        data = None
        if row["image_uri"] is not None:
            reader = reader or PictureReader(FetchSettings(attempts=2))
            data = reader.fetch(PictureAddress.of_row(row), DEFAULT_LIMITS.max_bytes).data
        decoded = decode_image(data, min_side=PICTURE_SIDE)
        if row["image_sha256"] not in (None, decoded.sha256):
            return Picture(problem="The picture has changed since the scan, so the box would not fit.")
        decoded.image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        encoded = base64.b64encode(_encode(decoded.image)).decode()
    except Exception as error:  # no picture may cost the page
        return Picture(problem=f"It could not be read again. {error}")
    return Picture(f"data:image/webp;base64,{encoded}", *decoded.image.size)


def _encode(image: Image.Image) -> bytes:
    """Encode as WebP within `PICTURE_BYTES`: at the best quality that fits; if none fits, at half the size."""
    for quality in (82, 65, 45, 25):
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= PICTURE_BYTES:
            return buffer.getvalue()
    return _encode(image.resize((max(1, image.width // 2), max(1, image.height // 2))))


def render_page(template: str, styles: Sequence[str], page: dict[str, Any]) -> str:
    """Render a self-contained page: no script runs in it, and nothing is fetched.

    Args:
        template: Name of a template in the templates folder.
        styles: Names of the style sheets there that the page embeds. Its content security policy allows no others.
        page: Data for the template.
    """
    environment = Environment(
        loader=PackageLoader("jobs.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"clip": _clip, "score": score_text}
    source = "".join(PackageLoader("jobs.pages").get_source(environment, name)[0] for name in styles)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return environment.get_template(template).render(page=page, css=source, css_hash=f"sha256-{digest}")


def type_label(kind: str) -> str:
    """Return a manipulation type as a person writes it."""
    return kind.replace("_", " ").capitalize()


def _clip(value: object, length: int) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more characters)"
