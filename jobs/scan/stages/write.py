"""The writer: an actor that keeps finished rows for some seconds, and writes them to files of results.

Rows are written by time as well as by number. A job that is killed loses the rows of a few seconds, and a job that is
stopped loses none that were judged. A file that is not full is written again with the rows that follow, under the same
name, so time alone does not make many small files.
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asap.errors import StorageError
from asap.storage.failures import storage_errors
from asap.storage.location import Location
from asap.storage.s3 import filesystem
from jobs.cluster import off_idle_head
from jobs.scan.stages.result_rows import parquet_bytes, write_table

_FULL_BYTES = 32 * 2**20
"""Size in memory of the rows of a file that is full, whatever its number of rows: it would be long to write again."""
_TICK_S = 0.5


@dataclass(frozen=True)
class WriterState:
    """The state of a writer."""

    written: int
    """Rows in files."""
    waiting: int
    """Rows that are in no file yet."""
    failing_s: float
    """Seconds for which the folder could not be written; 0 if it can."""
    failure: str | None
    """The reason why it cannot be written."""


class ResultWriter:
    """The class of the actor."""

    def __init__(self, folder: Location, rows_per_file: int, every_s: float, system: Any = None) -> None:
        """Start the thread that writes.

        Args:
            folder: Folder of the results.
            rows_per_file: Rows of a file that is full.
            every_s: Seconds after which a row is written, whether or not its file is full.
            system: The driver's pyarrow file system of a folder at s3://, since this process may lack its settings.
        """
        self._system = system
        self._folder, self._rows_per_file, self._every_s = folder, rows_per_file, every_s
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._tables: list[pa.Table] = []
        self._rows = self._bytes = 0  # of `_tables`, which may be many
        self._file = self._new_file()
        self._waiting = self._written = 0
        self._is_closed = False
        self._oldest_s = float("inf")
        self._failing_since: float | None = None
        self._failure: str | None = None
        threading.Thread(target=self._write_when_due, name="write", daemon=True).start()

    def add(self, rows: pa.Table) -> None:
        """Take rows over. Waits while two full files cannot be written, so that rows do not pile up in memory.

        A closed writer takes no rows over: the call waits until the process ends.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed and not self._fills(self._rows, self._bytes, files=2))
            if not self._waiting:
                self._oldest_s = time.monotonic()
            self._tables.append(rows)
            self._rows += rows.num_rows
            self._bytes += rows.nbytes
            self._waiting += rows.num_rows
            self._changed.notify_all()

    def flush(self) -> None:
        """Write all rows that were taken over. Raises `StorageError` if the folder cannot be written."""
        self._write()
        if self._failure is not None:
            raise StorageError(self._failure)

    def close(self) -> None:
        """Write all rows that were taken over, and take no more. Raises `StorageError` as `flush` does."""
        with self._changed:
            self._is_closed = True
        self.flush()

    def state(self) -> WriterState:
        """Return how much is written, and for how long writing has failed."""
        since = self._failing_since
        failing_s = 0.0 if since is None else time.monotonic() - since
        return WriterState(self._written, self._waiting, failing_s, self._failure)

    def _new_file(self) -> Location:
        return self._folder / f"rows-{uuid.uuid4().hex}.parquet"

    def _fills(self, rows: int, size: int, files: int = 1) -> bool:
        """Return True if rows of this size in bytes are enough for so many files."""
        return rows >= files * self._rows_per_file or size >= files * _FULL_BYTES

    def _write_when_due(self) -> None:
        while True:
            with self._changed:
                is_full = self._changed.wait_for(
                    lambda: self._waiting and self._fills(self._rows, self._bytes), timeout=_TICK_S
                )
                is_late = time.monotonic() - self._oldest_s >= self._every_s
            if is_full or is_late:
                self._write()
            if self._failure is not None:
                time.sleep(_TICK_S)  # the store was asked several times already

    def _write(self) -> None:
        """Write the rows of the current file, those that it holds already too. A failure is noted and tried later."""
        with self._writing:
            with self._changed:
                tables, waiting, rows, size = list(self._tables), self._waiting, self._rows, self._bytes
            if not waiting:
                return
            # Rows that are added meanwhile wait for the next write.
            try:
                self._write_file(pa.concat_tables(tables))
            except StorageError as error:
                self._failing_since = self._failing_since or time.monotonic()
                self._failure = str(error)
                return
            with self._changed:
                self._failing_since = self._failure = None
                self._written += waiting
                self._waiting -= waiting
                self._oldest_s = time.monotonic() if self._waiting else float("inf")
                if self._fills(rows, size):
                    self._tables = self._tables[len(tables) :]
                    self._rows -= rows
                    self._bytes -= size
                    self._file = self._new_file()
                self._changed.notify_all()

    def _write_file(self, rows: pa.Table) -> None:
        if self._system is None:
            write_table(rows, self._file)
            return
        with (
            storage_errors(self._file),
            self._system.open_output_stream(f"{self._file.bucket}/{self._file.key}") as stream,
        ):
            stream.write(parquet_bytes(rows))


class Writers:
    """The writers of a pipeline, as its driver sees them."""

    def __init__(self, folder: Location, rows_per_file: int, every_s: float, number: int = 1) -> None:
        """Start the actors: one on the driver's node, so losing another node does not lose it, or several anywhere."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 64,
                                   "scheduling_strategy": here}  # fmt: skip
        if number > 1:
            options |= {"scheduling_strategy": "SPREAD"} | off_idle_head()
        actor = ray.remote(**options)(ResultWriter)
        system = filesystem(folder)[0] if folder.is_s3 else None
        self.handles = [actor.remote(folder, rows_per_file, every_s, system) for _ in range(number)]

    def flush(self) -> None:
        """Have all rows written. Raises `StorageError` if the folder cannot be written."""
        self._wait_for([handle.flush.remote() for handle in self.handles])

    def close(self, timeout_s: float) -> None:
        """Have all rows written, and no more taken over, so that no row is counted that is lost.

        Raises `StorageError` if the folder cannot be written, and `GetTimeoutError` after `timeout_s` seconds.
        """
        self._wait_for([handle.close.remote() for handle in self.handles], timeout_s)

    def _wait_for(self, calls: list[Any], timeout_s: float | None = None) -> None:
        try:
            ray.get(calls, timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None

    def finish(self, patience_s: float) -> None:
        """Have all rows written, however long it takes.

        Raises `StorageError` if the folder cannot be written for `patience_s` seconds.
        """
        while True:
            try:
                return self.flush()
            except StorageError:
                if self.failure(patience_s):
                    raise
                time.sleep(_TICK_S)

    def failure(self, patience_s: float) -> str | None:
        """Return the reason if a writer could not write for longer than `patience_s` seconds, else None."""
        states = ray.get([handle.state.remote() for handle in self.handles])
        return next((state.failure for state in states if state.failing_s > patience_s), None)

    def stop(self) -> None:
        """Stop the actors; rows that are in no file are lost."""
        for handle in self.handles:
            ray.kill(handle)
