from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.checkup import RowSet, count_rows, drop_repeated, holds_all, missing_rows, write_table
from jobs.manifest import ManifestRow, write_manifest
from jobs.storage import Location


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


def test_rows_that_are_there_twice_are_taken_out_but_once(folder: Location) -> None:
    _write_ids(folder / "results/a.parquet", [0, 1, 2])
    _write_ids(folder / "results/b.parquet", [3, 1, 4, 4])
    seen = drop_repeated(folder / "results")
    assert seen.contains(_ids(0, 1, 2, 3, 4, 5)).tolist() == [True] * 5 + [False]
    assert count_rows(folder / "results") == 5
    rows = [row for _, ids in [(0, 0)] for row in _all_rows(folder / "results")]
    assert sorted(rows) == [(number, str(number)) for number in range(5)]
    assert count_rows(folder / "results") == 5
    drop_repeated(folder / "results")
    assert count_rows(folder / "results") == 5


def test_a_file_that_a_kill_cut_off_counts_nothing(tmp_path: Path) -> None:
    _write_ids(Location(str(tmp_path)) / "a.parquet", [0, 1])
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.parquet").write_bytes(b"")
    assert count_rows(Location(str(tmp_path)), skip_cut=True) == 2
    with pytest.raises(pa.ArrowInvalid):
        count_rows(Location(str(tmp_path)))


def test_results_hold_all_only_where_no_row_is_missing_and_no_file_is_cut(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    write_manifest((ManifestRow(row_id=number, custom_id=str(number)) for number in range(3)), folder / "manifest")
    _write_ids(folder / "results/a.parquet", [0, 1, 1])
    assert not holds_all(folder / "results", folder / "manifest")
    _write_ids(folder / "results/b.parquet", [2])
    assert holds_all(folder / "results", folder / "manifest")
    (tmp_path / "results/c.parquet").write_bytes(b"")
    assert not holds_all(folder / "results", folder / "manifest")


def test_a_table_is_seen_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(table: pa.Table, where: object, **named: object) -> None:
        assert not list(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        _write_ids(Location(str(tmp_path)) / "a.parquet", [0])
    assert list(tmp_path.iterdir()) == []


def _all_rows(folder: Location) -> list[tuple[int, str]]:
    from jobs.storage import list_files, open_seekable

    rows = []
    for info in list_files(folder):
        with open_seekable(info.location) as file:
            rows += [(row["row_id"], row["x"]) for row in pq.read_table(file).to_pylist()]
    return rows


def test_missing_rows_come_back_as_the_manifest_has_them(folder: Location) -> None:
    write_manifest((ManifestRow(row_id=n, custom_id=f"c{n}", text="t") for n in range(10)), folder / "manifest")
    done = RowSet()
    done.add(_ids(0, 1, 2, 4, 5, 6, 8, 9))
    missing = pa.concat_tables(missing_rows(folder / "manifest", done))
    assert missing["custom_id"].to_pylist() == ["c3", "c7"]
    done.add(_ids(3, 7))
    assert list(missing_rows(folder / "manifest", done)) == []


def test_a_folder_without_results_has_no_rows(tmp_path: Path) -> None:
    assert count_rows(Location(str(tmp_path / "none"))) == 0
    assert not drop_repeated(Location(str(tmp_path / "none"))).contains(_ids(0)).any()
