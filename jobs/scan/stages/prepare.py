"""The first stage: it fetches each row's picture, decodes it and resizes it to a small uint8 square, in one step.

It also turns texts into the token ids that the model reads, since its CPUs cost less than the time of a GPU.

Data that travels between machines is therefore small, whatever the size of the pictures. No row raises an error: its
problem is written to its `error_code`. This module loads no torch, because its processes are many and start often.

A few slow pictures need not hold their batch. They can be left out of it, and are then missing from the results; the
scan tries them again apart, with all the time that `FetchSettings` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from io import BytesIO
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore, Event, Lock, Thread
from typing import Any

import pyarrow as pa
from PIL import Image

from asap.errors import AsapError, FetchFailed, InputError
from asap.preprocessing.images import DecodedImage, ImageLimits, PreparedImage, decode_image, prepare_image
from asap.preprocessing.text import ReaderSource
from asap.storage.fetch import Fetched, FetchSettings
from asap.storage.files import file_info
from asap.storage.location import Location
from asap.storage.picture_address import PictureAddress, PictureReader
from jobs.metrics import PairMetrics
from jobs.scan.input.files.sidecars import read_late_text
from jobs.scan.input.manifest import ESCAPED, RowError, complete_manifest, find_escapes, readable_text, storable
from jobs.scan.stages.result_rows import CALLER_COLUMNS, CAPTION_ERROR
from jobs.scan.stages.texts import ENCODED_TEXT, encode_texts

_ENCODED = "encoded_text"
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
    ("caption_error", CAPTION_ERROR),
    ("explanation", pa.string()),
    ("explanation_error", CAPTION_ERROR),
    (_ENCODED, ENCODED_TEXT),
]
"""Columns that this stage adds to a row. `pixels` are image_size * image_size * 3 bytes, RGB."""
_TEXT_COLUMNS = ("text", "text_escapes")
"""Columns of the caller that this stage fills in if the manifest could not."""


@dataclass(frozen=True)
class Preparation:
    """Settings for fetching and preparing pictures."""

    image_size: int | None
    """Side in pixels of the square that a model gets. None: no square is made."""
    limits: ImageLimits
    fetch: FetchSettings
    thumbnail_side: int | None = None
    """Largest side, in pixels, of the JPEG that is kept for the captioner. None: no JPEG is kept."""
    slow_after_s: float | None = None
    """Seconds without a picture of a batch becoming ready, after which those that are not are left out of the batch.
    None: no picture is left out."""
    metrics: PairMetrics = field(default_factory=PairMetrics)
    leaves_textless: bool = False
    """True to leave pairs without a text to a later pass, which captions them: their pictures are not fetched."""
    reader: ReaderSource | None = None
    """The reader of the model's texts. None: texts are left to the detector."""

    @property
    def reads_pictures(self) -> bool:
        """True if pictures are needed at all."""
        return self.image_size is not None or self.thumbnail_side is not None

    def patient(self, threads: int) -> Preparation:
        """Return the preparation that leaves no picture out. The pictures are slow, so many of them wait at a time."""
        fetch = self.fetch.model_copy(update={"threads": max(self.fetch.threads, min(threads, _MOST_THREADS))})
        return replace(self, slow_after_s=None, fetch=fetch)


_FIRST_WAIT = 3
"""Factor of the wait for the first picture of a batch."""
_MOST_THREADS = 64
"""Most threads of a preparation that waits for slow pictures."""
_READ_AHEAD = 2
"""Pictures of a table that wait in memory to be decoded."""
_idle_readers: list[PictureReader] = []
"""The reader of this process, while no batch uses it. The next batch often reads on in the same table."""


def prepare_batch(batch: pa.Table, preparation: Preparation, counter: Any = None) -> pa.Table:
    """Return the rows of a manifest with `PREPARED_FIELDS`; a row that failed has an `error_code`.

    Args:
        batch: Rows of `MANIFEST_SCHEMA`.
        preparation: How pictures are fetched and prepared.
        counter: The actor that counts the rows that are left out of the result, if there is one.
    """
    batch = complete_manifest(batch)
    rows = batch.to_pylist()
    with preparation.metrics.stage_timed("prepare"):
        found = _prepare_rows(rows, preparation)
    preparation.metrics.count_fetches(list(found.values()))
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
        if name != _ENCODED:
            columns[name] = pa.array([row.get(name) for row in prepared], kind)
    texts = [
        None if text is None or row.get("error_code") is not None else readable_text(text, escapes)
        for text, escapes, row in zip(*(_values(columns[name]) for name in _TEXT_COLUMNS), prepared, strict=True)
    ]
    columns[_ENCODED] = encode_texts(texts, preparation.reader)
    return pa.table(columns)


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values


def _prepare_rows(rows: list[dict[str, Any]], preparation: Preparation) -> dict[int, dict[str, Any]]:
    """Return the prepared fields of the rows by position, without those that take too long."""
    settings = preparation.fetch
    # Many threads wait for stores, but only a few decode at a time: decoding needs CPU and memory.
    decoding = BoundedSemaphore(settings.decode_threads)
    waiting, ready = SimpleQueue[int](), SimpleQueue[tuple[int, dict[str, Any] | BaseException]]()
    stopped = Event()
    # A table is read in its order, by one thread at a time, so few of its pictures are in memory.
    turn = Lock()
    has_tables = preparation.reads_pictures and any(row["image_group"] is not None for row in rows)
    # The reader is this batch's alone: a thread that hangs in it must not hold up the next batch.
    reader = _idle_readers.pop() if _idle_readers else PictureReader(settings)
    reader = reader.with_settings(settings)
    reader.look_again()

    def work() -> None:
        while not stopped.is_set():
            with turn:
                try:
                    position = waiting.get_nowait()
                except Empty:
                    return
                row = rows[position]
                try:
                    read = _read_from_table(row, reader, preparation.limits.max_bytes) if has_tables else None
                except BaseException as error:  # raised by the task, whose thread waits for it
                    ready.put((position, error))
                    continue
            try:
                ready.put((position, _prepare(row, preparation, decoding, read)))
            except BaseException as error:
                ready.put((position, error))

    for position in range(len(rows)):
        waiting.put(position)
    # Nobody waits for the end of a daemon thread: one that hangs holds neither this task nor its process.
    threads = min(settings.threads, settings.decode_threads + _READ_AHEAD) if has_tables else settings.threads
    for _ in range(min(threads, len(rows))):
        Thread(target=work, name="prepare", daemon=True).start()
    found: dict[int, dict[str, Any]] = {}
    slow_s = preparation.slow_after_s or _longest_s(settings)
    if has_tables:  # the pictures before it may have to be passed over, and all others of the table wait too
        slow_s = _longest_s(settings)
    try:
        while len(found) < len(rows):
            # The first picture may have to wait for the process to load and connect.
            position, fields = ready.get(timeout=slow_s if found else _FIRST_WAIT * slow_s)
            if isinstance(fields, BaseException):
                raise fields
            found[position] = fields
        _idle_readers[:] = [reader]
    except Empty:  # the threads that still work are with slow pictures
        return found
    finally:
        stopped.set()
    return found


def _read_from_table(row: dict[str, Any], reader: PictureReader, max_bytes: int) -> Fetched | AsapError | None:
    """Return the picture of a row that is in a table, or why it cannot be read. None for a picture elsewhere."""
    if row["image_group"] is None or row["image_uri"] is None or row["row_error"] is not None:
        return None
    try:
        return reader.fetch(PictureAddress.of_row(row), max_bytes)
    except (FetchFailed, InputError) as error:
        return error


def _longest_s(settings: FetchSettings) -> float:
    """Return a bound on the seconds of a fetch, for stores that send a byte now and then, and disks that hang."""
    return 2 * settings.attempts * (settings.connect_timeout_s + settings.read_timeout_s)


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {"image_version": row["image_version"], "warnings": row["warnings"] or []}


def _prepare(
    row: dict[str, Any], preparation: Preparation, decoding: BoundedSemaphore, read: Fetched | AsapError | None = None
) -> dict[str, Any]:
    """Return the prepared fields of a row: those of its picture and its late text, or those of its error.

    Args:
        row: The row of the manifest.
        preparation: How the picture is fetched and prepared.
        decoding: Lets few threads decode at a time.
        read: The picture, or why it cannot be read, if it is in a table. None: it is fetched here.
    """
    known = _known(row)
    if row["row_error"] is not None:
        return known | _error("row_invalid", row["row_error"])
    if preparation.leaves_textless and row["image_uri"] and row["text"] is None and row["text_uri"] is None:
        return known | _error("text_missing", "the pair has no text, and waits for its caption")
    try:
        if row["text_uri"] is not None:
            known |= _late_text(row["text_uri"], preparation.fetch, known["warnings"])
        if not preparation.reads_pictures:
            return known
        if row["image_uri"] is None:
            return known | _error("image_missing", "the pair has no image")
        if isinstance(read, AsapError):
            raise read
        if read is None:
            # A local file has no version. This look comes before the read, so that no later change goes unnoticed.
            is_local = not row["image_uri"].startswith("s3://")
            if known["image_version"] is None and is_local and preparation.fetch.allows(row["image_uri"]):
                info = file_info(Location(row["image_uri"]))
                known["image_version"] = info and info.revision
            reader = PictureReader(preparation.fetch)
            read = reader.fetch(PictureAddress.of_row(row), preparation.limits.max_bytes)
        return known | _picture(read, preparation, decoding, known)
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
    fetched: Fetched, preparation: Preparation, decoding: BoundedSemaphore, known: dict[str, Any]
) -> dict[str, Any]:
    size, side, limits = preparation.image_size, preparation.thumbnail_side, preparation.limits
    image: DecodedImage | PreparedImage
    pixels = thumbnail = None
    with decoding:
        if size is not None:
            image = prepare_image(fetched.data, size, limits)
            pixels = image.pixels.tobytes()
        if side is not None:
            decoded = decode_image(fetched.data, limits, min_side=side)
            thumbnail = _thumbnail(decoded, fetched.data, side)
            image = image if size is not None else decoded
    return {
        "pixels": pixels,
        "thumbnail": thumbnail,
        "width": image.width,
        "height": image.height,
        "image_sha256": image.sha256,
        "image_version": fetched.version or known["image_version"],
        "attempt": fetched.attempt,
        "fetched_bytes": len(fetched.data),
        "warnings": [*known["warnings"], *fetched.warnings, *image.warnings],
    }


def _thumbnail(decoded: DecodedImage, data: bytes, side: int) -> bytes:
    """Return a JPEG whose sides are at most `side` pixels: the file itself, or one of the picture, which is shrunk."""
    # To encode a small picture again would cost a tenth of what a small captioner takes for it. A file of more bytes
    # than its pixels carries something else.
    is_small = max(decoded.width, decoded.height) <= side and len(data) <= 3 * decoded.width * decoded.height
    if decoded.is_as_stored and not decoded.warnings and is_small:
        return data
    decoded.image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    decoded.image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _error(code: str, detail: str, retryable: bool = False) -> dict[str, Any]:
    return {"error_code": code, "error_detail": storable(detail), "retryable": retryable}
