"""Inputs of a scan, each a stream of manifest rows. The name of an input decides how it is read.

    *.json            a DGM4 metadata file (an array of records), or one JSON object a line
    *.jsonl *.ndjson  one JSON object a line
    *.csv             with a header
    *.parquet
    anything else     a folder or prefix of pictures, each with a text file of the same name beside it

A record has `image` or `image_uri`, `text`, and may have `custom_id` or `id`, `image_offset` with `image_length`
(bytes of a larger file), and `metadata`. Without `metadata`, its other fields are the metadata. Files may be
compressed (.gz, .bz2, .zst). A record that cannot be understood becomes a row with a `row_error`; none is left out.

A manifest names the pictures to read, so it decides what the job's credentials are used for. Addresses (http://
and the like) are refused. A manifest in S3 may not name local files, because these belong to the workers.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any

from asap.errors import FetchFailed, ImageTooLarge, StorageError
from asap.storage.fetch import FetchSettings, fetch
from asap.storage.files import exists, list_files, read_bytes
from asap.storage.fingerprint import file_fingerprint, files_fingerprint
from asap.storage.location import FileInfo, Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import ManifestRow, is_storable
from jobs.scan.input.record_files import PAIRS, PICTURES, Needed, Record, RowError, read_records, record_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SCHEME = re.compile(r"^(data(?=:)|[a-zA-Z][\w+.-]*(?=://))")
_MAX_TEXT_BYTES = 2**20
_MOST_BYTES = 2**63 - 1
"""Largest end of a byte range that the manifest can hold."""
_TEXT_READERS = 32
_KNOWN_FIELDS = {"custom_id", "id", "image", "image_uri", "image_offset", "image_length", "text", "metadata"}


@dataclass(frozen=True)
class Source:
    """An input that exists, and how to read it."""

    location: Location
    kind: str
    """json, jsonl, csv, parquet or folder."""
    limit: int | None = None
    """Read only the first so many rows."""
    needed: Needed = PAIRS
    """Columns that a table must have."""

    def fingerprint(self) -> str:
        """Return a string that changes when the input does."""
        if self.kind != "folder":
            return file_fingerprint(self.location)
        return files_fingerprint(filter(None, chain.from_iterable(_pictures(self.location, self.limit))))

    def rows(self) -> Iterator[ManifestRow]:
        """Return every row of the input, in its order."""
        if self.kind == "folder":
            return _folder_rows(self.location, self.limit)
        return islice(_record_rows(self.location, self.kind, self.needed), self.limit)


def find_source(text: str, limit: int | None = None, *, texts: bool = True) -> Source:
    """Return the input at an address.

    Raises `InputNotFound` or `StorageError` if there is nothing that can be scanned.

    Args:
        text: A path or an s3:// address.
        limit: Read only the first so many rows.
        texts: True if a table needs a column of texts.
    """
    location = Location.parse(text)
    file = record_file(location.name)
    if file is not None and exists(location):
        needed = PAIRS if texts else PICTURES
        _check_first(location, file.kind, needed)
        return Source(location, file.kind, limit, needed)
    if next(_pictures(location, 1), None) is None:
        raise InputNotFound(
            f"{location} {_describe_problem(location)}. Give a manifest (.json, .jsonl, .csv, .parquet) or a folder of "
            "pictures"
        )
    return Source(location, "folder", limit)


def _check_first(location: Location, kind: str, needed: Needed) -> None:
    """Raise `InputNotFound` for a file without a record, and for a .json file whose first record is not JSON.

    A .json file may hold one object a line. If its first line is broken, its lines are probably not meant as records.
    """
    found = next(read_records(location, kind, needed), None)
    if found is None:
        raise InputNotFound(f"{location} holds no record: nothing to scan")
    if kind == "json" and isinstance(found[1], RowError):
        raise InputNotFound(f"{location} is neither an array nor lines of JSON objects: {found[1]}")


def _describe_problem(location: Location) -> str:
    if exists(location):
        return "is a file of another kind"
    if next(list_files(location), None) is None:
        return "is not there, or holds nothing"
    return f"holds no picture ({', '.join(IMAGE_SUFFIXES)})"


def _record_rows(location: Location, kind: str, needed: Needed) -> Iterator[ManifestRow]:
    records = read_records(location, kind, needed)
    # The first records show where relative paths start; the others are read as a stream.
    first = list(islice(records, 20))
    base = _image_base(location, [record for _, record in first if isinstance(record, dict)])
    for line, record in chain(first, records):
        yield _to_row(line, record, base)


def _image_base(manifest: Location, records: list[dict[str, Any]]) -> Location:
    """Return the folder that relative image paths start from.

    It is the manifest's folder. DGM4 keeps its manifests in metadata/, with paths from the data set's root or from the
    folder around it, so for a manifest in metadata/ it is the first folder that has the picture of one of the records.
    """
    folder = manifest.parent
    if folder.name != "metadata":
        return folder
    bases = [folder.parent, folder.parent.parent, folder]
    for record in records:
        name = _first_value(record, "image_uri", "image")
        if not isinstance(name, str) or name.startswith("/") or _SCHEME.match(name):
            continue  # not a relative path
        for base in bases:
            if exists(base / name):
                return base
    return bases[0]


def _to_row(row_id: int, record: Record, base: Location) -> ManifestRow:
    row = ManifestRow(row_id=row_id)
    try:
        if isinstance(record, RowError):
            raise record
        _fill(row, record, base)
    except RowError as error:
        row.row_error = str(error)
    return row


def _fill(row: ManifestRow, record: dict[str, Any], base: Location) -> None:
    """Copy the fields of a record into a row; raise `RowError` at the first that cannot be understood."""
    # The name comes first, so that the error of another field is reported under the caller's name.
    name = _first_value(record, "custom_id", "id")
    if name is not None:
        row.custom_id = _to_string(name, "custom_id", str, int)
    if not {"image", "image_uri", "text"} & set(record):
        raise RowError(f"the record has neither image nor text; its fields are {sorted(record)}")
    row.metadata = _metadata(record)
    text = record.get("text")
    if text is not None:
        row.text = _text_or_none(_to_string(text, "text", str))
    row.image_offset, row.image_length = _byte_range(record)
    uri = _first_value(record, "image_uri", "image")
    if uri is not None:
        row.image_uri = image_uri(_to_string(uri, "image", str), base)


def _first_value(record: dict[str, Any], *names: str) -> Any:
    """Return the value of the first of these fields that is neither null nor empty; None without one."""
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _to_string(value: Any, name: str, *types: type) -> str:
    """Return a field's value as a string; raise `RowError` if it is of none of the types."""
    if isinstance(value, bool) or not isinstance(value, types):  # a bool is an int to Python
        raise RowError(f"{name} is {value!r:.100}, of type {type(value).__name__}; it must be a string")
    return str(value)


def _text_or_none(text: str) -> str | None:
    """Return the text unchanged; None if it is only white space."""
    return text if text.strip() else None


def _byte_range(record: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return `image_offset` and `image_length`, checked; both are None for a picture that is a whole file."""
    offset, length = record.get("image_offset"), record.get("image_length")
    if offset is None and length is None:
        return None, None
    try:
        offset, length = int(offset), int(length)  # type: ignore[arg-type]  # CSV has them as strings
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(f"image_offset {offset!r} and image_length {length!r} are not two whole numbers") from error
    if offset < 0 or length < 1 or offset + length > _MOST_BYTES:
        raise RowError(f"image_offset {offset} and image_length {length} are not bytes of a file")
    return offset, length


def _metadata(record: dict[str, Any]) -> str | None:
    """Return the caller's `metadata`; without it, the fields that mean nothing to the scan."""
    value = record.get("metadata")
    if value is None:
        value = {name: field for name, field in record.items() if name not in _KNOWN_FIELDS} or None
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError as error:
        raise RowError("the metadata are nested too deep to be passed through") from error


def image_uri(uri: str, base: Location) -> str:
    """Return the absolute path or s3:// address of an image named in a manifest.

    `base` is the folder that relative paths start from. Raises `RowError` for what a manifest may not name: addresses
    of the network, and local files if the manifest lies in S3.
    """
    if not is_storable(uri):
        raise RowError(f"the image {uri!r:.200} has a NUL or a lone surrogate, which no path has")
    if uri.startswith("s3://"):
        return uri
    scheme = _SCHEME.match(uri)
    if scheme and scheme[1] != "file":
        raise RowError(f"the image {uri!r:.200} is an address; only paths, file:// and s3:// are read")
    if base.is_s3 and (scheme or uri.startswith("/")):
        raise RowError(
            f"the image {uri!r:.200} is a local file, and the manifest lies in S3. Use s3:// or relative paths."
        )
    path = uri.removeprefix("file://")
    if not base.is_s3:
        return posixpath.normpath(posixpath.join(base.uri, path))
    key = posixpath.normpath(posixpath.join(base.key, path))
    if key.startswith(".."):
        raise RowError(f"the image {uri!r:.200} leaves the bucket {base.bucket}")
    return f"s3://{base.bucket}/{key}"


def _folder_rows(folder: Location, limit: int | None) -> Iterator[ManifestRow]:
    pairs = _pictures(folder, limit)
    row_id = 0
    # Texts are read a few hundred at a time: enough to keep all readers busy, and few in memory.
    with ThreadPoolExecutor(_TEXT_READERS) as readers:
        while chunk := list(islice(pairs, 16 * _TEXT_READERS)):
            for (picture, _), text in zip(chunk, readers.map(_read_text, [text for _, text in chunk]), strict=True):
                yield _picture_row(row_id, picture, text, folder)
                row_id += 1


def _pictures(folder: Location, limit: int | None) -> Iterator[tuple[FileInfo, FileInfo | None]]:
    """Return each picture below a folder, with the text file of the same name. A text without a picture is no pair."""
    if not folder.is_s3 and exists(folder):
        return iter(())  # it is a file

    def before_first_dot(info: FileInfo) -> str:
        parent, name = posixpath.split(info.location.uri)
        return f"{parent}/{name.partition('.')[0]}"

    # Listings keep names with a common beginning together, so holding one such group at a time is enough to pair up.
    groups = (list(group) for _, group in groupby(list_files(folder), key=before_first_dot))
    return islice(chain.from_iterable(map(_pair_up, groups)), limit)


def _pair_up(group: list[FileInfo]) -> Iterator[tuple[FileInfo, FileInfo | None]]:
    texts = {posixpath.splitext(info.location.uri)[0]: info for info in group if info.location.uri.endswith(".txt")}
    for info in group:
        stem, suffix = posixpath.splitext(info.location.uri)
        if suffix.lower() in IMAGE_SUFFIXES:
            yield info, texts.get(stem)


def _read_text(info: FileInfo | None) -> str | RowError | Location | None:
    """Return the text of a text file, why it is none, or its location if the store does not deliver it now."""
    if info is None:
        return None
    if info.size > _MAX_TEXT_BYTES:
        return RowError(f"the text file {info.location} has {info.size} bytes; the limit is {_MAX_TEXT_BYTES}")
    try:
        return _decode(read_bytes(info.location), info.location.uri)
    except StorageError:
        return info.location
    except RowError as error:
        return error


def read_late_text(uri: str, settings: FetchSettings) -> str | None:
    """Return the text of a file that the store did not deliver for the manifest.

    Raises `FetchFailed` for a store that does not deliver it now either, and `RowError` for a file that is no text.
    """
    try:
        return _decode(fetch(uri, _MAX_TEXT_BYTES, settings).data, uri)
    except ImageTooLarge as error:
        raise RowError(f"the text file {uri} has more than {_MAX_TEXT_BYTES} bytes") from error
    except FetchFailed as error:
        detail = f"the text file cannot be read: {error.detail}"
        raise FetchFailed(error.code, detail, retryable=error.retryable, attempt=error.attempt) from error


def _decode(data: bytes, uri: str) -> str | None:
    """Return the text of a text file; None if it is only white space. Raises `RowError`."""
    try:
        return _text_or_none(data.decode("utf-8-sig").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise RowError(f"the text file {uri} is not UTF-8: {error}") from error


def _picture_row(
    row_id: int, picture: FileInfo, text: str | RowError | Location | None, folder: Location
) -> ManifestRow:
    name = picture.location.uri.removeprefix(folder.uri).lstrip("/")
    row = ManifestRow(row_id=row_id, custom_id=name, image_uri=picture.location.uri, image_version=picture.version)
    if not is_storable(picture.location.uri):  # `os.fsdecode` makes lone surrogates of bytes that are not UTF-8
        row.row_error = f"the path of the picture is not UTF-8: {os.fsencode(picture.location.uri)!r}. Rename it."
    elif isinstance(text, RowError):
        row.row_error = str(text)
    elif isinstance(text, Location):
        row.text_uri = text.uri
    else:
        row.text = text
    return row
