"""Inputs of a scan, each a stream of manifest rows. The name of an input decides how it is read.

    *.json            a DGM4 metadata file (an array of records), or one JSON object a line
    *.jsonl *.ndjson  one JSON object a line
    *.csv             with a header
    *.parquet
    anything else     a folder or prefix of pictures, each with a text file of the same name beside it

Files may be compressed (.gz, .bz2, .zst).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from asap.storage.files import exists, list_files
from asap.storage.fingerprint import file_fingerprint, files_fingerprint
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.folders import IMAGE_SUFFIXES, folder_rows, list_pictures
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.record_files import record_file
from jobs.scan.input.tables import NO_OPTIONS, Table, TableOptions, understand_table


@dataclass(frozen=True)
class Source:
    """An input that exists, and how to read it."""

    location: Location
    table: Table | None = None
    """The file of records. None for a folder of pictures."""
    limit: int | None = None
    """Read only the first so many rows."""

    @property
    def kind(self) -> str:
        """The kind of the input: json, jsonl, csv, parquet or folder."""
        return self.table.kind if self.table else "folder"

    def fingerprint(self) -> str:
        """Return a string that changes when the input does."""
        if self.table:
            return file_fingerprint(self.location)
        return files_fingerprint(filter(None, chain.from_iterable(list_pictures(self.location, self.limit))))

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the input, for `asap plan` and `job.json`."""
        return {"kind": self.kind} | ({"tables": [self.table.describe()]} if self.table else {})

    def rows(self) -> Iterator[ManifestRow]:
        """Return every row of the input, in its order."""
        if self.table:
            return islice(self.table.rows(), self.limit)
        return folder_rows(self.location, self.limit)


def find_source(text: str, limit: int | None = None, options: TableOptions = NO_OPTIONS) -> Source:
    """Return the input at an address.

    Raises `InputNotFound` or `StorageError` if there is nothing that can be scanned.

    Args:
        text: A path or an s3:// address.
        limit: Read only the first so many rows.
        options: What a person said about the tables of the input.
    """
    location = Location.parse(text)
    file = record_file(location.name)
    if file is not None and exists(location):
        return Source(location, understand_table(location, file.kind, options), limit)
    if next(list_pictures(location, 1), None) is None:
        raise InputNotFound(
            f"{location} {_describe_problem(location)}. Give a manifest (.json, .jsonl, .csv, .parquet) or a folder of "
            "pictures"
        )
    return Source(location, limit=limit)


def _describe_problem(location: Location) -> str:
    if exists(location):
        return "is a file of another kind"
    if next(list_files(location), None) is None:
        return "is not there, or holds nothing"
    return f"holds no picture ({', '.join(IMAGE_SUFFIXES)})"
