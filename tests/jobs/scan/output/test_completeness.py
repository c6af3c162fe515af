from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import StorageError
from asap.storage.files import list_files, open_seekable, write_bytes
from asap.storage.location import Location
from jobs.scan.input.manifest import MANIFEST_SCHEMA, ManifestRow, row_tables, write_manifest
from jobs.scan.output import completeness
from jobs.scan.output.completeness import RowSet, count_rows, missing_rows, repair_results, write_missing
from jobs.scan.stages.result_rows import write_table


def _ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_a_row_set_agrees_with_a_set_over_parts() -> None:
    generator = np.random.default_rng(0)
    rows, known = RowSet(), set[int]()
    for _ in range(30):
        ids = (generator.integers(0, 3, 50) << 32) + generator.integers(0, 5000, 50)
        expected = []
        for row_id in ids.tolist():
            expected.append(row_id not in known)
            known.add(row_id)
        assert rows.add(ids).tolist() == expected
    probe = (generator.integers(0, 4, 2000) << 32) + generator.integers(0, 20_000, 2000)
    assert rows.contains(probe).tolist() == [row_id in known for row_id in probe.tolist()]


def test_a_page_that_is_whole_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completeness, "_PAGE", 64)
    rows, order = RowSet(), np.random.default_rng(1).permutation(200)
    for some in np.array_split(order, 7):
        assert rows.add(some).all()
    assert len(rows) == 200
    assert list(rows._pages) == [3]  # the last one, which has 8 of its 64 rows
    assert not rows.add(order).any()
    assert rows.contains(np.arange(-64, 400)).tolist() == [0 <= row_id < 200 for row_id in range(-64, 400)]


def test_an_empty_row_set_contains_nothing() -> None:
    assert RowSet().contains(_ids(0, 7 << 32)).tolist() == [False, False]
    assert RowSet().add(_ids()).tolist() == []


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location(str(tmp_path))
    return Location(f"s3://{request.getfixturevalue('bucket')}/job")


def _write_ids(location: Location, ids: list[int]) -> None:
    write_table(pa.table({"row_id": pa.array(ids, pa.int64()), "x": [str(row_id) for row_id in ids]}), location)


def test_copies_of_a_row_are_removed_and_the_first_is_kept(folder: Location) -> None:
    _write_ids(folder / "results/a.parquet", [0, 1, 2])
    _write_ids(folder / "results/b.parquet", [3, 1, 4, 4])
    seen = repair_results(folder / "results")
    assert seen.contains(_ids(0, 1, 2, 3, 4, 5)).tolist() == [True] * 5 + [False]
    assert count_rows(folder / "results") == 5
    assert sorted(_all_rows(folder / "results")) == [(number, str(number)) for number in range(5)]
    assert count_rows(folder / "results") == 5
    repair_results(folder / "results")
    assert count_rows(folder / "results") == 5


def test_the_temporary_file_of_a_killed_writer_is_deleted(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    _write_ids(folder / "a.parquet", [0, 1])
    (tmp_path / ".b.parquet.0123456789abcdef").write_bytes(b"PAR1")
    repair_results(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_truncated_results_file_is_deleted_wherever_it_is_cut(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    _write_ids(folder / "a.parquet", [0, 1])
    _write_ids(folder / "whole", [2, 3])
    whole = (tmp_path / "whole").read_bytes()
    for size in range(len(whole)):
        (tmp_path / f"{size:032x}_000001-0.parquet").write_bytes(whole[:size])
    with pytest.raises(StorageError, match="that can be read"):
        count_rows(folder)
    assert repair_results(folder).contains(_ids(0, 1, 2, 3)).tolist() == [True, True, False, False]
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["a.parquet"]
    assert count_rows(folder) == 2


def test_a_table_that_is_not_written_to_its_end_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(table: pa.Table, where: object, **named: object) -> None:
        assert not list(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        _write_ids(Location(str(tmp_path)) / "a.parquet", [0])
    assert list(tmp_path.iterdir()) == []


def _all_rows(folder: Location) -> list[tuple[int, str]]:
    rows = []
    for info in list_files(folder):
        with open_seekable(info.location) as file:
            rows += [(row["row_id"], row["x"]) for row in pq.read_table(file).to_pylist()]
    return rows


def test_missing_rows_are_those_of_the_manifest_that_are_not_done(folder: Location) -> None:
    write_manifest(
        row_tables(ManifestRow(row_id=n, custom_id=f"c{n}", text="t") for n in range(10)), folder / "manifest"
    )
    done = RowSet()
    done.add(_ids(0, 1, 2, 4, 5, 6, 8, 9))
    missing = pa.concat_tables(missing_rows(folder / "manifest", done))
    assert missing["custom_id"].to_pylist() == ["c3", "c7"]
    done.add(_ids(3, 7))
    assert list(missing_rows(folder / "manifest", done)) == []


def test_missing_rows_become_a_manifest_in_a_folder_that_is_emptied_first(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.scan.input.manifest._ROWS_PER_GROUP", 4)
    monkeypatch.setattr("jobs.scan.input.manifest.ROWS_PER_FILE", 8)
    rows = (ManifestRow(row_id=n, custom_id=f"c{n}", text="t", warnings=["w"]) for n in range(40))
    write_manifest(row_tables(rows), folder / "manifest")
    done = RowSet()
    done.add(_ids(*range(0, 40, 2)))
    write_bytes(folder / "remaining/00007.parquet", b"PAR1 of a process that was killed")
    assert write_missing(folder / "manifest", done, folder / "remaining") == 20
    files = [info.location for info in list_files(folder / "remaining")]
    assert [location.name for location in files] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    tables = []
    for location in files:
        with open_seekable(location) as file:
            tables.append(pq.read_table(file))
    assert [table.num_rows for table in tables] == [8, 8, 4]
    assert all(table.schema.equals(MANIFEST_SCHEMA) for table in tables)
    assert pa.concat_tables(tables)["custom_id"].to_pylist() == [f"c{n}" for n in range(1, 40, 2)]
    done.add(_ids(*range(40)))
    assert write_missing(folder / "manifest", done, folder / "remaining") == 0
    assert not list(list_files(folder / "remaining"))


def test_a_folder_without_results_has_no_rows(tmp_path: Path) -> None:
    assert count_rows(Location(str(tmp_path / "none"))) == 0
    assert not repair_results(Location(str(tmp_path / "none"))).contains(_ids(0)).any()


@pytest.mark.parametrize("data", [b"", b"PAR1 and no more", b"<html>"])
def test_a_broken_file_that_no_writer_of_a_job_named_is_named_and_kept(folder: Location, data: bytes) -> None:
    results = folder / "results"
    _write_ids(results / "a.parquet", [0, 1])
    write_bytes(results / "backup.parquet", data)
    write_bytes(results / ".DS_Store", b"x")
    for read in (repair_results, count_rows):
        with pytest.raises(StorageError, match=rf"{results}/backup\.parquet is not a Parquet file that can be read"):
            read(results)
    with pytest.raises(StorageError, match="Move or delete it, and run the same command again"):
        repair_results(results)
    assert sorted(info.location.name for info in list_files(results)) == [".DS_Store", "a.parquet", "backup.parquet"]


def test_a_table_of_something_else_is_named_and_kept(folder: Location) -> None:
    write_table(pa.table({"id": [1]}), folder / "results/other.parquet")
    with pytest.raises(StorageError, match=r"other\.parquet has no column row_id, so it is no file of results"):
        repair_results(folder / "results")
    assert count_rows(folder / "results") == 1
