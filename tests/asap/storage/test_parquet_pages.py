"""Tests of the footer and the pages of Parquet files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.storage.fetch import FetchSettings
from asap.storage.fetched_file import FetchedFile
from asap.storage.parquet_pages import CODECS, DICTIONARY_PAGE, read_exactly, read_footer, read_page, unpack_numbers


def _file(path: Path) -> FetchedFile:
    return FetchedFile(str(path), FetchSettings(attempts=1), None)


def test_the_footer_says_what_pyarrow_says(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [b"a", None, b"b"], "text": ["one", "two", "three"]})
    pq.write_table(table, path, row_group_size=2, compression={"image": "zstd", "text": "gzip"})
    metadata = pq.ParquetFile(path).metadata
    groups = read_footer(_file(path))
    assert [group.rows for group in groups] == [2, 1]
    for number, group in enumerate(groups):
        for position, chunk in enumerate(group.columns):
            column = metadata.row_group(number).column(position)
            assert str(CODECS[chunk.codec]).upper() == column.compression
            assert (chunk.values, chunk.nulls) == (column.num_values, column.statistics.null_count)
            assert chunk.start == column.dictionary_page_offset


def test_a_page_gives_its_plain_bytes_and_the_levels_of_its_values(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"abc", None, b"defg"]}), path, use_dictionary=False)
    file = _file(path)
    page = read_page(file, read_footer(file)[0].columns[0].start)
    assert (page.kind == DICTIONARY_PAGE, page.values) == (False, 3)
    body = page.open("snappy")
    assert page.levels(body, 1) == [1, 0, 1]
    assert read_exactly(body, 15) == b"\3\0\0\0abc\4\0\0\0defg"
    with pytest.raises(ValueError, match="ends within a value"):
        read_exactly(body, 1)


def test_bytes_that_are_no_footer_and_no_page_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(20) + (4).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ValueError, match="its footer is damaged"):
        read_footer(_file(path))
    with pytest.raises(ValueError, match="there is no page at byte 4"):
        read_page(_file(path), 4)


@pytest.mark.parametrize(
    ("data", "width", "count", "numbers"),
    [
        (b"", 0, 3, [0, 0, 0]),
        (bytes([6, 5]), 3, 3, [5, 5, 5]),  # a run of 3
        (bytes([3, 0b10_001_000, 0b1_100_011, 0]), 3, 3, [0, 1, 6]),  # eight packed numbers
        (bytes([4, 1, 1, 6, 2, 0]), 9, 5, [257, 257, 2, 2, 2]),  # two runs
    ],
)
def test_runs_and_packed_numbers_are_unpacked(data: bytes, width: int, count: int, numbers: list[int]) -> None:
    assert unpack_numbers(data, width, count) == numbers
