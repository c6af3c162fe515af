"""Tables: files of records (JSON, JSON lines, CSV, Parquet), read as manifest rows.

A record has a picture and a text, and may have the caller's name for it, `image_offset` with `image_length` (bytes of a
larger file), and `metadata`. Without `metadata`, its other fields are the metadata. Which columns these are is found
from their names, in columns.py, and from the first records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from asap.errors import StorageError
from asap.storage.failures import storage_errors
from asap.storage.files import open_read
from asap.storage.location import FileInfo, Location, without_query
from jobs.errors import InputNotFound
from jobs.scan.input.addresses import is_relative
from jobs.scan.input.manifest import ManifestRow, RowError
from jobs.scan.input.tables.columns import NO_OPTIONS as NO_OPTIONS
from jobs.scan.input.tables.columns import WEB, Columns, find_columns, value_of
from jobs.scan.input.tables.columns import TableOptions as TableOptions
from jobs.scan.input.tables.csv_records import understand_csv
from jobs.scan.input.tables.inline import InlinePicture, looks_like_base64
from jobs.scan.input.tables.json_records import understand_json
from jobs.scan.input.tables.parquet_records import ParquetReader, understand_parquet
from jobs.scan.input.tables.record_files import Record, RecordReader, record_file
from jobs.scan.input.tables.rows import Base, RowMaker

SAMPLE = 256
"""First records that decide what the columns are."""
_ROWS_AT_ONCE = 512
"""Records that become rows together."""
_WEIGHT_AT_ONCE = 2**20
"""Characters and items of the records that become rows together: few long ones do."""
_DEEPEST = 4
"""Levels of a record whose items are weighed."""
_MOST_BAD = 10_000
"""First records of which one must be such that it can be scanned; a table may begin with those without a text."""
_LOOKED_FOR = 8
"""Pictures of the first records that are looked for, in a few folders each."""
_PICTURE_FOLDERS = (
    "images image imgs img pictures photos pics Images data train val test train2014 val2014 train2017 val2017 "
    "flickr30k-images flickr30k_images Flicker8k_Dataset JPEGImages"
)
"""Names of folders in which data sets keep their pictures."""
_LABEL_STUDIO = ("/data/upload/", "/data/local-files/?d=")
"""Beginnings of the paths that Label Studio writes for pictures that it has."""
_LONG_LIST = 32
"""Numbers in one field that are no annotation but an embedding."""
_NUMBERS = re.compile(r"\s*\[[-+\d.eE,\s]{500,}")
_OTHER_KINDS = (
    (b"version https://git-lfs", "is a Git LFS pointer and not the file. Fetch the file with `git lfs pull`."),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet. Unpack it, or save the sheet as CSV."),
    (b"\xd0\xcf\x11\xe0", "is a spreadsheet of an old Excel. Save the sheet as CSV."),
    (b"PAR1", "is a Parquet file. Give it a name that ends in .parquet."),
    (b"\x1f\x8b", "is compressed. Give it a name that ends in .gz."),
    (b"BZh", "is compressed. Give it a name that ends in .bz2."),
    (b"\x28\xb5\x2f\xfd", "is compressed. Give it a name that ends in .zst."),
    (b"<!doctype html", "is a page of HTML, such as a login page. Download the file itself."),
    (b"<html", "is a page of HTML, such as a login page. Download the file itself."),
    (b"<?xml", "is XML, such as the error of a store. Download the file itself."),
)
"""First bytes of files that are not what their names say, and what to do."""


@dataclass(frozen=True)
class Table:
    """A file of records that can be read as manifest rows."""

    location: Location
    kind: str
    """json, jsonl, csv or parquet."""
    reader: RecordReader
    columns: Columns
    base: Base
    notes: tuple[str, ...] = ()
    """Sentences for a person about how the file is read."""

    def rows(self) -> Iterator[ManifestRow]:
        """Return every row of the file, in its order."""
        maker = RowMaker(self.columns, self.base)
        for line, record in records_of(self.reader, self.location, self.kind):
            yield maker.row(line, record)

    def tables(self) -> Iterator[pa.Table]:
        """Return the same rows as small tables of `MANIFEST_SCHEMA`. Rows may lack names."""
        maker = RowMaker(self.columns, self.base)
        waiting: list[tuple[int, Record]] = []
        weight = 0
        try:
            for found in records_of(self.reader, self.location, self.kind):
                waiting.append(found)
                weight += _weight(found[1])
                if len(waiting) >= _ROWS_AT_ONCE or weight >= _WEIGHT_AT_ONCE:
                    yield maker.table(waiting)
                    waiting, weight = [], 0
        except (InputNotFound, StorageError):
            if waiting:
                yield maker.table(waiting)  # what lies before a place where the file is broken
            raise
        if waiting:
            yield maker.table(waiting)

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file, for `asap plan` and `job.json`."""
        return {
            "file": self.location.uri,
            "format": self.kind,
            **self.reader.describe(),
            "columns": self.columns.describe(),
            "base": self.base.folder.uri,
            "base_drops_first_folder": bool(self.base.dropped),
            "notes": list(self.notes),
        }


def _weight(value: Any, depth: int = 0) -> int:
    """Return the characters and items of a record, those of its first levels."""
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, dict | list) or depth == _DEEPEST:
        return 1
    items = value.values() if isinstance(value, dict) else value
    return sum(_weight(item, depth + 1) for item in items)


def understand_table(info: FileInfo, kind: str, options: TableOptions = NO_OPTIONS) -> Table:
    """Return a file of records as a table, after a look at its beginning.

    Raises `InputNotFound` for a file that cannot be scanned, such as one without a record or a necessary column, and
    one of whose first records none can be scanned.

    Args:
        info: The file, as it was found.
        kind: json, jsonl, csv or parquet.
        options: What a person said about the table.
    """
    try:
        return _understand(info, kind, options)
    except InputNotFound:
        if (other := _other_kind(info.location, kind)) is not None:
            raise InputNotFound(f"{info.location} {other}") from None
        raise


def _understand(info: FileInfo, kind: str, options: TableOptions) -> Table:
    location = info.location
    reader = open_records(location, kind, options, info.version)
    found = records_of(reader, location, kind)
    sample = list(islice(found, SAMPLE))
    records = [record for _, record in sample if isinstance(record, dict)]
    if reader.names is None and not records:
        _refuse_records(location, kind, sample)
    if reader.names is None:
        names: Sequence[str] = [*_names_of(records), *reader.twice]
    else:
        names = [*reader.names, *(name for name in _names_of(records) if name not in reader.names and "." in name)]
    columns = _columns(location, kind, names, options, records)
    if not sample:
        raise InputNotFound(f"{location} holds no record: nothing to scan")
    _refuse_problems(location, columns, records)
    _refuse_bytes(location, columns, records, options)
    if isinstance(reader, ParquetReader):
        reader = reader.with_pictures_of(columns.image)
    columns = _leave_out(columns, names, records)
    _refuse_web(location, columns, records)
    if kind == "parquet":
        _refuse_base64(location, columns, records)
    base, base_notes = _picture_base(location, columns, records, options)
    maker = RowMaker(columns, base)
    first = (maker.row(line, record) for line, record in chain(sample, islice(found, _MOST_BAD - len(sample))))
    _refuse_hopeless(location, columns, first, options)
    notes = (*reader.notes, *columns.notes, *_notes_of_lists(columns, records), *base_notes)
    return Table(location, kind, reader, columns, base, notes)


def _other_kind(location: Location, kind: str) -> str | None:
    """Return the kind of a file whose first bytes do not fit its name, and what to do; None without one."""
    try:
        with open_read(location) as file:
            head = file.read(2**6).lstrip().lower()
    except (StorageError, OSError, ValueError, pa.ArrowException):
        return None
    found = next((advice for start, advice in _OTHER_KINDS if head.startswith(start.lower())), None)
    file_name = record_file(location.name)
    if file_name is not None and file_name.packed:
        if kind == "parquet":
            return f"is a compressed Parquet file. Decompress it, so that its name ends without {file_name.packed}."
        if found is not None and file_name.packed != (lower := file_name.packed.lower()):
            return f"is not read under its name. Give it a name that ends in {lower}, in lower case."
    return None if kind == "parquet" and head.startswith(b"par1") else found


def _columns(
    location: Location,
    kind: str,
    names: Sequence[str],
    options: TableOptions,
    records: Sequence[Mapping[str, Any]],
) -> Columns:
    try:
        return find_columns(names, options, str(location), records)
    except InputNotFound as error:
        # A table of one column is mostly one whose delimiter was not found.
        if kind != "csv" or len(names) != 1 or options.delimiter is not None:
            raise
        raise InputNotFound(f"{error} If its cells have another delimiter, say it with --delimiter.") from error


def open_records(
    location: Location, kind: str, options: TableOptions = NO_OPTIONS, version: str | None = None
) -> RecordReader:
    """Return a file of records after a look at its encoding, delimiter and shape; nothing is said of its columns.

    Args:
        location: The file, which exists and may be compressed.
        kind: json, jsonl, csv or parquet.
        options: What a person said about the table.
        version: The version of the file, which the addresses of pictures in a Parquet file name.
    """
    with _read_errors(location, kind):
        if kind == "parquet":
            return understand_parquet(location, version)
        if kind == "csv":
            return understand_csv(location, options)
        return understand_json(location, kind, options.encoding)


def records_of(reader: RecordReader, location: Location, kind: str) -> Iterator[tuple[int, Record]]:
    """Yield the records of a file, with their lines. Raises `InputNotFound` or `StorageError`."""
    with _read_errors(location, kind):
        yield from reader.records()


@contextmanager
def _read_errors(location: Location, kind: str) -> Iterator[None]:
    try:
        with storage_errors(location):
            yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputNotFound(f"{location} cannot be read as {kind}: {error}") from error


def _refuse_records(location: Location, kind: str, sample: Sequence[tuple[int, Record]]) -> None:
    """Raise `InputNotFound` for a JSON file of whose first records none is an object."""
    if not sample:
        raise InputNotFound(f"{location} holds no record: nothing to scan")
    if kind == "json":
        raise InputNotFound(f"{location} is neither an array nor lines of JSON objects: {sample[0][1]}")
    raise InputNotFound(f"{location} has no JSON object in its first {len(sample)} lines: {sample[0][1]}")


def _names_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the fields of records, and those of objects in them, in the order of their first use."""
    names: dict[str, None] = {}
    inner: dict[str, None] = {}
    for record in records:
        names |= dict.fromkeys(record)
        for name, value in record.items():
            if isinstance(value, dict):
                inner |= dict.fromkeys(f"{name}.{key}" for key in value)
    return [*names, *(name for name in inner if name not in names)]


def _leave_out(columns: Columns, names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Columns:
    """Return the columns without those that hold long lists of numbers, such as embeddings, in the metadata."""
    roles = {*columns.image, *columns.text, *columns.id, columns.metadata}
    left_out = [name for name in names if name not in roles and _holds_numbers(records, name)]
    notes = [
        f"the column {name!r:.80} holds long lists of numbers and is left out of the metadata" for name in left_out
    ]
    return replace(columns, left_out=(*columns.left_out, *left_out), notes=(*columns.notes, *notes))


def _holds_numbers(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    for record in records:
        value = record.get(name)
        while isinstance(value, list) and value and isinstance(value[0], list):
            value = value[0]
        if isinstance(value, list) and len(value) >= _LONG_LIST and isinstance(value[0], int | float):
            return True
        if isinstance(value, str) and len(value) > 500 and _NUMBERS.match(value):
            return True
    return False


def _notes_of_lists(columns: Columns, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence about the choice among several texts of a record."""
    lists = [value for record in records for name in columns.text if isinstance(value := value_of(record, name), list)]
    if not any(len(value) > 1 for value in lists):
        return []
    if any(isinstance(turn, dict) and ("from" in turn or "role" in turn) for value in lists for turn in value):
        return [f"the text is the first answer of each conversation in {columns.text[0]!r:.80}"]
    return [f"records have several texts in {columns.text[0]!r:.80}; the first that is not empty is taken"]


def _refuse_web(location: Location, columns: Columns, records: Sequence[Mapping[str, Any]]) -> None:
    """Raise `InputNotFound` if the pictures are addresses of the web."""
    values = [value for record in records for name in columns.image if isinstance(value := value_of(record, name), str)]
    values = [without_query(value) for value in values if value.strip()]
    if values and all(WEB.match(value) for value in values):
        raise InputNotFound(
            f"the pictures of {location} are web addresses, in the column {columns.image[0]!r:.80}: {values[0]!r:.120}."
            " A scan reads paths, file:// and s3://. Download the pictures first, for example with img2dataset, and "
            "scan what it writes."
        )


def _refuse_problems(location: Location, columns: Columns, records: Sequence[Mapping[str, Any]]) -> None:
    """Raise `InputNotFound` if the pictures are in the table, and cannot be read from it one by one."""
    values = (value_of(record, name) for record in records for name in columns.image)
    problem = next((value.problem for value in values if isinstance(value, InlinePicture) and value.problem), None)
    if problem is not None:
        raise InputNotFound(f"{location} cannot be scanned as it is: {problem}")


def _refuse_bytes(
    location: Location, columns: Columns, records: Sequence[Mapping[str, Any]], options: TableOptions
) -> None:
    """Raise `InputNotFound` if the column of the texts holds bytes that are no text."""
    for name in columns.text if options.texts else ():
        values = [value for record in records if (value := value_of(record, name)) is not None]
        if values and all(isinstance(value, InlinePicture) for value in values):
            raise InputNotFound(
                f"the texts of {location}, in the column {name!r:.80}, are bytes that are not UTF-8, or pictures. "
                "Write them as a column of strings, or name another column with --text-column."
            )


def _refuse_base64(location: Location, columns: Columns, records: Sequence[Mapping[str, Any]]) -> None:
    """Raise `InputNotFound` if the pictures of a Parquet file are texts in base64, which have no bytes to address."""
    for name in columns.image:
        if any(isinstance(value := value_of(record, name), str) and looks_like_base64(value) for record in records):
            raise InputNotFound(
                f"the pictures of {location}, in the column {name!r:.80}, are texts in base64, which are not read from "
                "Parquet. Decode them into a column of bytes, for example with base64.b64decode in pandas."
            )


def _refuse_hopeless(location: Location, columns: Columns, rows: Iterable[ManifestRow], options: TableOptions) -> None:
    """Raise `InputNotFound` if none of the first rows can be scanned."""
    count, reason = 0, ""
    for row in rows:
        if row.row_error is not None:
            problem = row.row_error
        elif row.image_uri is None:
            problem = f"no picture in {' or '.join(map(repr, columns.image))}"
        elif options.texts and row.text is None:
            problem = f"no text in {' or '.join(map(repr, columns.text))}"
        else:
            return
        count += 1
        # CSV and JSON lines are counted by lines, all others by records.
        reason = reason or f"{'line' if _has_lines(location) else 'record'} {row.row_id + 1}: {problem}"
    encoding = ", or its encoding with --encoding (cp1252 is that of Excel)" if "UTF-8" in reason else ""
    raise InputNotFound(
        f"none of the first {count} records of {location} can be scanned. {reason.rstrip('.')}. Repair the file, or "
        f"name the columns that are meant with --image-column and --text-column{encoding}."
    )


def _has_lines(location: Location) -> bool:
    file = record_file(location.name)
    return file is not None and file.kind in ("csv", "jsonl")


def _picture_base(
    location: Location, columns: Columns, records: Sequence[Mapping[str, Any]], options: TableOptions
) -> tuple[Base, list[str]]:
    """Return the folder that relative paths of pictures start from, with notes about it.

    It is the table's folder, unless more of the first pictures are found from a folder around it, or without the first
    folder of their paths. DGM4 keeps its tables in metadata/, with paths from the root of the data set or from the
    folder around it; for a table there, these come first. Paths that begin with a slash start there too if they are
    not on this machine.
    """
    folder = location.parent
    names = _first_pictures(columns, records)
    if (base := _upload_base(location, names[:_LOOKED_FOR], options)) is not None:
        return base, [f"paths of Label Studio's server ({base.server}) start at {base.folder}, where they were found"]
    around = [folder, folder.parent, folder.parent.parent]
    folders = list(dict.fromkeys([*around[1:], folder] if folder.name == "metadata" else around))
    relative = [name for name in names if is_relative(name)]
    bases = [Base(folder) for folder in folders]
    is_there = cache(partial(_is_there, options))  # a folder may be asked for one name twice
    if relative:
        names = relative[:_LOOKED_FOR]
        first_folders = {name.partition("/")[0] if "/" in name else "" for name in relative}
        # Without different first folders, such as train/1.jpg and test/1.jpg, two pictures could become one.
        if len(first_folders) == 1:
            bases += [Base(folder, dropped) for dropped in first_folders if dropped for folder in folders]
    else:
        names = [name for name in names if name.startswith("/")][:_LOOKED_FOR]
        if not names or any(is_there(Base(folder), name) for name in names):
            return Base(folder), []
        bases = [Base(folder, server="/") for folder in folders]
    found = {}
    for base in bases:
        found[base] = sum(is_there(base, name) for name in names)
        if found[base] == len(names):
            break
    if relative and not any(found.values()):
        # Many lists have bare names, and the pictures lie in a folder beside them.
        inside = (Base(outer / name) for outer in (folder, folder.parent) for name in _PICTURE_FOLDERS.split())
        likely = (base for base in inside if any(is_there(base, name) for name in names[:2]))
        found |= {base: sum(is_there(base, name) for name in names) for base in islice(likely, 1)}
    best = max(found, key=lambda base: found[base])  # the first of equals
    if not found[best]:
        missing = f"none of the first {len(names)} pictures was" if len(names) > 1 else "the first picture was not"
        return Base(folders[0]), [f"{missing} found at {folders[0]}"] if relative else []
    if best == Base(folder):
        return best, []
    less = f" without their first folder {best.dropped!r:.80}" if best.dropped else ""
    return best, [f"paths of pictures start at {best.folder}{less}, where they were found"]


def _first_pictures(columns: Columns, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the different names of pictures in the first records, without spaces around them."""
    names = (next((value for name in columns.image if (value := value_of(record, name))), None) for record in records)
    return list(dict.fromkeys(name.strip() for name in names if isinstance(name, str)))


def _upload_base(location: Location, names: Sequence[str], options: TableOptions) -> Base | None:
    """Return the folder beside an export of Label Studio that holds the pictures; None for any other table.

    An export names pictures by their paths on the server. The folder is the first one of `upload`, `media/upload`,
    `images` and the export's own in which one of the first pictures lies: under its path, or else under its name alone.

    Raises `InputNotFound` if none of the first pictures is there, or at its path on this machine.
    """
    server = next((start for start in _LABEL_STUDIO if names and all(name.startswith(start) for name in names)), None)
    if server is None or any(_is_there(options, Base(location.parent), name) for name in names):
        return None
    folders = [location.parent / name for name in ("upload", "media/upload", "images")] + [location.parent]
    for is_flat in (False, True):
        for folder in folders:
            base = Base(folder, server=server, is_flat=is_flat)
            if any(_is_there(options, base, name) for name in names):
                return base
    raise InputNotFound(
        f"the pictures of {location} are paths on the server of Label Studio, such as {names[0]!r:.120}, and none of "
        f"the first {len(names)} lies beside the file. Copy the server's folder media/upload to {folders[0]}, or write "
        "paths that this machine has into a column and name it with --image-column."
    )


def _is_there(options: TableOptions, base: Base, name: str) -> bool:
    try:
        return options.exists(Location(base.uri(name)))
    except (RowError, StorageError, OSError, ValueError):
        return False
