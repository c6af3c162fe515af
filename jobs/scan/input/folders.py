"""Folders of pictures, each with a text file of the same name beside it, read as manifest rows."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby, islice

from asap.errors import FetchFailed, ImageTooLarge, StorageError
from asap.storage.fetch import FetchSettings, fetch
from asap.storage.files import exists, list_files, read_bytes
from asap.storage.location import FileInfo, Location
from jobs.scan.input.manifest import ManifestRow, is_storable
from jobs.scan.input.record_files import RowError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_MAX_TEXT_BYTES = 2**20
_TEXT_READERS = 32


def folder_rows(folder: Location, limit: int | None) -> Iterator[ManifestRow]:
    """Return a row for each picture below a folder, in the order of the listing."""
    pairs = list_pictures(folder, limit)
    row_id = 0
    # Texts are read a few hundred at a time: enough to keep all readers busy, and few in memory.
    with ThreadPoolExecutor(_TEXT_READERS) as readers:
        while chunk := list(islice(pairs, 16 * _TEXT_READERS)):
            for (picture, _), text in zip(chunk, readers.map(_read_text, [text for _, text in chunk]), strict=True):
                yield _picture_row(row_id, picture, text, folder)
                row_id += 1


def list_pictures(folder: Location, limit: int | None) -> Iterator[tuple[FileInfo, FileInfo | None]]:
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
        text = data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RowError(f"the text file {uri} is not UTF-8: {error}") from error
    return text if text.strip() else None


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
