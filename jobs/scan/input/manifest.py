"""The manifest: one parquet table, a row for each pair of the input, written once and read by the pipeline."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asap.preprocessing.words import UNREADABLE
from asap.storage.failures import storage_errors
from asap.storage.location import Location
from asap.storage.s3 import filesystem

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("custom_id", pa.string(), nullable=False),
        ("given_id", pa.string()),
        ("image_uri", pa.string()),
        ("image_version", pa.string()),
        ("image_offset", pa.int64()),
        ("image_length", pa.int64()),
        ("text", pa.string()),
        ("text_escapes", pa.list_(pa.int32())),
        ("metadata", pa.string()),
        ("text_uri", pa.string()),
        ("row_error", pa.string()),
        ("warnings", pa.list_(pa.string())),
        ("image_group", pa.int32()),
        ("image_row", pa.int32()),
        ("image_column", pa.string()),
        ("image_encoding", pa.string()),
    ]
)
ROWS_PER_FILE = 2**17
_ROWS_PER_GROUP = 2**12
_TEXTS = ("custom_id", "image_uri", "text", "metadata", "text_uri", "row_error")
_CELLS = attrgetter(*MANIFEST_SCHEMA.names)
"""Returns the values of a row in the order of the columns."""
_TEXT_CELLS = attrgetter(*_TEXTS)
ESCAPED = "the text has lone surrogates or NULs; each is stored as \\uXXXX, and was read as one U+FFFD"
"""The warning of a row whose text has escapes."""
_ESCAPE_LENGTH = len(r"\u0000")


class RowError(Exception):
    """The reason why one record cannot be understood."""

    def __init__(self, reason: str, fields: Mapping[str, Any] | None = None, *, aligned: bool = True) -> None:
        super().__init__(reason)
        self.fields = fields or {}
        """The fields that could be read all the same, so that the row keeps its name and its picture."""
        self.aligned = aligned
        """False if a cell may stand under the wrong column, from the text on."""


@dataclass(kw_only=True)
class ManifestRow:
    """A pair of the input. `row_error` says why a row cannot be understood; the row is kept all the same."""

    row_id: int
    """Position in the input: the line of a text file, else the number of the record. The upper 32 bits are free for the
    parts of an input of several files."""
    custom_id: str | None = None
    """The caller's name for the row. None if there is none: the row is then called #row_id."""
    given_id: str | None = None
    """The caller's name for a row that had to get another `custom_id`, because an earlier row has that name."""
    image_uri: str | None = None
    """An absolute path or s3://bucket/key: of the picture, or of the file that holds it."""
    image_version: str | None = None
    image_offset: int | None = None
    image_length: int | None = None
    text: str | None = None
    """The text as it is stored. `readable_text` turns it into what the model reads."""
    text_escapes: list[int] | None = None
    """Positions in the original text of the characters that are stored as escapes. None if there are none."""
    metadata: str | None = None
    """JSON, as the caller wrote it."""
    text_uri: str | None = None
    """The file of a text that the store did not deliver for the manifest. The scan reads it with the picture."""
    row_error: str | None = None
    warnings: list[str] = field(default_factory=list)
    image_group: int | None = None
    """Row group of the picture in a Parquet file. None for a picture that is not in one."""
    image_row: int | None = None
    """Position of the picture in its row group."""
    image_column: str | None = None
    """Path of the leaf of the picture in the Parquet file, such as `image.bytes`."""
    image_encoding: str | None = None
    """`base64`: the bytes from `image_offset` on are a text that stands for the picture. None: they are the picture."""


def storable(text: str) -> str:
    r"""Return the text with lone surrogates and NULs, which stores refuse, escaped as `\uXXXX`."""
    return text if is_storable(text) else UNREADABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def is_storable(text: str) -> bool:
    """Return True if stores take the text as it is."""
    # Most texts are ASCII, which Python knows without a look at each character.
    return (text.isascii() and "\0" not in text) or UNREADABLE.search(text) is None


def find_escapes(text: str) -> list[int]:
    """Return the positions of the characters that `storable` escapes."""
    return [] if is_storable(text) else [match.start() for match in UNREADABLE.finditer(text)]


def readable_text(text: str, escapes: Sequence[int] | None) -> str:
    """Return a stored text as the model reads it, character for character the original one, so word offsets hold.

    `escapes` are the row's `text_escapes`. No tokenizer can read the characters there; each becomes U+FFFD.
    """
    pieces, end = [], 0
    for number, position in enumerate(escapes or ()):
        # Each escape before this one made the stored text longer.
        start = position + number * (_ESCAPE_LENGTH - 1)
        pieces.append(text[end:start])
        end = start + _ESCAPE_LENGTH
    return "\ufffd".join([*pieces, text[end:]])


def write_manifest(tables: Iterable[pa.Table], folder: Location) -> int:
    """Write tables of rows as `folder`/NNNNN.parquet and return how many rows there are.

    A row without a name is called #row_id. A row whose `custom_id` came before gets a unique name and a warning, and is
    scanned like any other: pairs of one news item of DGM4 share their id. Memory is bounded by one row group, beside
    the hashes of the names.
    """
    # Each row may make objects, and every few thousand of them the collector would look at all those of the libraries.
    gc.freeze()
    seen = SeenIds()
    try:
        return write_tables((_with_unique_names(table, seen) for table in _row_groups(tables)), folder)
    finally:
        gc.unfreeze()


def row_tables(rows: Iterable[ManifestRow]) -> Iterator[pa.Table]:
    """Group rows into tables, with their strings escaped. Rows may lack names."""
    rows = iter(rows)
    while group := list(islice(rows, _ROWS_PER_GROUP)):
        yield unnamed_table(group)


def unnamed_table(rows: Sequence[ManifestRow]) -> pa.Table:
    """Return some rows as a table of `MANIFEST_SCHEMA`, with their strings escaped. Rows may lack names."""
    # Escapes come before names are compared: two names that differ only before the escaping must not collide after it.
    for row in rows:
        _escape(row)
    return _table(rows)


def to_table(rows: Sequence[ManifestRow]) -> pa.Table:
    """Return some rows as a table of `MANIFEST_SCHEMA`; a row without a name is called #row_id."""
    named = [replace(row, custom_id=row.custom_id or f"#{row.row_id}", warnings=[*row.warnings]) for row in rows]
    for row in named:
        _escape(row)
    return _table(named)


def _table(rows: Sequence[ManifestRow]) -> pa.Table:
    columns = zip(*map(_CELLS, rows), strict=True) if rows else [[] for _ in MANIFEST_SCHEMA]
    return pa.table(list(map(pa.array, columns, MANIFEST_SCHEMA.types)), MANIFEST_SCHEMA)


def _escape(row: ManifestRow) -> None:
    """Escape what stores refuse in every string of the row; remember where the text had it."""
    # One look at all strings together: in nearly all rows there is nothing to escape.
    if is_storable("".join(filter(None, _TEXT_CELLS(row)))):
        return
    if row.text is not None and (escapes := find_escapes(row.text)):
        row.text_escapes = escapes
        row.warnings.append(ESCAPED)
    for name in _TEXTS:
        value = getattr(row, name)
        if value is not None and not is_storable(value):
            setattr(row, name, storable(value))


def _with_unique_names(rows: pa.Table, seen: SeenIds) -> pa.Table:
    """Return the rows with names: those without get one, and those whose name came before get another."""
    given = rows["custom_id"]
    names = pc.coalesce(given, pc.binary_join_element_wise("#", rows["row_id"].cast(pa.string()), ""))
    called = names.to_numpy()
    repeated = np.flatnonzero(seen.repeated(called))
    if not len(repeated):
        return _with_columns(rows, {"custom_id": names})
    given_names, given_ids, warnings = (rows[name].to_pylist() for name in ("custom_id", "given_id", "warnings"))
    row_ids = rows["row_id"].to_numpy()
    for position in repeated:
        own = given_names[position]
        name = f"{own or ''}#{row_ids[position]}"
        # An earlier row may have been called `a#2` by the caller.
        while seen.repeated([name])[0]:
            name += "#"
        called[position] = name
        if own is not None:
            given_ids[position] = own
            warning = f"custom_id {own!r} was used by an earlier row; this one is called {name!r}"
            warnings[position] = [*warnings[position], warning]
    return _with_columns(rows, {"custom_id": called, "given_id": given_ids, "warnings": warnings})


def _with_columns(rows: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    arrays = {field.name: rows[field.name] for field in MANIFEST_SCHEMA}
    return pa.table(arrays | {name: columns[name] for name in columns}, MANIFEST_SCHEMA)


class SeenIds:
    """The ids that came before, in 8 bytes an id: sorted runs of 64-bit hashes, merged as they grow.

    The hashes are divided by their highest bits. A merge needs memory for the runs of one division only.
    """

    def __init__(self) -> None:
        self._runs: list[list[NDArray[np.uint64]]] = [[] for _ in range(_DIVISIONS)]

    def repeated(self, ids: Sequence[str] | NDArray[np.object_]) -> NDArray[np.bool_]:
        """Return for each id whether it came before, here or in an earlier call; then remember all of them.

        Two ids share a hash once in 2^64.
        """
        import pandas as pd

        hashes = pd.util.hash_array(np.array(ids, dtype=object), categorize=False)
        unique, first, places = np.unique(hashes, return_index=True, return_inverse=True)
        is_known = np.zeros(len(unique), bool)
        ends = np.searchsorted(unique, _LOWEST[1:]).tolist()
        for runs, start, end in zip(self._runs, [0, *ends], [*ends, len(unique)], strict=True):
            if start == end:
                continue
            some = unique[start:end]
            for run in runs:
                positions = np.searchsorted(run, some)
                is_known[start:end] |= run[np.minimum(positions, len(run) - 1)] == some
            _add_run(runs, some[~is_known[start:end]])
        repeated = np.ones(len(hashes), bool)
        repeated[first] = False
        return repeated | is_known[places]


_DIVISIONS = 16
_LOWEST = np.arange(_DIVISIONS, dtype=np.uint64) * np.uint64(2**64 // _DIVISIONS)
"""The lowest hash of each division."""


def _add_run(runs: list[NDArray[np.uint64]], run: NDArray[np.uint64]) -> None:
    """Add a run, of hashes that no other has."""
    # Each run stays more than twice as long as the next, so that there are few, and each id is merged a few times.
    while runs and len(runs[-1]) <= 2 * len(run):
        run = np.concatenate([runs.pop(), run])
        run.sort(kind="stable")  # two sorted runs are merged
    if len(run):
        runs.append(run)


def write_tables(tables: Iterable[pa.Table], folder: Location) -> int:
    """Write tables of `MANIFEST_SCHEMA`, however small, as `folder`/NNNNN.parquet; return how many rows they have.

    Every file but the last has `ROWS_PER_FILE` rows. Memory is bounded by one table and one row group. Columns that a
    manifest of an earlier version lacks are null.
    """
    system, path = filesystem(folder)
    total = 0
    with storage_errors(folder):
        if not folder.is_s3:  # in S3, a folder would be an object that is left behind
            system.create_dir(path, recursive=True)
    groups = _row_groups(map(complete_manifest, tables))
    for number, first in enumerate(groups):
        name = f"{number:05d}.parquet"
        # An error names the file that could not be written.
        with (
            storage_errors(folder / name),
            pq.ParquetWriter(f"{path}/{name}", MANIFEST_SCHEMA, filesystem=system) as writer,
        ):
            for group in chain([first], islice(groups, ROWS_PER_FILE // _ROWS_PER_GROUP - 1)):
                writer.write_table(group)
                total += group.num_rows
    return total


def complete_manifest(table: pa.Table) -> pa.Table:
    """Return rows of a manifest, which may be of an earlier version, with all columns of `MANIFEST_SCHEMA`."""
    names = set(table.column_names)
    columns = {
        field.name: table[field.name] if field.name in names else pa.nulls(len(table), field.type)
        for field in MANIFEST_SCHEMA
    }
    return pa.table(columns, MANIFEST_SCHEMA)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Regroup the rows into tables of `_ROWS_PER_GROUP` rows; the last has what is left."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        if rows < _ROWS_PER_GROUP:
            continue
        joined = pa.concat_tables(waiting)
        for start in range(0, rows - _ROWS_PER_GROUP + 1, _ROWS_PER_GROUP):
            yield joined.slice(start, _ROWS_PER_GROUP)
        rows %= _ROWS_PER_GROUP
        waiting = [joined.slice(joined.num_rows - rows)]
    if rows:
        yield pa.concat_tables(waiting)
