"""The source of the pipeline: tasks that read rows of the manifest and prepare their pictures.

A task reads its rows and prepares them at once, so no process is started that only reads. Ray's own reader of parquet
would first read a part of the manifest in a task of its own, to guess sizes that are known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
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
_GROUPS_KEPT = 2
_kept_groups: dict[tuple[FileInfo, int], pa.Table] = {}
"""The row groups that this process read last. Its next task often reads on in one of them."""


@dataclass(frozen=True)
class Span:
    """Rows of one row group of the manifest, which one task reads and prepares."""

    file: FileInfo
    group: int
    start: int
    """Position of the first row in the row group."""
    rows: int


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

    def __init__(self, manifest: Location, batch_size: int, preparation: Preparation, counter: Any) -> None:
        """Plan the tasks.

        Args:
            manifest: Folder of parquet files of `MANIFEST_SCHEMA`.
            batch_size: Rows of a table.
            preparation: How pictures are fetched and prepared.
            counter: The actor that counts slow rows.
        """
        super().__init__()
        spans = list(plan_spans(manifest, batch_size, _MOST_TASKS))
        self.is_one_batch_a_task = all(span.rows <= batch_size for span in spans)
        shared = ray.put(_Shared(filesystem(manifest)[0], preparation, batch_size, counter))
        self.tasks = [
            ReadTask(partial(_read_and_prepare, span, shared), BlockMetadata(span.rows, None, None, None))
            for span in spans
        ]

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the number of tasks is given, so Ray needs no size to choose one."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return the tasks, however many Ray would like."""
        return self.tasks


def plan_spans(manifest: Location, batch_size: int, most: int) -> Iterator[Span]:
    """Yield the spans of a manifest: of one batch each, or of several if there would be more than `most`."""
    groups = [
        (file, number, rows) for file in list_files(manifest) for number, rows in enumerate(_group_sizes(file.location))
    ]
    batches = sum(-(-rows // batch_size) for _, _, rows in groups)
    size = batch_size * -(-batches // most)
    for file, number, rows in groups:
        for start in range(0, rows, size):
            yield Span(file, number, start, min(size, rows - start))


def _group_sizes(location: Location) -> list[int]:
    with storage_errors(location), open_seekable(location) as stream:
        metadata = pq.ParquetFile(stream).metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def _read_and_prepare(span: Span, shared: ray.ObjectRef[_Shared]) -> Iterable[pa.Table]:
    """Read the rows of a span, and yield them prepared, a batch at a time."""
    common = ray.get(shared)
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
