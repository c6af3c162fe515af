"""The writer of results: rows are written by number, by time and at a stop, and an outage loses none."""

import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import StorageError
from asap.storage.location import Location
from jobs.scan.stages import write
from jobs.scan.stages.write import ResultWriter, Writers
from tests.support.waiting import HANG_S, wait_until


def rows(*ids: int) -> pa.Table:
    return pa.table({"row_id": pa.array(ids, pa.int64())})


def files(folder: Path) -> list[list[int]]:
    """Return the rows of each file, in the order of the first row."""
    return sorted(pq.read_table(path)["row_id"].to_pylist() for path in folder.glob("*.parquet"))


def test_a_full_file_is_written_at_once(tmp_path: Path) -> None:
    writer = ResultWriter(Location(str(tmp_path)), rows_per_file=3, every_s=3600)
    for row in range(7):
        writer.add(rows(row))
    wait_until(lambda: writer.state().waiting < 3)  # a write takes all rows that wait, which may be more than three
    writer.flush()
    found = files(tmp_path)
    assert sorted(row for file in found for row in file) == list(range(7))
    assert len(found) <= 3
    assert (writer.state().written, writer.state().waiting) == (7, 0)


def test_rows_are_written_by_time_and_a_file_that_is_not_full_grows(tmp_path: Path) -> None:
    writer = ResultWriter(Location(str(tmp_path)), rows_per_file=100, every_s=0.05)
    for row in range(3):
        writer.add(rows(row))
        wait_until(lambda: writer.state().waiting == 0)
    assert files(tmp_path) == [[0, 1, 2]]


def test_many_bytes_fill_a_file_as_many_rows_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_FULL_BYTES", 100)
    writer = ResultWriter(Location(str(tmp_path)), rows_per_file=10**6, every_s=3600)
    writer.add(rows(*range(20)))
    wait_until(lambda: writer.state().written == 20)
    writer.add(rows(20))
    writer.flush()
    assert files(tmp_path) == [list(range(20)), [20]]


def test_a_flush_without_rows_writes_nothing(tmp_path: Path) -> None:
    ResultWriter(Location(str(tmp_path)), rows_per_file=3, every_s=1).flush()
    assert files(tmp_path) == []


def test_an_outage_holds_rows_back_and_loses_none(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.write_text("a file where the folder should be")
    writer = ResultWriter(Location(str(folder)), rows_per_file=2, every_s=0.05)
    writer.add(rows(0))
    with pytest.raises(StorageError, match="results"):
        writer.flush()
    wait_until(lambda: writer.state().failing_s > 0)
    assert str(folder) in str(writer.state().failure)

    # Two files' worth is taken over; more must wait.
    writer.add(rows(1, 2, 3))
    late = threading.Thread(target=writer.add, args=(rows(4),), daemon=True)
    late.start()
    late.join(0.3)
    assert late.is_alive()

    folder.unlink()
    late.join(HANG_S)
    wait_until(lambda: writer.state().waiting == 0)
    assert sorted(row for file in files(folder) for row in file) == [0, 1, 2, 3, 4]
    assert (writer.state().failing_s, writer.state().failure) == (0, None)


def test_writers_on_ray_finish_report_failures_and_stop(ray_here: None, tmp_path: Path) -> None:
    import ray

    folder = tmp_path / "results"
    writers = Writers(Location(str(folder)), rows_per_file=100, every_s=3600, number=2)
    ray.get([handle.add.remote(rows(number)) for number, handle in enumerate(writers.handles)])
    assert files(folder) == []
    writers.finish(patience_s=60)
    assert files(folder) == [[0], [1]]
    assert writers.failure(patience_s=0) is None

    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.write_text("in the way")
    ray.get(writers.handles[0].add.remote(rows(2)))
    with pytest.raises(StorageError, match="results"):
        writers.flush()
    with pytest.raises(StorageError, match="results"):
        writers.finish(patience_s=0.1)
    assert "results" in str(writers.failure(patience_s=0))
    assert writers.failure(patience_s=3600) is None
    writers.stop()

    def is_dead() -> bool:
        try:
            ray.get(writers.handles[0].state.remote())
        except ray.exceptions.RayActorError:
            return True
        return False

    wait_until(is_dead)  # a kill takes a moment


def test_a_writer_takes_rows_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()
    real = write.write_table

    def slow(table: pa.Table, location: Location) -> None:
        started.set()
        assert go_on.wait(HANG_S)
        real(table, location)

    monkeypatch.setattr(write, "write_table", slow)
    writer = ResultWriter(Location(str(tmp_path)), rows_per_file=2, every_s=3600)
    writer.add(rows(0, 1))
    assert started.wait(HANG_S)
    before = time.monotonic()
    writer.add(rows(2))
    assert time.monotonic() - before < HANG_S / 2
    go_on.set()
    wait_until(lambda: writer.state().written == 2)
    writer.flush()
    assert files(tmp_path) == [[0, 1], [2]]


def test_a_closed_writer_has_written_all_and_takes_no_more_rows(tmp_path: Path) -> None:
    writer = ResultWriter(Location(str(tmp_path)), rows_per_file=100, every_s=3600)
    writer.add(rows(0, 1))
    writer.close()
    late = threading.Thread(target=writer.add, args=(rows(2),), daemon=True)
    late.start()
    late.join(0.2)
    assert late.is_alive(), "rows that come after the end would be counted and lost"
    assert files(tmp_path) == [[0, 1]]
    assert (writer.state().written, writer.state().waiting) == (2, 0)
