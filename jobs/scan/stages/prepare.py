"""The first stage: it fetches each row's picture, decodes it and resizes it to a small uint8 square, in one step.

Data that travels between machines is therefore small, whatever the size of the pictures. No row raises an error: its
problem is written to its `error_code`. This module loads no torch, because its processes are many and start often.

A few slow pictures need not hold their batch. They can be left out of it, and are then missing from the results; the
scan tries them again apart, with all the time that `FetchSettings` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore, Event, Thread
from typing import Any

import pyarrow as pa
from PIL import Image

from asap.errors import FetchFailed, InputError
from asap.preprocessing.images import ImageLimits, decode_image, prepare_image
from asap.storage.fetch import ByteRange, FetchSettings, fetch
from jobs.metrics import count_fetches, stage_timed
from jobs.scan.input.manifest import ESCAPED, find_escapes, storable
from jobs.scan.input.record_files import RowError
from jobs.scan.input.sidecars import read_late_text
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
_TEXT_COLUMNS = ("text", "text_escapes")
"""Columns of the caller that this stage fills in if the manifest could not."""


@dataclass(frozen=True)
class Preparation:
    """Settings for fetching and preparing pictures."""

    image_size: int
    limits: ImageLimits
    fetch: FetchSettings
    thumbnail_side: int | None = None
    """Largest side, in pixels, of the JPEG that is kept for the captioner. None: no JPEG is kept."""
    slow_after_s: float | None = None
    """Seconds without a picture of a batch becoming ready, after which those that are not are left out of the batch.
    None: no picture is left out."""
    job: str = ""
    """Name of the job, for its metrics."""

    def patient(self, threads: int) -> Preparation:
        """Return the preparation that leaves no picture out. The pictures are slow, so many of them wait at a time."""
        fetch = self.fetch.model_copy(update={"threads": max(self.fetch.threads, min(threads, _MOST_THREADS))})
        return replace(self, slow_after_s=None, fetch=fetch)


_FIRST_WAIT = 3
"""Factor of the wait for the first picture of a batch."""
_MOST_THREADS = 64
"""Most threads of a preparation that waits for slow pictures."""


def prepare_batch(batch: pa.Table, preparation: Preparation, counter: Any = None) -> pa.Table:
    """Return the rows of a manifest with `PREPARED_FIELDS`; a row that failed has an `error_code`.

    Args:
        batch: Rows of `MANIFEST_SCHEMA`.
        preparation: How pictures are fetched and prepared.
        counter: The actor that counts the rows that are left out of the result, if there is one.
    """
    rows = batch.to_pylist()
    with stage_timed(preparation.job, "prepare"):
        found = _prepare_rows(rows, preparation)
    count_fetches(preparation.job, list(found.values()))
    if preparation.slow_after_s is not None and len(found) < len(rows):
        if counter is not None:
            counter.count_slow.remote(len(rows) - len(found))
        batch = batch.take(pa.array(sorted(found), pa.int64()))
    detail = f"the picture was not read within {_longest_s(preparation.fetch):.0f} s"
    prepared = [
        found.get(position, _known(row) | _error("timeout", detail, retryable=True))
        for position, row in enumerate(rows)
        if preparation.slow_after_s is None or position in found
    ]
    # Types are declared, so that a column of nulls has the type of all others.
    columns: dict[str, Any] = {name: batch[name] for name in CALLER_COLUMNS}
    for name in _TEXT_COLUMNS:
        if any(name in row for row in prepared):
            given = columns[name].to_pylist()
            values = [row.get(name, value) for row, value in zip(prepared, given, strict=True)]
            columns[name] = pa.array(values, batch.schema.field(name).type)
    for name, kind in PREPARED_FIELDS:
        columns[name] = pa.array([row.get(name) for row in prepared], kind)
    return pa.table(columns)


def _prepare_rows(rows: list[dict[str, Any]], preparation: Preparation) -> dict[int, dict[str, Any]]:
    """Return the prepared fields of the rows by position, without those that take too long."""
    settings = preparation.fetch
    # Many threads wait for stores, but only a few decode at a time: decoding needs CPU and memory.
    decoding = BoundedSemaphore(settings.decode_threads)
    waiting, ready = SimpleQueue[int](), SimpleQueue[tuple[int, dict[str, Any] | BaseException]]()
    stopped = Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                position = waiting.get_nowait()
            except Empty:
                return
            try:
                ready.put((position, _prepare(rows[position], preparation, decoding)))
            except BaseException as error:  # raised by the task, whose thread waits for it
                ready.put((position, error))

    for position in range(len(rows)):
        waiting.put(position)
    # Nobody waits for the end of a daemon thread: one that hangs holds neither this task nor its process.
    for _ in range(min(settings.threads, len(rows))):
        Thread(target=work, name="prepare", daemon=True).start()
    found: dict[int, dict[str, Any]] = {}
    slow_s = preparation.slow_after_s or _longest_s(settings)
    try:
        while len(found) < len(rows):
            # The first picture may have to wait for the process to load and connect.
            position, fields = ready.get(timeout=slow_s if found else _FIRST_WAIT * slow_s)
            if isinstance(fields, BaseException):
                raise fields
            found[position] = fields
    except Empty:  # the threads that still work are with slow pictures
        return found
    finally:
        stopped.set()
    return found


def _longest_s(settings: FetchSettings) -> float:
    """Return a bound on the seconds of a fetch, for stores that send a byte now and then, and disks that hang."""
    return 2 * settings.attempts * (settings.connect_timeout_s + settings.read_timeout_s)


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {"image_version": row["image_version"], "warnings": row["warnings"] or []}


def _prepare(row: dict[str, Any], preparation: Preparation, decoding: BoundedSemaphore) -> dict[str, Any]:
    """Return the prepared fields of a row: those of its picture and its late text, or those of its error."""
    known = _known(row)
    if row["row_error"] is not None:
        return known | _error("row_invalid", row["row_error"])
    if row["image_uri"] is None:
        return known | _error("image_missing", "the pair has no image")
    try:
        if row.get("text_uri") is not None:  # manifests of earlier versions have no such column
            known |= _late_text(row["text_uri"], preparation.fetch, known["warnings"])
        return known | _picture(row, preparation, decoding, known["warnings"])
    except RowError as error:
        return known | _error("row_invalid", str(error))
    except FetchFailed as error:
        return known | _error(error.code, error.detail, error.retryable) | {"attempt": error.attempt}
    except InputError as error:
        return known | _error(error.code, str(error))


def _late_text(uri: str, settings: FetchSettings, warnings: list[str]) -> dict[str, Any]:
    """Return the columns of a text that the manifest could not get, as the manifest would have them."""
    text = read_late_text(uri, settings)
    escapes = find_escapes(text or "")
    columns = {"text": text and storable(text), "text_escapes": escapes or None}
    return columns | {"warnings": [*warnings, ESCAPED] if escapes else warnings}


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
        "warnings": [*warnings, *fetched.warnings, *image.warnings],
    }


def _thumbnail(data: bytes, limits: ImageLimits, side: int) -> bytes:
    image = decode_image(data, limits, min_side=side).image
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _error(code: str, detail: str, retryable: bool = False) -> dict[str, Any]:
    return {"error_code": code, "error_detail": storable(detail), "retryable": retryable}
