"""Tests of the source of the pipeline: how the rows of a manifest are divided among tasks."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from asap.storage.location import Location
from jobs.scan.input import manifest as manifest_module
from jobs.scan.input.manifest import ManifestRow, row_tables, write_manifest
from jobs.scan.stages import read
from jobs.scan.stages.read import Span, plan_tasks


def _write(folder: Path, rows: int, first: int = 0) -> Location:
    location = Location(str(folder))
    write_manifest(row_tables(ManifestRow(row_id=row) for row in range(first, first + rows)), location)
    return location


def plan_spans(manifest: Location, batch_size: int, most: int, longest: int = 1) -> list[Span]:
    """Return the spans of tasks that have one each."""
    tasks = list(plan_tasks(manifest, batch_size, most, longest))
    assert {len(spans) for spans in tasks} <= {1}
    return [span for spans in tasks for span in spans]


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, [1]), (64, [64]), (65, [64, 1]), (300, [64, 64, 64, 8, 64, 36]), (0, [])]
)
def test_no_task_has_more_rows_than_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(manifest_module, "_ROWS_PER_GROUP", 200)
    assert [span.rows for span in plan_spans(_write(tmp_path, rows), 64, 100)] == sizes


def test_a_long_manifest_has_several_batches_a_task_and_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "ROWS_PER_FILE", 400)
    monkeypatch.setattr(manifest_module, "_ROWS_PER_GROUP", 200)
    spans = list(plan_spans(_write(tmp_path, 1000), 8, 20))
    assert {span.rows for span in spans} == {56, 32}
    found = []
    for span in spans:
        table = read._read_group(span.file, span.group, pafs.LocalFileSystem())
        found += table["row_id"].to_pylist()[span.start : span.start + span.rows]
    assert found == list(range(1000))


@pytest.mark.parametrize(
    ("rows", "longest", "sizes"),
    [(300, 4, {8}), (300, 0, {8}), (640, 4, {16}), (640, 1, {8}), (2000, 4, {32}), (2000, 9, {48}), (2000, 3, {24})],
)
def test_tasks_have_several_batches_where_these_are_enough_for_all_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, longest: int, sizes: set[int]
) -> None:
    monkeypatch.setattr(read, "_LEAST_TASKS", 40)
    spans = plan_spans(_write(tmp_path, rows), 8, 10_000, longest)
    assert {span.rows for span in spans[:-1]} == sizes
    assert sum(span.rows for span in spans) == rows


def test_a_manifest_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    def ids() -> list[int]:
        (span,) = plan_spans(Location(str(tmp_path)), 64, 100)
        return list(read._read_group(span.file, span.group, pafs.LocalFileSystem())["row_id"].to_pylist())

    _write(tmp_path, 3)
    assert ids() == [0, 1, 2]
    _write(tmp_path, 2, first=5)
    assert ids() == [5, 6]


def test_a_process_keeps_few_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_ROWS_PER_GROUP", 2)
    for span in plan_spans(_write(tmp_path, 10), 64, 100):
        read._read_group(span.file, span.group, pafs.LocalFileSystem())
    assert len(read._kept_groups) <= read._GROUPS_KEPT


def _in_tables(*tables: tuple[str | None, int | None, int]) -> list[ManifestRow]:
    """Return rows whose pictures are in these row groups of these files, so many each."""
    addresses = [(uri, group, number) for uri, group, rows in tables for number in range(rows)]
    return [
        ManifestRow(row_id=row, image_uri=uri, image_group=group, image_row=None if group is None else number)
        for row, (uri, group, number) in enumerate(addresses)
    ]


@pytest.mark.parametrize(
    ("tables", "sizes"),
    [
        ([("a", 0, 300)], [[200, 100]]),
        ([("a", 0, 100), ("a", 1, 100)], [[100], [100]]),
        ([("a", 0, 20), ("a", 1, 20), ("b", 1, 20), ("b", 2, 20)], [[20, 20, 20], [20]]),
        ([("a", 0, 10), ("x.jpg", None, 70), ("b", 0, 3)], [[10], [64], [6], [3]]),
        ([("a", 0, 190), ("a", 1, 20), ("a", 2, 5)], [[190], [10, 10, 5]]),
    ],
)
def test_the_rows_of_one_row_group_of_a_table_are_one_task(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tables: list[tuple[str | None, int | None, int]],
    sizes: list[list[int]],
) -> None:
    monkeypatch.setattr(manifest_module, "_ROWS_PER_GROUP", 200)
    write_manifest(row_tables(_in_tables(*tables)), Location(str(tmp_path)))
    tasks = list(plan_tasks(Location(str(tmp_path)), 64, 100))
    assert [[span.rows for span in spans] for spans in tasks] == sizes
    found = []
    for span in (span for spans in tasks for span in spans):
        table = read._read_group(span.file, span.group, pafs.LocalFileSystem())
        found += table["row_id"].to_pylist()[span.start : span.start + span.rows]
    assert found == list(range(sum(rows for _, _, rows in tables)))
