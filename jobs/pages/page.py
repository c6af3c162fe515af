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

from asap.preprocessing.images import DEFAULT_LIMITS, decode_image
from asap.storage.fetch import ByteRange, FetchSettings, fetch

PICTURE_SIDE = 480
"""Pixels of the longer side of a picture on the page."""


PICTURE_BYTES = 56 * 1024
"""At most, before base64: 60 pictures make a page of 4.5 MB at worst."""


@dataclass(frozen=True)
class Picture:
    """A picture for the page, or the reason why there is none."""

    data_uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def read_picture(row: dict[str, Any]) -> Picture:
    """The picture of a row, read again by its `image_uri` and held against its `image_sha256`."""
    try:
        decoded = decode_image(_read_image(row), min_side=PICTURE_SIDE)
        if row["image_sha256"] not in (None, decoded.sha256):
            return Picture(problem="The picture has changed since the scan, so the box would not fit.")
        decoded.image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        encoded = base64.b64encode(_encode(decoded.image)).decode()
    except Exception as error:  # whatever it is, the page must still come
        return Picture(problem=f"It could not be read again. {error}")
    return Picture(f"data:image/webp;base64,{encoded}", *decoded.image.size)


def _read_image(row: dict[str, Any]) -> bytes | None:
    """The bytes of a row's image, be it a file, an object or a member of a tar."""
    uri, offset, length = row["image_uri"], row["image_offset"], row["image_length"]
    if uri is None:
        return None
    part = None if offset is None or length is None else ByteRange(offset, length)
    return fetch(uri, DEFAULT_LIMITS.max_bytes, FetchSettings(attempts=2), part).data


def _encode(image: Image.Image) -> bytes:
    """WebP within `PICTURE_BYTES`: at the best quality that fits, and if none does, at a smaller size."""
    for quality in (82, 65, 45, 25):
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= PICTURE_BYTES:
            return buffer.getvalue()
    return _encode(image.resize((max(1, image.width // 2), max(1, image.height // 2))))


# HTML.


def render_page(template: str, styles: Sequence[str], page: dict[str, Any]) -> str:
    """A page of its own: `page` in a template, with these style sheets of the templates folder and no others."""
    environment = Environment(
        loader=PackageLoader("jobs.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["clip"] = _clip
    source = "".join(PackageLoader("jobs.pages").get_source(environment, name)[0] for name in styles)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return environment.get_template(template).render(page=page, css=source, css_hash=f"sha256-{digest}")


def _clip(value: object, length: int) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}… ({len(text) - length:,} more characters)"
