"""Tests of pictures in Parquet files: every way to write one, read as a stream, and every damage a typed error."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import FetchFailed, ImageTooLarge
from asap.storage import fetched_file, parquet_values
from asap.storage.fetch import FetchSettings
from asap.storage.files import write_bytes
from asap.storage.location import Location
from asap.storage.parquet_values import ColumnReader
from tests.support.faulty_store import Fault, FaultyStore

SETTINGS = FetchSettings(attempts=2, read_timeout_s=5)
LIMIT = 2**20


def _values(number: int = 40, seed: int = 0) -> list[bytes | None]:
    """Return values of many sizes: random ones, and ones that compress well; every seventh is missing."""
    draw = random.Random(seed)
    values: list[bytes | None] = []
    for row in range(number):
        size = draw.choice([0, 1, 59, 60, 61, 300, 70_000, 300_000])
        repeated = bytes([row]) * size if row % 3 == 0 else b"pixel %d " % row * (size // 8)
        values.append(None if row % 7 == 6 else draw.randbytes(size) if row % 2 else repeated)
    return values


def _read_all(path: Path, column: str, rows: int, group: int = 0) -> list[bytes | None]:
    reader = ColumnReader(str(path), group, column, SETTINGS)
    return [_read(reader, row) for row in range(rows)]


def _read(reader: ColumnReader, row: int) -> bytes | None:
    try:
        return reader.read(row, LIMIT).data
    except FetchFailed as error:
        if error.code != "image_missing":
            raise
        return None


WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "no dictionary": {"use_dictionary": False},
    "uncompressed": {"compression": "none"},
    "uncompressed, no dictionary": {"compression": "none", "use_dictionary": False},
    "version 2 of pages": {"data_page_version": "2.0", "use_dictionary": False},
    "version 2 of pages, dictionary": {"data_page_version": "2.0"},
    "small pages": {"data_page_size": 1000, "write_batch_size": 4, "use_dictionary": False},
    "zstd": {"compression": "zstd"},
    "gzip": {"compression": "gzip", "use_dictionary": False},
    "brotli": {"compression": "brotli", "data_page_version": "2.0"},
    "content-defined chunks": {"use_content_defined_chunking": True},
    "lz4, which pyarrow reads": {"compression": "lz4"},
    "lengths apart, which pyarrow reads": {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_write_a_table_gives_the_bytes_that_were_written(tmp_path: Path, way: str) -> None:
    values = _values()
    table = pa.table({"image": pa.array(values, pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=25, **WAYS[way])
    assert _read_all(tmp_path / "a.parquet", "image", 25) == values[:25]
    assert _read_all(tmp_path / "a.parquet", "image", 15, group=1) == values[25:]


def test_structs_lists_and_other_types_of_bytes_are_read(tmp_path: Path) -> None:
    values = _values(12)
    column = pa.array([None if row == 4 else {"bytes": value, "path": "a"} for row, value in enumerate(values)])
    lists = pa.array([[], None, *([value, b"second"] for value in values[2:])], pa.list_(pa.binary()))
    fixed = pa.array([bytes([row]) * 16 for row in range(12)], pa.binary(16))
    large = pa.array(values, pa.large_binary())
    required = pa.schema([pa.field("required", pa.binary(), nullable=False)])
    pq.write_table(pa.table({"image": column, "images": lists, "fixed": fixed, "large": large}), tmp_path / "a.parquet")
    expected = [None if row == 4 else value for row, value in enumerate(values)]
    assert _read_all(tmp_path / "a.parquet", "image.bytes", 12) == expected
    assert _read_all(tmp_path / "a.parquet", "images.list.element", 12) == [None, None, *values[2:]]
    assert _read_all(tmp_path / "a.parquet", "fixed", 12) == fixed.to_pylist()
    assert _read_all(tmp_path / "a.parquet", "large", 12) == values
    whole = [value or b"" for value in values]
    pq.write_table(pa.table({"required": whole}, required), tmp_path / "b.parquet")
    assert _read_all(tmp_path / "b.parquet", "required", 12) == whole


@pytest.mark.parametrize("way", ["default", "uncompressed, no dictionary", "small pages", "lz4, which pyarrow reads"])
def test_rows_are_read_in_any_order_and_repeated_values_too(tmp_path: Path, way: str) -> None:
    values = _values()
    order = random.Random(1).choices(range(40), k=90)
    repeated = [values[position] for position in order]
    pq.write_table(pa.table({"image": pa.array(repeated, pa.binary())}), tmp_path / "a.parquet", **WAYS[way])
    reader = ColumnReader(str(tmp_path / "a.parquet"), 0, "image", SETTINGS)
    for row in random.Random(2).choices(range(90), k=120):
        assert _read(reader, row) == repeated[row]


def test_a_dictionary_keeps_few_values_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_values, "_KEPT_BYTES", 500)
    values = [random.Random(row).randbytes(200) for row in range(20)]
    order = [*range(20), *reversed(range(20))]
    pq.write_table(pa.table({"image": [values[row] for row in order]}), tmp_path / "a.parquet")
    assert _read_all(tmp_path / "a.parquet", "image", 40) == [values[row] for row in order]


@pytest.mark.parametrize("way", ["default", "no dictionary", "uncompressed, no dictionary", "lz4, which pyarrow reads"])
def test_a_value_above_the_limit_is_an_error_of_its_own_row(tmp_path: Path, way: str) -> None:
    values = [b"a" * 100, b"b" * 5000, b"c" * 100]
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet", **WAYS[way])
    reader = ColumnReader(str(tmp_path / "a.parquet"), 0, "image", SETTINGS)
    assert reader.read(0, 1000).data == values[0]
    with pytest.raises(ImageTooLarge, match="5000 bytes, the limit is 1000"):
        reader.read(1, 1000)
    assert reader.read(2, 1000).data == values[2]


def test_an_address_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"a"], "text": ["b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table")
    for name, group, column, row, code, message in (
        ("gone.parquet", 0, "image", 0, "not_found", "does not exist"),
        ("a.parquet", 1, "image", 0, "not_found", "has no row group 1"),
        ("a.parquet", 0, "picture", 0, "not_found", "with a column picture"),
        ("a.parquet", 0, "image", 1, "not_found", "has no row 1 in row group 0, which has 1 rows"),
        ("b.parquet", 0, "image", 0, "storage_error", "cannot be read"),
    ):
        reader = ColumnReader(str(tmp_path / name), group, column, SETTINGS)
        for _ in range(2):
            with pytest.raises(FetchFailed, match=message) as caught:
                reader.read(row, LIMIT)
            assert (caught.value.code, caught.value.retryable) == (code, False)


@pytest.mark.parametrize("way", ["default", "uncompressed, no dictionary", "version 2 of pages", "zstd"])
def test_damaged_bytes_are_typed_errors_or_other_pictures(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(_values(12), pa.binary())}), path, **WAYS[way])
    data = path.read_bytes()
    draw = random.Random(way)
    messages: list[str] = []
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            # Headers and levels are few bytes at the beginning; a damage there is likelier than by chance.
            at = draw.randrange(200) if draw.random() < 0.5 else draw.randrange(len(data))
            damaged[at] = draw.randrange(256)
        path.write_bytes(damaged)
        reader = ColumnReader(str(path), 0, "image", SETTINGS)
        for row in range(12):
            try:
                reader.read(row, LIMIT)
            except (FetchFailed, ImageTooLarge) as error:
                messages.append(str(error))
    assert messages
    assert not [message for message in messages if "0x" in message or len(message) > 600]


@pytest.mark.parametrize("rows", [2**31, 2**62, -1])
def test_a_number_of_rows_that_no_table_has_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "a.parquet")
    real = parquet_values.read_footer
    monkeypatch.setattr(
        parquet_values,
        "read_footer",
        lambda file: [dataclasses.replace(group, rows=rows, columns=[dataclasses.replace(chunk, values=rows)
                      for chunk in group.columns]) for group in real(file)],
    )  # fmt: skip
    reader = ColumnReader(str(tmp_path / "a.parquet"), 0, "image", SETTINGS)
    for read in (reader.presence, lambda: reader.read(0, LIMIT)):
        with pytest.raises(FetchFailed, match=f"says that it has {rows} rows") as caught:
            read()
        assert (caught.value.code, caught.value.retryable) == ("storage_error", False)


def test_objects_are_read_through_faults_and_their_version_is_kept(
    faulty: FaultyStore, bucket: str, tmp_path: Path
) -> None:
    values = [random.Random(row).randbytes(300_000) for row in range(30)]
    pq.write_table(pa.table({"image": values}), tmp_path / "a.parquet")
    uri = f"s3://{bucket}/a.parquet"
    write_bytes(Location(uri), (tmp_path / "a.parquet").read_bytes())
    requests = iter(range(1000))
    faulty.rule = lambda request: Fault(status=503) if "a.parquet" in request.path and next(requests) % 3 == 1 else None
    reader = ColumnReader(uri, 0, "image", SETTINGS.model_copy(update={"attempts": 5}))
    fetched = [reader.read(row, LIMIT) for row in range(30)]
    assert [value.data for value in fetched] == values
    assert {bool(value.version) for value in fetched} == {True}


def test_a_store_that_fails_is_asked_once_for_all_rows_of_a_table(
    faulty: FaultyStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"image": [b"a" * 100] * 5}), tmp_path / "a.parquet")
    write_bytes(Location(f"s3://{bucket}/a.parquet"), (tmp_path / "a.parquet").read_bytes())
    reader = ColumnReader(f"s3://{bucket}/a.parquet", 0, "image", SETTINGS)
    asked: list[str] = []
    real = fetched_file.fetch

    def count(uri: str, *others: Any) -> Any:
        asked.append(uri)
        return real(uri, *others)

    monkeypatch.setattr(fetched_file, "fetch", count)
    faulty.rule = lambda request: Fault(status=503, code="SlowDown") if request.method == "GET" else None
    for row in range(5):
        with pytest.raises(FetchFailed) as caught:
            reader.read(row, LIMIT)
        assert (caught.value.code, caught.value.retryable) == ("throttled", True)
    assert len(asked) == 1


def test_pages_before_the_row_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [random.Random(row).randbytes(300_000) for row in range(60)]
    pq.write_table(
        pa.table({"image": values}), tmp_path / "a.parquet",
        use_dictionary=False, write_batch_size=1, compression="none",
    )  # fmt: skip
    read = 0
    real: Callable[..., Any] = fetched_file.fetch

    def count(uri: str, length: int, *others: Any) -> Any:
        nonlocal read
        read += length
        return real(uri, length, *others)

    monkeypatch.setattr(fetched_file, "fetch", count)
    assert ColumnReader(str(tmp_path / "a.parquet"), 0, "image", SETTINGS).read(55, LIMIT).data == values[55]
    assert read < 60 * 300_000 / 3


@pytest.mark.parametrize("way", WAYS)
def test_the_rows_that_have_a_value_are_known_without_the_values(tmp_path: Path, way: str) -> None:
    values = _values()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(values, pa.binary())}), path, write_statistics=False, **WAYS[way])
    found = ColumnReader(str(path), 0, "image", SETTINGS).presence()
    is_streamed = "pyarrow" not in way
    assert found == [value is not None or not is_streamed for value in values]


def test_the_footer_says_whether_all_or_no_rows_have_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [{"bytes": None, "path": "a.jpg"}] * 3 + [{"bytes": b"a", "path": None}] * 3
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
    pq.write_table(pa.table({"image": images}, schema), tmp_path / "a.parquet", row_group_size=3)
    monkeypatch.setattr(parquet_values, "read_page", None)
    first = ColumnReader(str(tmp_path / "a.parquet"), 0, "image.bytes", SETTINGS)
    assert first.presence() == [False] * 3
    assert first.beside(1, "image.bytes").presence() == [True] * 3
    with pytest.raises(FetchFailed, match="has no row group 7"):
        first.beside(7, "image.bytes")


def test_values_of_the_next_row_group_are_read_through_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _values()
    pq.write_table(pa.table({"image": pa.array(values, pa.binary())}), tmp_path / "a.parquet", row_group_size=20)
    first = ColumnReader(str(tmp_path / "a.parquet"), 0, "image", SETTINGS)
    assert _read(first, 3) == values[3]
    monkeypatch.setattr(parquet_values, "_Table", None)
    assert _read(first.beside(1, "image"), 5) == values[25]
