"""The source of the pipeline: tasks that read rows of the manifest and prepare their pictures.

A task reads its rows and prepares them at once, so no process is started that only reads. Ray's own reader of parquet
would first read a part of the manifest in a task of its own, to guess sizes that are known here.

Pictures in one row group of a Parquet file are the work of one task: they are read one after the other, and a second
task would have to read those of the first to find its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from asap.storage.failures import storage_errors
from asap.storage.files import list_files, open_seekable
from asap.storage.location import FileInfo, Location
from asap.storage.s3 import filesystem
from jobs.scan.stages.prepare import Preparation, prepare_batch

_MOST_TASKS = 10_000
"""Most tasks of a dataset: Ray makes all of them before the first one starts, and keeps them in the driver's memory."""
_LEAST_TASKS = 256
"""Tasks that a manifest is divided into before any of them gets a second batch: all machines need work."""
_GROUPS_KEPT = 2
_kept_groups: dict[tuple[FileInfo, int], pa.Table] = {}
"""The row groups that this process read last. Its next task often reads on in one of them."""


@dataclass(frozen=True)
class Span:
    """Rows of one row group of the manifest that one task reads and prepares."""

    file: FileInfo
    group: int
    start: int
    """Position of the first row in the row group."""
    rows: int
    table: tuple[str, int] | None = None
    """The Parquet file and its row group that hold the pictures of the rows. None: each is a file of its own."""


@dataclass(frozen=True)
class _Shared:
    """Everything that all tasks of a dataset have in common."""

    system: pafs.FileSystem
    """The driver's file system, since another process may lack its settings."""
    preparation: Preparation
    batch_size: int
    counter: Any


class PreparedPairs(Datasource):
    """The rows of a manifest with their pictures prepared, in tables of `batch_size` rows or fewer."""

    def __init__(
        self,
        manifest: Location,
        batch_size: int,
        preparation: Preparation,
        counter: Any,
        block_bytes: int | None = None,
    ) -> None:
        """Plan the tasks.

        Args:
            manifest: Folder of parquet files of `MANIFEST_SCHEMA`.
            batch_size: Rows of a table.
            preparation: How pictures are fetched and prepared.
            counter: The actor that counts slow rows.
            block_bytes: Bytes of pixels that the batches of one task have together, if there are batches enough. None:
                a task has one batch.
        """
        super().__init__()
        batch_bytes = 3 * (preparation.image_size or 1) ** 2 * batch_size
        tasks = list(plan_tasks(manifest, batch_size, _MOST_TASKS, (block_bytes or 0) // batch_bytes))
        self.is_one_batch_a_task = all(
            len(spans) == 1 and spans[0].rows <= batch_size and spans[0].table is None for spans in tasks
        )
        shared = ray.put(_Shared(filesystem(manifest)[0], preparation, batch_size, counter))
        self.tasks = [
            ReadTask(
                partial(_read_and_prepare, spans, shared),
                BlockMetadata(sum(span.rows for span in spans), None, None, None),
            )
            for spans in tasks
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the number of tasks is given, so Ray needs no size to choose one."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return the tasks, however many Ray would like."""
        return self.tasks


def plan_tasks(manifest: Location, batch_size: int, most: int, longest: int = 1) -> Iterator[tuple[Span, ...]]:
    """Yield the spans of each task: one batch of a manifest, or several of a long one.

    Rows whose pictures are in one row group of a Parquet file are never divided, and small row groups are joined.

    Args:
        manifest: Folder of parquet files of `MANIFEST_SCHEMA`.
        batch_size: Rows of a batch.
        most: Most tasks; a task has as many batches as that takes.
        longest: Batches of a task that are welcome, since every task costs the driver the same.
    """
    groups = [group for file in list_files(manifest) for group in _read_groups(file)]
    batches = sum(-(-group.rows // batch_size) for group in groups)
    size = batch_size * max(-(-batches // most), min(longest, batches // _LEAST_TASKS))
    task: list[Span] = []
    for span in chain.from_iterable(_divide(group, size) for group in groups):
        goes_on = bool(task) and span.table is not None and span.table == task[-1].table
        fits = bool(task) and span.table is not None and sum(each.rows for each in task) + span.rows <= size
        if task and not goes_on and not (fits and task[-1].table is not None):
            yield tuple(task)
            task = []
        task.append(span)
    if task:
        yield tuple(task)


@dataclass(frozen=True)
class _Group:
    """A row group of the manifest."""

    file: FileInfo
    number: int
    rows: int
    tables: tuple[tuple[tuple[str, int] | None, int], ...] = ()
    """The tables of the pictures of its rows, each with the number of consecutive rows. Empty: no picture is in one."""


def _read_groups(file: FileInfo) -> list[_Group]:
    with storage_errors(file.location), open_seekable(file.location) as stream:
        parquet = pq.ParquetFile(stream)
        metadata = parquet.metadata
        return [
            _Group(file, number, metadata.row_group(number).num_rows, _tables_of(parquet, number))
            for number in range(metadata.num_row_groups)
        ]


def _tables_of(parquet: pq.ParquetFile, number: int) -> tuple[tuple[tuple[str, int] | None, int], ...]:
    """Return the tables of a row group of the manifest. Its columns are read only if it has any."""
    if "image_group" not in parquet.schema_arrow.names:  # a manifest of an earlier version
        return ()
    group = parquet.metadata.row_group(number)
    leaves = [parquet.schema.column(leaf).path for leaf in range(len(parquet.schema))]
    statistics = group.column(leaves.index("image_group")).statistics
    if statistics is not None and statistics.null_count == group.num_rows:
        return ()
    columns = parquet.read_row_group(number, columns=["image_uri", "image_group"]).to_pylist()
    tables = [None if row["image_group"] is None else (row["image_uri"], row["image_group"]) for row in columns]
    return tuple((table, len(list(rows))) for table, rows in groupby(tables))


def _divide(group: _Group, size: int) -> Iterator[Span]:
    """Yield the spans of a row group: of `size` rows, or of all rows whose pictures are in one part of a table."""
    start = 0
    for table, rows in group.tables or ((None, group.rows),):
        step = size if table is None else rows
        for first in range(start, start + rows, step):
            yield Span(group.file, group.number, first, min(step, start + rows - first), table)
        start += rows


def _read_and_prepare(spans: Sequence[Span], shared: ray.ObjectRef[_Shared]) -> Iterable[pa.Table]:
    """Read the rows of a task, and yield them prepared, a batch at a time."""
    common = ray.get(shared)
    for span in spans:
        rows = _read_group(span.file, span.group, common.system).slice(span.start, span.rows)
        for start in range(0, span.rows, common.batch_size):
            yield prepare_batch(rows.slice(start, common.batch_size), common.preparation, common.counter)


def _read_group(file: FileInfo, group: int, system: pafs.FileSystem) -> pa.Table:
    """Return a row group of the manifest.

    Kept groups are found by the file's stamp too, since a job writes `_remaining` anew under the same names.
    """
    if (kept := _kept_groups.get((file, group))) is not None:
        return kept
    path = f"{file.location.bucket}/{file.location.key}" if file.location.is_s3 else file.location.uri
    with storage_errors(file.location), system.open_input_file(path) as stream:
        table = pq.ParquetFile(stream).read_row_group(group)
    if len(_kept_groups) >= _GROUPS_KEPT:
        del _kept_groups[next(iter(_kept_groups))]
    _kept_groups[file, group] = table
    return table
