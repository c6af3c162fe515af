"""The first stage: it fetches each row's picture, decodes it and resizes it to a small uint8 square, in one step.

Data that travels between machines is therefore small, whatever the size of the pictures. No row raises an error: its
problem is written to its `error_code`. This module loads no torch, because its processes are many and start often.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from threading import BoundedSemaphore
from typing import Any

import pyarrow as pa
from PIL import Image

from asap.errors import FetchFailed, InputError
from asap.preprocessing.images import ImageLimits, decode_image, prepare_image
from asap.storage.fetch import ByteRange, FetchSettings, fetch
from jobs.metrics import count_fetches, stage_timed
from jobs.scan.input.manifest import storable
from jobs.scan.stages.result_rows import CALLER_COLUMNS

PREPARED_FIELDS = [
    ("pixels", pa.large_binary()),
    ("thumbnail", pa.binary()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("image_sha256", pa.string()),
    ("image_version", pa.string()),
    ("error_code", pa.string()),
    ("error_detail", pa.string()),
    ("retryable", pa.bool_()),
    ("attempt", pa.int32()),
    ("warnings", pa.list_(pa.string())),
    ("caption", pa.string()),
]
"""Columns that this stage adds to a row. `pixels` are image_size * image_size * 3 bytes, RGB."""


@dataclass(frozen=True)
class Preparation:
    """Settings for fetching and preparing pictures."""

    image_size: int
    limits: ImageLimits
    fetch: FetchSettings
    thumbnail_side: int | None = None
    """Largest side, in pixels, of the JPEG that is kept for the captioner. None: no JPEG is kept."""
    job: str = ""
    """Name of the job, for its metrics."""


def prepare_batch(batch: pa.Table, preparation: Preparation) -> pa.Table:
    """Return the rows of a manifest with `PREPARED_FIELDS`; a row that failed has an `error_code`."""
    settings = preparation.fetch
    # Many threads wait for stores, but only a few decode at a time: decoding needs CPU and memory.
    decoding = BoundedSemaphore(settings.decode_threads)
    with stage_timed(preparation.job, "prepare"), ThreadPoolExecutor(settings.threads) as threads:
        rows = list(threads.map(lambda row: _prepare(row, preparation, decoding), batch.to_pylist()))
    count_fetches(preparation.job, rows)
    # Types are declared, so that a column of nulls has the type of all others.
    columns: dict[str, Any] = {name: batch[name] for name in CALLER_COLUMNS}
    for name, kind in PREPARED_FIELDS:
        columns[name] = pa.array([row.get(name) for row in rows], kind)
    return pa.table(columns)


def _prepare(row: dict[str, Any], preparation: Preparation, decoding: BoundedSemaphore) -> dict[str, Any]:
    """Return the prepared fields of a row: those of its picture, or those of its error."""
    known = {"image_version": row["image_version"], "warnings": row["warnings"] or []}
    if row["row_error"] is not None:
        return known | _error("row_invalid", row["row_error"])
    if row["image_uri"] is None:
        return known | _error("image_missing", "the pair has no image")
    try:
        return known | _picture(row, preparation, decoding, known["warnings"])
    except FetchFailed as error:
        return known | _error(error.code, error.detail, error.retryable) | {"attempt": error.attempt}
    except InputError as error:
        return known | _error(error.code, str(error))


def _picture(
    row: dict[str, Any], preparation: Preparation, decoding: BoundedSemaphore, warnings: list[str]
) -> dict[str, Any]:
    byte_range = None if row["image_offset"] is None else ByteRange(row["image_offset"], row["image_length"])
    fetched = fetch(row["image_uri"], preparation.limits.max_bytes, preparation.fetch, byte_range)
    with decoding:
        image = prepare_image(fetched.data, preparation.image_size, preparation.limits)
        side = preparation.thumbnail_side
        thumbnail = None if side is None else _thumbnail(fetched.data, preparation.limits, side)
    return {
        "pixels": image.pixels.tobytes(),
        "thumbnail": thumbnail,
        "width": image.width,
        "height": image.height,
        "image_sha256": image.sha256,
        "image_version": fetched.version or row["image_version"],
        "attempt": fetched.attempt,
        "fetched_bytes": len(fetched.data),
        "warnings": [*warnings, *image.warnings],
    }


def _thumbnail(data: bytes, limits: ImageLimits, side: int) -> bytes:
    image = decode_image(data, limits, min_side=side).image
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _error(code: str, detail: str, retryable: bool = False) -> dict[str, Any]:
    return {"error_code": code, "error_detail": storable(detail), "retryable": retryable}
