"""From a row of the manifest to the request of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import pyarrow as pa
from PIL import Image

from jobs.annotate.settings import AnnotateSettings
from jobs.descriptions.engine import Request
from jobs.metrics import PairMetrics
from jobs.scan.input.manifest import readable_text
from jobs.scan.stages.prepare import Preparation

SMALL_COLUMNS = [
    "custom_id", "given_id", "image_uri", "text", "text_escapes", "image_sha256", "error_code", "error_detail",
    "retryable", "warnings",
]  # fmt: skip
"""Columns of a prepared row that become Python values; its picture is read where it lies."""


def preparation_of(settings: AnnotateSettings) -> Preparation:
    """Return how pictures are prepared: only for a captioner that looks at them."""
    return Preparation(
        image_size=None,
        limits=settings.image_limits,
        fetch=settings.fetch,
        thumbnail_side=settings.thumbnail_side,
        slow_after_s=settings.slow_picture_s,
        metrics=PairMetrics("annotate", settings.job_folder.name),
    )


def missing_input(kind: str, row: Mapping[str, Any]) -> str | None:
    """Return the error code of a row that has no picture or no text to describe; None if it has.

    A picture that cannot be read does not keep its text from being explained.
    """
    if kind == "caption" or row["error_code"] == "row_invalid":
        return None if row["error_code"] is None else str(row["error_code"])
    return None if (row["text"] or "").strip() else str(row["error_code"] or "text_missing")


def request_of(row: Mapping[str, Any], thumbnail: bytes | None) -> Request:
    """Return the request of a prepared row; `thumbnail` is the JPEG of its picture, for a captioner that needs it."""
    image = None if thumbnail is None else Image.open(BytesIO(thumbnail), formats=["JPEG"])
    text = None if row["text"] is None else readable_text(row["text"], row["text_escapes"])
    return Request(row["custom_id"], row["image_uri"] or "", image, text, row["given_id"])


def requests_of(kind: str, batch: pa.Table) -> list[Request]:
    """Return the requests of prepared rows; those without a picture or a text are left out."""
    rows = batch.select(SMALL_COLUMNS).to_pylist()
    thumbnails = batch["thumbnail"].to_pylist()
    return [
        request_of(row, thumbnail if kind == "caption" else None)
        for row, thumbnail in zip(rows, thumbnails, strict=True)
        if missing_input(kind, row) is None
    ]
