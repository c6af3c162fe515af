"""Inputs of a scan, told apart by their names, each a stream of manifest rows.

    *.json            a DGM4 metadata file (an array of records), or one JSON object a line
    *.jsonl *.ndjson  one JSON object a line
    *.csv             with a header
    *.parquet
    anything else     a folder or prefix of pictures, each with a text file of the same name beside it

A record has `image` or `image_uri`, `text`, and may have `custom_id` or `id`, `image_offset` with `image_length`
(bytes of a larger file), and `metadata`; without the last, its other fields are the metadata. Files may be
compressed (.gz, .bz2, .zst). A record that cannot be understood is a row with a `row_error`, never left out.

A manifest names the pictures to read, so it decides what the job's credentials are used for. Addresses (http://
and the like) are refused, and a manifest that lies in S3 may not name local files, which are the workers' own.
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

from asap.errors import StorageError
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
"""Of a file, as the manifest can say it."""
_TEXT_READERS = 32
_KNOWN_FIELDS = {"custom_id", "id", "image", "image_uri", "image_offset", "image_length", "text", "metadata"}


@dataclass(frozen=True)
class Source:
    """An input that is there, and how to read it."""

    location: Location
    kind: str
    """json, jsonl, csv, parquet or folder."""
    limit: int | None = None
    """Read only the first so many rows."""
    needed: Needed = PAIRS
    """Of the columns of a table."""

    def fingerprint(self) -> str:
        """Changes when the input does."""
        if self.kind != "folder":
            return file_fingerprint(self.location)
        return files_fingerprint(filter(None, chain.from_iterable(_pictures(self.location, self.limit))))

    def rows(self) -> Iterator[ManifestRow]:
        """Every row of the input, in its order."""
        if self.kind == "folder":
            return _folder_rows(self.location, self.limit)
        return islice(_record_rows(self.location, self.kind, self.needed), self.limit)


def find_source(text: str, limit: int | None = None, *, texts: bool = True) -> Source:
    """The input called `text`; a table of it needs a column of texts only where `texts` says so.

    Raises `InputNotFound` or `StorageError`, of one sentence, if nothing can be scanned.
    """
    location = Location.parse(text)
    file = record_file(location.name)
    if file is not None and exists(location):
        needed = PAIRS if texts else PICTURES
        _check_first(location, file.kind, needed)
        return Source(location, file.kind, limit, needed)
    if next(_pictures(location, 1), None) is None:
        raise InputNotFound(
            f"{location} {_what_is_wrong(location)}; give a manifest (.json, .jsonl, .csv, .parquet) or a folder of "
            "pictures"
        )
    return Source(location, "folder", limit)


def _check_first(location: Location, kind: str, needed: Needed) -> None:
    """Refuse a file without a record, and a .json whose first one is no JSON: its lines are not meant as records."""
    found = next(read_records(location, kind, needed), None)
    if found is None:
        raise InputNotFound(f"{location} holds no record: nothing to scan")
    if kind == "json" and isinstance(found[1], RowError):
        raise InputNotFound(f"{location} is neither an array nor lines of JSON objects: {found[1]}")


def _what_is_wrong(location: Location) -> str:
    if exists(location):
        return "is a file of another kind"
    if next(list_files(location), None) is None:
        return "is not there, or holds nothing"
    return f"holds no picture ({', '.join(IMAGE_SUFFIXES)})"


def _record_rows(location: Location, kind: str, needed: Needed) -> Iterator[ManifestRow]:
    records = read_records(location, kind, needed)
    first = list(islice(records, 20))
    base = _image_base(location, [record for _, record in first if isinstance(record, dict)])
    for line, record in chain(first, records):
        yield _to_row(line, record, base)


def _image_base(manifest: Location, records: list[dict[str, Any]]) -> Location:
    """The folder that relative image paths start from: the manifest's, or the data set's if that is where they are.

    DGM4 keeps its manifests in metadata/, with paths from the data set's root or from the folder around it.
    """
    folder = manifest.parent
    if folder.name != "metadata":
        return folder
    bases = [folder.parent, folder.parent.parent, folder]
    for record in records:
        for base in bases:
            name = _given(record, "image_uri", "image")
            if isinstance(name, str) and _is_relative(name) and exists(base / name):
                return base
    return bases[0]


def _is_relative(uri: str) -> bool:
    return not uri.startswith("/") and _SCHEME.match(uri) is None


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
    name = _given(record, "custom_id", "id")
    if name is not None:
        row.custom_id = _typed(name, "custom_id", str, int)
    if not {"image", "image_uri", "text"} & set(record):
        raise RowError(f"the record has neither image nor text; its fields are {sorted(record)}")
    row.metadata = _metadata(record)
    row.text = _text(record.get("text"))
    row.image_offset, row.image_length = _member(record)
    uri = _given(record, "image_uri", "image")
    if uri is not None:
        row.image_uri = image_uri(_typed(uri, "image", str), base)


def _given(record: dict[str, Any], *names: str) -> Any:
    """What the first of these fields holds that holds anything."""
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _typed(value: Any, name: str, *types: type) -> str:
    if isinstance(value, bool) or not isinstance(value, types):
        raise RowError(f"{name} is {value!r:.100}, a {type(value).__name__} and not a string")
    return str(value)


def _text(value: Any) -> str | None:
    """The text as it is; nothing but white space is no text."""
    if value is None:
        return None
    text = _typed(value, "text", str)
    return text if text.strip() else None


def _member(record: dict[str, Any]) -> tuple[int | None, int | None]:
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
    """What the caller gave as `metadata`; without it, the fields that mean nothing to the scan."""
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
    """The absolute path or s3:// address of an image named in a manifest, `base` being where relative paths start.

    Raises `RowError` for what a manifest may not name: addresses of the network, local files if it lies in S3.
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
            f"the image {uri!r:.200} is a local file, and the manifest lies in S3; use s3:// or relative paths"
        )
    path = uri.removeprefix("file://")
    if not base.is_s3:
        return posixpath.normpath(posixpath.join(base.uri, path))
    key = posixpath.normpath(posixpath.join(base.key, path))
    if key.startswith(".."):
        raise RowError(f"the image {uri!r:.200} leaves the bucket {base.bucket}")
    return f"s3://{base.bucket}/{key}"


def _pictures(folder: Location, limit: int | None) -> Iterator[tuple[FileInfo, FileInfo | None]]:
    """Each picture below a folder, with the text file of the same name. Texts without a picture are no pairs.

    Listings keep names with a common beginning together, so one group of them at a time is enough to pair up.
    """
    if not folder.is_s3 and exists(folder):
        return iter(())
    return islice(chain.from_iterable(map(_pair_up, _groups(folder))), limit)


def _groups(folder: Location) -> Iterator[list[FileInfo]]:
    for _, group in groupby(list_files(folder), key=lambda info: _before_first_dot(info.location)):
        yield list(group)


def _before_first_dot(location: Location) -> str:
    folder, name = posixpath.split(location.uri)
    return f"{folder}/{name.partition('.')[0]}"


def _pair_up(group: list[FileInfo]) -> Iterator[tuple[FileInfo, FileInfo | None]]:
    texts = {posixpath.splitext(info.location.uri)[0]: info for info in group if info.location.uri.endswith(".txt")}
    for info in group:
        stem, suffix = posixpath.splitext(info.location.uri)
        if suffix.lower() in IMAGE_SUFFIXES:
            yield info, texts.get(stem)


def _folder_rows(folder: Location, limit: int | None) -> Iterator[ManifestRow]:
    pairs = _pictures(folder, limit)
    row_id = 0
    with ThreadPoolExecutor(_TEXT_READERS) as readers:
        while chunk := list(islice(pairs, 16 * _TEXT_READERS)):
            for (picture, _), text in zip(chunk, readers.map(_read_text, [text for _, text in chunk]), strict=True):
                yield _picture_row(row_id, picture, text, folder)
                row_id += 1


def _picture_row(row_id: int, picture: FileInfo, text: str | RowError | None, folder: Location) -> ManifestRow:
    name = picture.location.uri.removeprefix(folder.uri).lstrip("/")
    row = ManifestRow(row_id=row_id, custom_id=name, image_uri=picture.location.uri, image_version=picture.version)
    if not is_storable(picture.location.uri):  # what `os.fsdecode` makes of a name of other bytes
        row.row_error = f"the path of the picture is not UTF-8: {os.fsencode(picture.location.uri)!r}; rename it"
    elif isinstance(text, RowError):
        row.row_error = str(text)
    else:
        row.text = text
    return row


def _read_text(info: FileInfo | None) -> str | RowError | None:
    if info is None:
        return None
    if info.size > _MAX_TEXT_BYTES:
        return RowError(f"the text file {info.location} has {info.size} bytes; the limit is {_MAX_TEXT_BYTES}")
    try:
        return _text(read_bytes(info.location).decode("utf-8-sig").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        return RowError(f"the text file {info.location} is not UTF-8: {error}")
    except StorageError as error:
        return RowError(f"the text file cannot be read: {error}")
