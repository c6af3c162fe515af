"""Result rows a page at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from asap.errors import ConfigError
from asap.job_records import rows as stored_rows
from asap.job_records.rows import Cursor, RowFilter, StoredRows
from asap.storage.location import Location
from jobs.scan.stages.result_rows import RESULT_SCHEMA
from tests.support.job_folders import failed, scored, write_results

COLUMNS = ["row_id", "verdict"]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredRows:
    """Return the rows of three files, which are read two at a time."""
    monkeypatch.setattr(stored_rows, "_PAGE_ROWS_AT_ONCE", 2)
    folder = Location(str(tmp_path))
    for number, name in enumerate("abc"):
        kinds = ["manipulated", "authentic", "manipulated", "authentic", "manipulated"]
        write_results(folder, name, [scored(5 * number + row, 0.5, kind) for row, kind in enumerate(kinds)])
    return StoredRows(folder / "results", RESULT_SCHEMA, is_complete=True)


def _ids(rows: StoredRows, where: RowFilter, most_rows: int, within_s: float = 3600) -> list[list[int]]:
    """Return the row ids of each page, from the first to the last, with cursors that are sent as texts."""
    pages, after = [], None
    while True:
        page = rows.page(COLUMNS, where, after, most_rows=most_rows, within_s=within_s)
        pages.append([row["row_id"] for table in page.tables for row in table.to_pylist()])
        assert page.rows == len(pages[-1])
        if page.after is None:
            return pages
        after = Cursor.parse(str(page.after))


@pytest.mark.parametrize("most_rows", [1, 2, 3, 4, 100])
def test_pages_have_each_row_once_in_order(rows: StoredRows, most_rows: int) -> None:
    pages = _ids(rows, RowFilter(), most_rows)
    assert [row for page in pages for row in page] == list(range(15))
    assert max(map(len, pages)) <= most_rows


@pytest.mark.parametrize("most_rows", [1, 2, 3, 100])
def test_pages_of_a_filter_have_the_rows_that_pass(rows: StoredRows, most_rows: int) -> None:
    pages = _ids(rows, RowFilter(verdicts=("authentic",)), most_rows)
    assert [row for page in pages for row in page] == [1, 3, 6, 8, 11, 13]


def test_a_page_that_the_time_ends_goes_on_where_it_stopped(rows: StoredRows) -> None:
    pages = _ids(rows, RowFilter(), 100, within_s=-1)
    assert pages[0] == [0, 1]
    assert [row for page in pages for row in page] == list(range(15))


def test_a_page_that_its_bytes_end_goes_on_where_it_stopped(rows: StoredRows) -> None:
    read, after = [], None
    for _ in range(99):
        page = rows.page(COLUMNS, RowFilter(), after, most_rows=100, within_s=3600, most_bytes=1)
        read.append([row["row_id"] for table in page.tables for row in table.to_pylist()])
        after = page.after
        if after is None:
            break
    assert len(read) > 3
    assert [row for page_rows in read for row in page_rows] == list(range(15))


def test_rows_of_a_file_that_came_meanwhile_are_on_a_later_page(rows: StoredRows, tmp_path: Path) -> None:
    first = rows.page(COLUMNS, RowFilter(), None, most_rows=12, within_s=3600)
    write_results(Location(str(tmp_path)), "d", [failed(15, "throttled", retryable=True)])
    second = rows.page(["row_id", "error_code"], RowFilter(), first.after, most_rows=12, within_s=3600)
    assert [row["row_id"] for table in second.tables for row in table.to_pylist()] == [12, 13, 14, 15]


@pytest.mark.parametrize("text", ["", "a.parquet", "-1:a.parquet", "1:", "1e3:a", "9" * 16 + ":a"])
def test_a_cursor_that_no_page_ended_with_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the cursor is not one that a page of rows ended with"):
        Cursor.parse(text)
