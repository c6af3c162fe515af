"""Rows of a job's results that pass a filter, as a stream of small tables or a page at a time, also while the job runs.

Only the columns that are asked for are read. Files of any version of the schema can be read: a column that a file
lacks is null there. Each file is whole or is left out, and memory is bounded by one small table, or by one page.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from asap.errors import ConfigError, StorageError
from asap.labels import TYPES, VERDICTS
from asap.storage.failures import storage_errors
from asap.storage.files import list_files, open_seekable
from asap.storage.location import FileInfo, Location

ERROR_COLUMNS = ("row_id", "custom_id", "image_uri", "error_code", "retryable", "attempt", "error_detail")
"""Columns of a failed row that say what failed."""
_ROWS_AT_ONCE, _PAGE_ROWS_AT_ONCE = 2**12, 2**7
_POSITION = "__position__"
"""Column of a table that numbers the rows of its file while it is filtered."""
_CURSOR = re.compile(r"(\d{1,15}):(.{1,1000})", re.ASCII | re.DOTALL)


def results_files(folder: Location) -> Iterator[Location]:
    """Yield the Parquet files below a folder of rows, without files whose names begin with a dot, which are drafts."""
    return (info.location for info in list_files(folder) if is_results_file(info))


def is_results_file(info: FileInfo) -> bool:
    """Return True for a Parquet file whose name does not begin with a dot, as that of a draft does."""
    return info.location.name.endswith(".parquet") and info.location.name[0] != "."


@contextmanager
def results_file(location: Location, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open one file of results, with pyarrow's options. Raises `StorageError` for a file that cannot be read."""
    with storage_errors(location), open_seekable(location) as stream:
        try:
            yield pq.ParquetFile(stream, **options)
        except pa.ArrowInvalid as error:
            raise StorageError(f"{location} is not a Parquet file that can be read: {error}") from error


@dataclass(frozen=True)
class RowFilter:
    """A condition on result rows. Each part that is given must hold; of several values, one must."""

    verdicts: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    """Types that the pair is flagged for."""
    min_score: float | None = None
    max_score: float | None = None
    codes: tuple[str, ...] = ()
    """Error codes. A row has one for each description that it lacks."""
    ids: tuple[str, ...] = ()
    """Values of `custom_id` or `given_id`."""
    is_failed: bool = False
    """True for failed rows only."""

    def __post_init__(self) -> None:
        _check_names("verdict", self.verdicts, VERDICTS)
        _check_names("type", self.types, TYPES)
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ConfigError(f"the lowest score {self.min_score:g} is above the highest {self.max_score:g}.")

    def columns(self, code_columns: Sequence[str]) -> list[str]:
        """Return the columns that the condition reads, `code_columns` among them if it is about codes."""
        wanted = {
            "verdict": self.verdicts or self._has_score,
            "score": self._has_score,
            "flagged_types": self.types,
            **dict.fromkeys(code_columns, self.codes),
            "custom_id": self.ids,
            "given_id": self.ids,
            "status": self.is_failed,
        }
        return [name for name, is_read in wanted.items() if is_read]

    @property
    def _has_score(self) -> bool:
        return self.min_score is not None or self.max_score is not None

    def apply(self, rows: pa.Table, code_columns: Sequence[str]) -> pa.Table:
        """Return the rows that pass; `code_columns` are the columns with their error codes."""
        if self.is_failed:
            rows = rows.filter(pc.equal(rows["status"], "error"))
        if self.verdicts:
            rows = rows.filter(pc.is_in(rows["verdict"], pa.array(self.verdicts, pa.string())))
        elif self._has_score:
            # The score of an unfamiliar pair means nothing, so a bound on scores does not find it.
            rows = rows.filter(pc.not_equal(rows["verdict"], "unfamiliar"))
        # Scores are stored as float32, so the bound 0.9 must mean the float32 of that name.
        if self.min_score is not None:
            rows = rows.filter(pc.greater_equal(rows["score"], pa.scalar(self.min_score, pa.float32())))
        if self.max_score is not None:
            rows = rows.filter(pc.less_equal(rows["score"], pa.scalar(self.max_score, pa.float32())))
        if self.types:
            wanted = set(self.types)
            hits = [not wanted.isdisjoint(types or ()) for types in rows["flagged_types"].to_pylist()]
            rows = rows.filter(pa.array(hits, pa.bool_()))
        if self.codes:
            codes = pa.array(self.codes, pa.string())
            rows = rows.filter(reduce(pc.or_, (pc.is_in(rows[name], codes) for name in code_columns)))
        if self.ids:
            ids = pa.array(self.ids, pa.string())
            rows = rows.filter(pc.or_(pc.is_in(rows["custom_id"], ids), pc.is_in(rows["given_id"], ids)))
        return rows


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no {kind} {name!r}. Choose from {', '.join(known)}.")


class Cursor(NamedTuple):
    """A position among the rows of a job: the next row to read, in the order of the names of the files."""

    file: str
    """Name of the file, below the folder of the rows."""
    row: int
    """Number of the row in it."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a cursor as `str` writes it. Raises `ConfigError`."""
        match = _CURSOR.fullmatch(text)
        if not match:
            raise ConfigError("the cursor is not one that a page of rows ended with. Leave it out to begin anew.")
        return cls(match[2], int(match[1]))

    def __str__(self) -> str:
        return f"{self.row}:{self.file}"


@dataclass
class Page:
    """Rows that pass a filter, up to a number of them or to a time."""

    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    after: Cursor | None = None
    """The position from which the next page begins; None if this one has reached the last row."""


class StoredRows:
    """The rows of a job, as they are now.

    While the job runs, files appear and are replaced. A file that is gone or not whole is then left out and counted.

    Args:
        folder: Folder of the rows.
        schema: The columns that are known. A file may have others.
        code_columns: Names of the columns with the error codes of a row.
        is_complete: True if the job is complete, so that a file that cannot be read is an error.
    """

    def __init__(
        self, folder: Location, schema: pa.Schema, code_columns: Sequence[str] = ("error_code",), *, is_complete: bool
    ) -> None:
        self._folder = folder
        self._known = schema
        self.code_columns = tuple(code_columns)
        self._is_complete = is_complete
        self.left_out: list[str] = []
        """Why each file was left out that was."""

    def schema(self) -> pa.Schema:
        """Return the columns: those that are known, and further ones of the first file that is whole."""
        for location in results_files(self._folder):
            try:
                with results_file(location) as file:
                    further = [column for column in file.schema_arrow if column.name not in self._known.names]
                    return pa.schema([*self._known, *further])
            except StorageError:
                if self._is_complete:
                    raise
        return self._known

    def rows(self, columns: Sequence[str], where: RowFilter, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        """Yield tables of the rows that pass, with these columns, in the order of the files.

        Args:
            columns: Names of the columns.
            where: The condition.
            schema: What `schema` returned; None to ask it.
        """
        schema = self.schema() if schema is None else schema
        # A job of annotations has no verdicts to filter by.
        read = choose_columns([*columns, *where.columns(self.code_columns)], schema)
        for location in results_files(self._folder):
            for table in self._tables(location, read, schema):
                found = where.apply(table, self.code_columns).select(list(columns))
                if found.num_rows:
                    yield found

    def page(
        self,
        columns: Sequence[str],
        where: RowFilter,
        after: Cursor | None,
        *,
        most_rows: int,
        within_s: float,
        most_bytes: int = 2**23,
    ) -> Page:
        """Return the next rows that pass. A page that the time or its bytes end may have few rows, or none.

        Args:
            columns: Names of the columns.
            where: The condition.
            after: The position to begin at; None for the first row.
            most_rows: Rows of the page at most.
            within_s: Seconds after which no further table is read.
            most_bytes: Bytes in memory after which no further table is read: texts may be long.
        """
        deadline = time.monotonic() + within_s
        schema, page = self.schema(), Page()
        read = choose_columns([*columns, *where.columns(self.code_columns)], schema)
        prefix = f"{self._folder.uri}/"
        files = sorted((location.uri.removeprefix(prefix), location) for location in results_files(self._folder))
        for name, location in files:
            if after is not None and name < after.file:
                continue
            skipped = after.row if after is not None and name == after.file else 0
            position = 0
            for table in self._tables(location, read, schema, _PAGE_ROWS_AT_ONCE):
                first, position = position, position + table.num_rows
                if position <= skipped:
                    continue
                # A row is numbered before the filter, so that the page can end between two rows of a table.
                numbered = table.append_column(_POSITION, pa.array(range(first, position), pa.int64()))
                numbered = numbered.slice(max(0, skipped - first))
                found = where.apply(numbered, self.code_columns)
                taken = found.slice(0, most_rows - page.rows)
                if taken.num_rows:
                    page.tables.append(taken.select(list(columns)))
                    page.rows += taken.num_rows
                    most_bytes -= taken.nbytes
                if page.rows == most_rows:
                    page.after = Cursor(name, taken[_POSITION][-1].as_py() + 1)
                    return page
                if time.monotonic() > deadline or most_bytes <= 0:
                    page.after = Cursor(name, position)
                    return page
        return page

    def _tables(
        self, location: Location, columns: list[str], schema: pa.Schema, rows_at_once: int | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows of a file with all of `columns`; nothing for a file that has to be left out."""
        try:
            with results_file(location) as file:
                present = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(rows_at_once or _ROWS_AT_ONCE, columns=present):
                    arrays = [
                        batch[name] if name in present else pa.nulls(len(batch), schema.field(name).type)
                        for name in columns
                    ]
                    yield pa.table(arrays, names=columns).cast(nullable_schema(columns, schema))
        except StorageError as error:
            if self._is_complete:
                raise
            self.left_out.append(str(error))


def nullable_schema(columns: Sequence[str], schema: pa.Schema) -> pa.Schema:
    """Return these columns of a schema, each of which may be null, because older files lack some."""
    return pa.schema([pa.field(name, schema.field(name).type) for name in columns])


def choose_columns(names: Sequence[str], schema: pa.Schema, flat: Collection[str] = ()) -> list[str]:
    """Return the names, or all names of the schema if none are given. Raises `ConfigError` for an unknown one.

    `flat` are the names of the flat view, if it was not asked for.
    """
    for name in names:
        if name not in schema.names:
            way_out = "Give --flat, which has it, or choose" if name in flat else "Choose"
            raise ConfigError(f"there is no column {name!r}. {way_out} from {', '.join(schema.names)}.")
    return list(dict.fromkeys(names)) or list(schema.names)
