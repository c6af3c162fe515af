"""Texts beside pictures: `a.txt`, `a.jpg.txt`, `a.caption` or `a.json` for the picture `a.jpg`."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from asap.errors import FetchFailed, ImageTooLarge, StorageError
from asap.storage.fetch import FetchSettings, fetch
from asap.storage.files import read_bytes
from asap.storage.location import FileInfo, Location
from jobs.errors import InputNotFound
from jobs.scan.input.files.listing import TEXT_SUFFIXES
from jobs.scan.input.manifest import ManifestRow, RowError
from jobs.scan.input.tables.columns import NO_OPTIONS, Columns, TableOptions, find_columns, plain, show_names
from jobs.scan.input.tables.encoding import encoding_of_text, guess_together, is_plain
from jobs.scan.input.tables.rows import Base, RowMaker

MAX_TEXT_BYTES = 2**20
_MOST_ODD = 512
"""Files from which an encoding is guessed. If it cannot be, more of them hardly help."""
_LFS = b"version https://git-lfs"
LOOKED_FOR = tuple(name for suffix in TEXT_SUFFIXES for name in (f"NAME{suffix}", f"NAME.jpg{suffix}"))
"""Names of the texts of a picture NAME.jpg, in the order in which they are taken."""
_NO_TEXTS = TableOptions(texts=False)
_PICTURE_NAMES = ("image", "imageuri")
_MAKERS: dict[tuple[tuple[str, ...], str | None], RowMaker] = {}
"""Makers of texts from JSON files, by the names of their fields."""
_MOST_MAKERS = 256
_METADATA = RowMaker(Columns(image=(), text=("text",), metadata="metadata"), Base(Location("/")))
"""Makes metadata of objects."""

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """The text of a picture, as it was read."""

    text: str | None
    """None if there is none but white space."""
    warnings: list[str] = field(default_factory=list)
    metadata: str | None = None
    """The other fields of a JSON file, as JSON."""


def texts_by_name(files: Iterable[tuple[str, T]]) -> dict[tuple[str, str], T]:
    """Return those of some named files that are texts, by name without suffix and by suffix in lower case."""
    found = {}
    for name, file in files:
        stem, dot, suffix = name.rpartition(".")
        if (suffix := dot + suffix.lower()) in TEXT_SUFFIXES:
            found[stem, suffix] = file
    return found


def find_texts(picture: str, texts: dict[tuple[str, str], T], key: str | None = None) -> list[T]:
    """Return the texts of a picture; the first is taken.

    Args:
        picture: The picture's name.
        texts: The texts that may be meant, from `texts_by_name`.
        key: A shorter name that the texts of all pictures of a sample may have.
    """
    if not texts:
        return []
    names = [posixpath.splitext(picture)[0], picture]
    if key is not None and key not in names:
        names.append(key)
    if len(texts) == 1:  # nearly always
        (((stem, _), only),) = texts.items()
        return [only] if stem in names else []
    return [text for suffix in TEXT_SUFFIXES for name in names if (text := texts.get((name, suffix))) is not None]


def read_data(info: FileInfo | None) -> bytes | RowError | Location | None:
    """Return the bytes of a text file, why it is none, or its location if the store does not deliver it now."""
    if info is None:
        return None
    if info.size > MAX_TEXT_BYTES:
        return RowError(f"the text file {info.location} has {info.size} bytes; the limit is {MAX_TEXT_BYTES}")
    try:
        return read_bytes(info.location) if info.location.is_s3 else _read_local(info.location.uri)
    except (StorageError, OSError):
        return info.location


class TextParser:
    """Makes texts of the text files of one folder.

    Those that are not UTF-8 have one encoding, which is guessed from all of the first files together.
    """

    def __init__(self, options: TableOptions) -> None:
        self._options = options
        self._guess: str | None = None
        self._odd: list[bytes] = []
        """Files that are not plain, as long as they are too few for a guess."""

    def parse(
        self, files: Iterable[tuple[FileInfo | None, bytes | RowError | Location | None]]
    ) -> list[Text | RowError | Location | None]:
        """Return the texts of some files, of which `read_data` has read the bytes."""
        files = list(files)
        if self._guess is None and self._options.encoding is None:
            odd = [data for _, data in files if isinstance(data, bytes) and not is_plain(data)]
            if odd and len(self._odd) < _MOST_ODD:
                self._odd += odd[:_MOST_ODD]
                self._guess = guess_together(self._odd)
        texts: list[Text | RowError | Location | None] = []
        for info, data in files:
            if info is None or not isinstance(data, bytes):
                texts.append(None if isinstance(data, bytes) else data)
                continue
            try:
                texts.append(parse_text(data, info.location.uri, self._options, self._guess))
            except RowError as error:
                texts.append(error)
        return texts


def _read_local(path: str) -> bytes:
    """Return the bytes of a small local file, in a third of the time that `Path` takes."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, MAX_TEXT_BYTES + 1)
    finally:
        os.close(file)


def read_late_text(uri: str, settings: FetchSettings) -> str | None:
    """Return the text of a file that the store did not deliver for the manifest.

    Raises `FetchFailed` for a store that does not deliver it now either, and `RowError` for a file that is no text.
    """
    try:
        data = fetch(uri, MAX_TEXT_BYTES, settings).data
        return parse_lone_text(data, uri).text
    except ImageTooLarge as error:
        raise RowError(f"the text file {uri} has more than {MAX_TEXT_BYTES} bytes") from error
    except FetchFailed as error:
        detail = f"the text file cannot be read: {error.detail}"
        raise FetchFailed(error.code, detail, retryable=error.retryable, attempt=error.attempt) from error


def parse_lone_text(data: bytes, name: str, options: TableOptions = NO_OPTIONS) -> Text:
    """Return the text of `parse_text` for a file whose neighbors are not known: its encoding is guessed from itself."""
    guess = None if options.encoding or is_plain(data) else guess_together([data])
    return parse_text(data, name, options, guess)


def parse_text(data: bytes, name: str, options: TableOptions = NO_OPTIONS, guess: str | None = None) -> Text:
    """Return the text in the bytes of a text file. Raises `RowError`.

    Args:
        data: The whole file.
        name: Its name, for messages. That of a JSON file ends in `.json`.
        options: What a person said about encodings, and about the field of the text in JSON.
        guess: The encoding of the texts around it that are not UTF-8.
    """
    if data.startswith(_LFS):
        raise RowError(f"the text file {name} is a Git LFS pointer and not the text. Fetch it with `git lfs pull`.")
    encoding = encoding_of_text(data, options.encoding, guess)
    try:
        text = data[len(encoding.mark) :].decode(encoding.name)
    except UnicodeDecodeError as error:
        raise RowError(
            f"the text file {name} is not {encoding.name}: {error.reason}. Say its encoding with --encoding (cp1252 is "
            "that of Windows in the west), or repair the file."
        ) from error
    if text.count("\0") > len(text) // 10:
        raise RowError(
            f"the text file {name} is no text: it has NUL characters. If it is UTF-16, say --encoding utf-16."
        )
    warnings = []
    if encoding.guessed:
        warnings.append(
            f"the text file {name} is not UTF-8; {encoding.name} was guessed from all such texts together. Say "
            "--encoding if it is another"
        )
    if not name.lower().endswith(".json"):
        text = text.rstrip("\r\n")
        return Text(text if text.strip() else None, warnings)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"the text file {name} is not JSON: {error}") from error
    row = _text_row(record, name, options)
    return Text(row.text, warnings + row.warnings, row.metadata)


def parse_metadata(data: bytes, name: str) -> Text:
    """Return the object in a JSON file that holds no text, as metadata. Raises `RowError`."""
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RowError(f"the file {name} is not JSON: {error}") from error
    row = _METADATA.row(0, {"text": "", "metadata": record if isinstance(record, dict) else None})
    if row.row_error:
        raise RowError(f"the file {name}: {row.row_error}")
    return Text(None, row.warnings, row.metadata)


def _find_text_field(record: dict[str, Any], name: str, options: TableOptions) -> RowMaker | None:
    """Return the maker of texts from such records; None if they have no field of a text. Raises `RowError`."""
    # A sidecar names no picture, so that one is made up: a table needs it.
    record = {"image": "picture"} | {key: value for key, value in record.items() if plain(key) not in _PICTURE_NAMES}
    try:
        columns = find_columns(list(record), replace(_NO_TEXTS, text_column=options.text_column), name, [record])
    except InputNotFound as error:
        raise RowError(str(error)) from error
    if not columns.text:
        return None
    return RowMaker(replace(columns, image=(), id=(), offset=None, length=None, metadata=None), Base(Location("/")))


def _text_row(record: Any, name: str, options: TableOptions) -> ManifestRow:
    """Return the text of a JSON file: a string, or the field of an object, as a table has it. Raises `RowError`."""
    record = {"text": record} if isinstance(record, str) else record
    if not isinstance(record, dict):
        raise RowError(f"the text file {name} holds a {type(record).__name__}; it must be an object or a string")
    names = tuple(record)
    # Sidecars of a folder have the same fields. What was found for one holds for the others that have a text there.
    maker = _MAKERS.get((names, options.text_column))
    row = maker.row(0, record) if maker else None
    if row is None or row.text is None:
        if (maker := _find_text_field(record, name, options)) is None:
            row = _METADATA.row(0, {"text": "", "metadata": record})
            row.text = None
            row.warnings.append(f"{name} has no field of a text; its fields are {show_names(names)}")
            return row
        if len(_MAKERS) < _MOST_MAKERS:
            _MAKERS[names, options.text_column] = maker
        row = maker.row(0, record)
    if row.row_error:
        raise RowError(f"the text file {name}: {row.row_error}")
    return row
