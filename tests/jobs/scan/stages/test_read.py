"""Tests of the source of the pipeline: how the rows of a manifest are divided among tasks."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from asap.storage.location import Location
from jobs.scan.input import manifest as manifest_module
from jobs.scan.input.manifest import ManifestRow, write_manifest
from jobs.scan.stages import read
from jobs.scan.stages.read import plan_spans


def _write(folder: Path, rows: int, first: int = 0) -> Location:
    location = Location(str(folder))
    write_manifest((ManifestRow(row_id=row) for row in range(first, first + rows)), location)
    return location


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
