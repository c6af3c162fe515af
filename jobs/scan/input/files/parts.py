"""Tables in several files, read as one input: the parts of a folder, or the files that a pattern names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asap.errors import StorageError
from asap.storage.location import FileInfo, Location
from jobs.errors import InputNotFound
from jobs.scan.input.files.listing import Address, Listing, Role
from jobs.scan.input.manifest import ManifestRow, unnamed_table
from jobs.scan.input.tables.record_files import record_file
from jobs.scan.input.tables.rows import Base
from jobs.scan.input.tables.table import NO_OPTIONS, Table, TableOptions, open_records, records_of, understand_table

PART_BITS = 32
"""Bits of a row's number that count the lines of its part. The part's own number lies above."""
_FIRST_PARTS = 3
_FEW = 12
_FIRST_PICTURES = 8
SPLITS = re.compile(r"(?<![a-z])(train|training|test|testing|val|valid|validation|dev|eval)(?![a-z])")
"""Names of splits of data sets."""
_NUMBER_OR_SPLIT = re.compile(rf"[0-9a-f]{{8}}[0-9a-f-]{{20,}}|\d+|{SPLITS.pattern}")


@dataclass(frozen=True)
class TableParts:
    """Tables of one kind, read one after the other in the order of their names."""

    address: Address
    kind: str
    """Kind of each part: json, jsonl, csv, parquet …"""
    listing: Listing
    first: Table
    """The first part that has a record."""
    options: TableOptions = NO_OPTIONS
    only: tuple[FileInfo, ...] | None = None
    """The parts. None: all tables of the kind that a listing finds."""
    left_out: frozenset[Location] = frozenset()
    """Tables of the kind that are no tables of pairs."""
    picture_folders: tuple[Location, ...] = ()
    """Folders beside the tables that hold pictures."""
    notes: tuple[str, ...] = ()
    names_files: bool = False
    """True if the first records name pictures or tars beside the tables."""

    def parts(self) -> list[FileInfo]:
        """Return every part, in the order of the names."""
        found = self.address.files() if self.only is None else self.only
        parts = [info for info in found if self.address.is_meant(info) and self._is_part(info)]
        return sorted(parts, key=lambda info: info.location)

    def _is_part(self, info: FileInfo) -> bool:
        if info.location in self.left_out:
            return False
        return self.address.role_of(info) is Role.TABLE and kind_of(info) == self.kind

    def rows(self, limit: int | None = None) -> Iterator[ManifestRow]:
        """Return every row of every part. A part that cannot be read becomes a row with an error."""
        del limit  # rows are read as they are taken
        for number, part in enumerate(self.parts()):
            yield from self._part_rows(number << PART_BITS, part)

    def _part_rows(self, start: int, part: FileInfo) -> Iterator[ManifestRow]:
        done = 0
        try:
            if (table := understand_part(part, self.kind, self.options)) is None:
                return
            for row in place(table, self.picture_folders, self.options).rows():
                done = row.row_id + 1
                row.row_id += start
                yield row
        except (InputNotFound, StorageError) as error:
            yield self._unread(start, part, done, error)

    def tables(self) -> Iterator[pa.Table]:
        """Return the same rows as small tables of `MANIFEST_SCHEMA`. Rows may lack names."""
        for number, part in enumerate(self.parts()):
            yield from self._part_tables(number << PART_BITS, part)

    def _part_tables(self, start: int, part: FileInfo) -> Iterator[pa.Table]:
        done = 0
        try:
            if (table := understand_part(part, self.kind, self.options)) is None:
                return
            for rows in place(table, self.picture_folders, self.options).tables():
                ids = rows["row_id"]
                done = ids[-1].as_py() + 1
                yield rows.set_column(0, rows.schema.field(0), pc.add(ids, start))
        except (InputNotFound, StorageError) as error:
            yield unnamed_table([self._unread(start, part, done, error)])

    def _unread(self, start: int, part: FileInfo, done: int, error: InputNotFound | StorageError) -> ManifestRow:
        """Return the row of a part that cannot be read on. Raises the error if it is an outage of a store."""
        if isinstance(error, StorageError) and _is_outage(error, part):
            raise error
        name, after = self.address.name_of(part), f" after {done} lines" if done else ""
        problem = f"the part {name} cannot be read{after}: {error}"
        return ManifestRow(row_id=start + done, custom_id=f"{name}#{done}", row_error=problem)

    def files(self, limit: int | None = None) -> Iterator[FileInfo]:
        """Return the files that are read."""
        del limit
        return iter(self.parts())

    def describe(self) -> dict[str, Any]:
        """Return what a short look at the parts found."""
        taken = [info for info in self.listing[Role.TABLE] if self._is_part(info)]
        found = self.listing.describe(taken, (Role.PICTURE, Role.BARE, Role.TAR) if self.names_files else ())
        names = [self.address.name_of(info) for info in taken[:20]]
        return found | {
            "parts": {self.kind: len(taken)},
            "first_parts": names,
            "tables": [self.first.describe()],
            "notes": list(self.notes),
        }


def kind_of(info: FileInfo) -> str | None:
    """Return the kind of a table, by its name."""
    file = record_file(info.location.name)
    return file.kind if file else None


def understand_part(part: FileInfo, kind: str, options: TableOptions) -> Table | None:
    """Return a part as a table; None for one without a record, as Spark or a filter leaves. Raises `InputNotFound`."""
    if part.size == 0:
        return None
    try:
        return understand_table(part, kind, options)
    except InputNotFound:
        reader = open_records(part.location, kind, options)
        if next(records_of(reader, part.location, kind), None) is None:
            return None
        raise


def place(table: Table, folders: Sequence[Location], options: TableOptions) -> Table:
    """Return a table whose relative paths start at that one of some folders where its first pictures lie.

    COCO and others keep tables and pictures in folders side by side. A table whose pictures are found stays as it is.
    """
    start = f"{table.base.folder}/"
    found = [row.image_uri for row in islice(table.rows(), _FIRST_PICTURES) if row.image_uri] if folders else []
    names = [uri.removeprefix(start) for uri in found if uri.startswith(start)]
    if not names or any(options.exists(Location(uri)) for uri in found):
        return table
    counts = {folder: sum(options.exists(folder / name) for name in names) for folder in folders}
    best = max(counts, key=lambda folder: counts[folder])
    if not counts[best]:
        return table
    notes = [note for note in table.notes if not note.startswith("none of the first")]
    notes.append(f"paths of pictures start at {best}, where they were found")
    return replace(table, base=Base(best), notes=tuple(notes))


def choose_parts(
    address: Address, tables: Sequence[FileInfo], kind: str, options: TableOptions
) -> tuple[Table, dict[FileInfo, InputNotFound]]:
    """Return the first of some tables that has a record, and the tables that are no tables of pairs, with the reasons.

    All of a few tables are looked at, of many the first ones and the last.

    Raises `InputNotFound` if no table can be scanned, or if one cannot that has the name of a part of another one.
    """
    understood: list[tuple[FileInfo, Table]] = []
    refused: dict[FileInfo, InputNotFound] = {}
    for number, part in enumerate(tables):
        is_looked_at = not understood or number < _FIRST_PARTS or number == len(tables) - 1
        if not is_looked_at and len(tables) > _FEW:
            continue
        try:
            if table := understand_part(part, kind, options):
                understood.append((part, table))
        except InputNotFound as error:
            refused[part] = error
            if len(refused) > _FEW:
                break
    if not understood:
        if refused:
            raise next(iter(refused.values()))
        noun = "table" if len(tables) == 1 else "tables"
        raise InputNotFound(f"{address.location} holds {len(tables)} {noun} ({kind}) without a record")
    shapes = {_shape(address.name_of(part)) for part, _ in understood}
    for part, reason in refused.items():
        if _shape(address.name_of(part)) in shapes:
            others = "1 table" if len(understood) == 1 else f"{len(understood)} tables"
            advice = f"{others} beside it can be read. Repair or remove it, or name them with a pattern"
            raise InputNotFound(f"{str(reason).rstrip('.')}; {advice}") from reason
    return understood[0][1], refused


def _shape(name: str) -> str:
    """Return a name without that in which the names of parts and splits differ."""
    return _NUMBER_OR_SPLIT.sub("#", name.lower())


def _is_outage(error: StorageError, part: FileInfo) -> bool:
    """Return True if a store does not deliver a part now. Damage inside of a file is raised alike."""
    of_store = not isinstance(error.__cause__, OSError) or "AWS Error" in str(error.__cause__)
    return part.location.is_s3 and error.retryable and of_store
