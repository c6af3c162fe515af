"""Texts beside pictures: `a.txt`, `a.jpg.txt`, `a.caption` or `a.json` for the picture `a.jpg`."""

from __future__ import annotations

import codecs
import json
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asap.errors import FetchFailed, ImageTooLarge, StorageError
from asap.storage.fetch import FetchSettings, fetch
from asap.storage.files import read_bytes
from asap.storage.location import FileInfo, Location
from jobs.scan.input.listing import TEXT_SUFFIXES
from jobs.scan.input.record_files import RowError

MAX_TEXT_BYTES = 2**20
LOOKED_FOR = tuple(name for suffix in TEXT_SUFFIXES for name in (f"NAME{suffix}", f"NAME.jpg{suffix}"))
"""Names of the texts of a picture NAME.jpg, in the order in which they are taken."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TEXT_FIELDS = ("text", "caption", "title", "sentence", "description")

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """The text of a picture, as it was read."""

    text: str | None
    """None if there is none but white space."""
    warnings: list[str] = field(default_factory=list)


def texts_by_name(files: Iterable[tuple[str, T]]) -> dict[tuple[str, str], T]:
    """Return those of some named files that are texts, by name without suffix and by suffix in lower case."""
    split = ((*posixpath.splitext(name), file) for name, file in files)
    return {(stem, suffix.lower()): file for stem, suffix, file in split if suffix.lower() in TEXT_SUFFIXES}


def find_texts(picture: str, texts: dict[tuple[str, str], T], key: str | None = None) -> list[T]:
    """Return the texts of a picture; the first is taken.

    Args:
        picture: The picture's name.
        texts: The texts that may be meant, from `texts_by_name`.
        key: A shorter name that the texts of all pictures of a sample may have.
    """
    if not texts:
        return []
    names = dict.fromkeys(name for name in (posixpath.splitext(picture)[0], picture, key) if name is not None)
    return [texts[name, suffix] for suffix in TEXT_SUFFIXES for name in names if (name, suffix) in texts]


def read_text(info: FileInfo | None) -> Text | RowError | Location | None:
    """Return the text of a text file, why it is none, or its location if the store does not deliver it now."""
    if info is None:
        return None
    if info.size > MAX_TEXT_BYTES:
        return RowError(f"the text file {info.location} has {info.size} bytes; the limit is {MAX_TEXT_BYTES}")
    try:
        return parse_text(read_bytes(info.location), info.location.uri)
    except StorageError:
        return info.location
    except RowError as error:
        return error


def read_late_text(uri: str, settings: FetchSettings) -> str | None:
    """Return the text of a file that the store did not deliver for the manifest.

    Raises `FetchFailed` for a store that does not deliver it now either, and `RowError` for a file that is no text.
    """
    try:
        return parse_text(fetch(uri, MAX_TEXT_BYTES, settings).data, uri).text
    except ImageTooLarge as error:
        raise RowError(f"the text file {uri} has more than {MAX_TEXT_BYTES} bytes") from error
    except FetchFailed as error:
        detail = f"the text file cannot be read: {error.detail}"
        raise FetchFailed(error.code, detail, retryable=error.retryable, attempt=error.attempt) from error


def parse_text(data: bytes, name: str) -> Text:
    """Return the text in the bytes of a text file. Raises `RowError`.

    Args:
        data: The whole file.
        name: Its name, for messages. That of a JSON file ends in `.json`.
    """
    text, warnings = _decode(data, name)
    if posixpath.splitext(name)[1].lower() != ".json":
        text = text.rstrip("\r\n")
        return Text(text if text.strip() else None, warnings)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"the text file {name} is not JSON: {error}") from error
    return Text(_text_of(record, name), warnings)


def _decode(data: bytes, name: str) -> tuple[str, list[str]]:
    """Return the characters of a text file, and a warning if its encoding was guessed. Raises `RowError`."""
    if b"\0" in data and not data.startswith(_UTF_16):
        raise RowError(f"the text file {name} is no text: it has NUL bytes, and does not begin as UTF-16")
    try:
        return data.decode("utf-16" if data.startswith(_UTF_16) else "utf-8-sig"), []
    except UnicodeDecodeError as error:
        if data.startswith(_UTF_16):
            raise RowError(f"the text file {name} is not UTF-16, as its first bytes say: {error.reason}") from error
    try:
        return data.decode("cp1252"), [f"the text file {name} is not UTF-8; it was read as cp1252"]
    except UnicodeDecodeError as error:
        raise RowError(f"the text file {name} is neither UTF-8 nor cp1252: {error}") from error


def _text_of(record: Any, name: str) -> str | None:
    """Return the text of a JSON sidecar: a string, or the field of an object. Raises `RowError`."""
    if isinstance(record, dict):
        record = next((record[key] for key in _TEXT_FIELDS if record.get(key)), None)
    if record is None:
        return None
    if not isinstance(record, str):
        raise RowError(f"the text in {name} is of type {type(record).__name__}; it must be a string")
    return record if record.strip() else None
