import gzip
import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import StorageError
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables import json_stream, record_files
from jobs.scan.input.tables.record_files import Record, record_file
from jobs.scan.input.tables.table import open_records, records_of


def _read(path: Path, kind: str) -> list[tuple[int, Record]]:
    location = Location(str(path))
    return list(records_of(open_records(location, kind), location, kind))


def _write(tmp_path: Path, data: bytes | str) -> Path:
    path = tmp_path / "input"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_json_lines_keep_their_numbers_and_broken_lines_become_errors(tmp_path: Path) -> None:
    path = _write(tmp_path, b'{"a": 1}\n\n{broken\n[1]\n\xff\xfe\n{"a": 2}')
    found = _read(path, "jsonl")
    assert [line for line, _ in found] == [0, 2, 3, 4, 5]
    assert found[0][1] == {"a": 1}
    assert found[4][1] == {"a": 2}
    assert [str(record).split(":")[0] for _, record in found[1:4]] == [
        "the line is not JSON",
        "the record is of type list, not an object",
        "the line is not UTF-8",
    ]


def test_a_line_that_is_too_long_is_an_error_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "MAX_RECORD_BYTES", 100)
    path = _write(tmp_path, json.dumps({"a": "x" * 500}) + '\n{"a": 1}\n')
    found = _read(path, "jsonl")
    assert isinstance(found[0][1], RowError)
    assert found[1:] == [(1, {"a": 1})]


def test_deeply_nested_json_is_a_row_error(tmp_path: Path) -> None:
    found = _read(_write(tmp_path, "[" * 100_000 + "\n" + '{"a": 1}\n'), "jsonl")
    assert isinstance(found[0][1], RowError)
    assert found[1] == (1, {"a": 1})


@pytest.mark.parametrize("chunk", [1, 7, 2**16])
def test_an_array_is_read_element_by_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    elements = [{"a": 1, "text": "é[],{}"}, {"b": [1, {"c": "]"}]}, 12, {"d": None}]
    path = _write(tmp_path, "\ufeff \n" + json.dumps(elements, indent=1, ensure_ascii=False) + "\n")
    found = _read(path, "json")
    assert [line for line, _ in found] == [0, 1, 2, 3]
    assert [record for _, record in found if isinstance(record, dict)] == [elements[0], elements[1], elements[3]]
    assert "of type int" in str(found[2][1])


@pytest.mark.parametrize("text", ['[{"a": 1}, {"b": ', '[{"a": 1}, {b}]', '[{"a": 1}'])
def test_a_truncated_array_ends_the_reading_and_the_error_counts_the_records(tmp_path: Path, text: str) -> None:
    location = Location(str(_write(tmp_path, text)))
    reading = records_of(open_records(location, "json"), location, "json")
    assert next(reading) == (0, {"a": 1})
    with pytest.raises(InputNotFound, match="is broken after 1 records"):
        next(reading)


def test_an_empty_array_holds_nothing(tmp_path: Path) -> None:
    assert _read(_write(tmp_path, " [ ] "), "json") == []


@pytest.mark.parametrize("chunk", [1, 2**16])
def test_data_after_an_array_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    with pytest.raises(InputNotFound, match=r"broken after 1 records: '\[.*' follows the end of the array"):
        _read(_write(tmp_path, '[{"a": 1}]\n[{"a": 2}]'), "json")


def test_an_unreadable_record_of_an_array_fails_alone(tmp_path: Path) -> None:
    long = b'{"a": ' + b"1" * 5000 + b"}"
    found = _read(
        _write(tmp_path, b'[{"a": 1}, {"a": "caf\xe9"}, ' + long + b', {"a": "\\udce9"}, "\xc3\xa9"]'), "json"
    )
    assert [record for _, record in found[:4:3]] == [{"a": 1}, {"a": "\udce9"}]
    assert str(found[1][1]) == "the record is not UTF-8"
    assert "5000 digits" in str(found[2][1])


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    assert _read(_write(tmp_path, '{"a": 1}\n{"a": 2}\n'), "json") == [(0, {"a": 1}), (1, {"a": 2})]


def test_csv_rows_keep_their_lines_and_empty_cells_are_null(tmp_path: Path) -> None:
    path = _write(tmp_path, '\ufeffid,image,text\n1,a.jpg,"two\nlines"\n\n2,,short\n3,b.jpg\n')
    found = _read(path, "csv")
    assert found[0] == (1, {"id": "1", "image": "a.jpg", "text": "two\nlines"})
    assert found[1][1] == {"id": "2", "image": None, "text": "short"}
    assert str(found[2][1]) == "the line has 2 cells, the header 3"


def test_csv_that_is_not_utf8_or_badly_quoted_is_a_row_error(tmp_path: Path) -> None:
    path = _write(tmp_path, b'image,text\na.jpg,caf\xe9\nb.jpg,"x"y\nc.jpg,fine\nd.jpg,caf\xc3\xa9\n')
    found = _read(path, "csv")
    assert str(found[0][1]) == "the line is not UTF-8"
    assert isinstance(found[0][1], RowError)
    assert found[0][1].fields == {"image": "a.jpg"}
    assert "not CSV" in str(found[1][1])
    assert found[2][1] == {"image": "c.jpg", "text": "fine"}


def test_each_line_that_a_stray_quote_takes_in_is_an_error(tmp_path: Path) -> None:
    lines = ["image,text", *(f"{number}.jpg,text {number}" for number in range(1, 10))]
    lines[3] = '3.jpg,"stray'
    found = _read(_write(tmp_path, "\n".join(lines)), "csv")
    assert [line for line, _ in found] == list(range(1, 10))
    assert [line for line, record in found if isinstance(record, dict)] == [1, 2]
    assert "not CSV" in str(found[2][1])
    assert "a part of line 4" in str(found[3][1])
    lines[6] = '6.jpg,a "quoted" word'
    found = _read(_write(tmp_path, "\n".join(lines)), "csv")
    assert [line for line, record in found if isinstance(record, dict)] == [1, 2, 7, 8, 9]
    lines[6] = '6.jpg,text",closed'
    assert [line for line, record in _read(_write(tmp_path, "\n".join(lines)), "csv")] == list(range(1, 10))


def test_a_header_that_is_not_csv_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match=r"the header of .* is not CSV"):
        _read(_write(tmp_path, 'image,"te"xt\na.jpg,b\n'), "csv")


def test_parquet_rows_are_numbered_over_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "input"
    pq.write_table(pa.table({"image": ["a", "b", "c"], "text": ["x", None, "z"]}), path, row_group_size=2)
    assert _read(path, "parquet") == [
        (0, {"image": "a", "text": "x"}),
        (1, {"image": "b", "text": None}),
        (2, {"image": "c", "text": "z"}),
    ]


def test_a_parquet_value_that_python_does_not_have_is_an_error_of_its_row(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(struct.pack("<4i", 0, 1, 5, 6)), pa.py_buffer(b"acaf\xe9z")]
    )
    when = pa.array([0, 0, 2**50], pa.timestamp("ms"))
    pq.write_table(pa.table({"image": ["a", "b", "c"], "text": text, "when": when}), tmp_path / "input")
    found = _read(tmp_path / "input", "parquet")
    assert [line for line, _ in found] == [0, 1, 2]
    assert [isinstance(record, RowError) for _, record in found] == [False, True, True]


def test_a_file_that_is_not_parquet_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="cannot be read as parquet"):
        _read(_write(tmp_path, "not parquet at all"), "parquet")


def test_compressed_lines_are_read_and_a_truncated_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gzip.compress(b"".join(b'{"a": %d}\n' % number for number in range(1000)))
    path.write_bytes(data)
    assert len(_read(path, "jsonl")) == 1000
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StorageError, match=r"a\.jsonl\.gz"):
        _read(path, "jsonl")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pairs.json", ("pairs", "json", "")),
        ("a.b.NDJSON.gz", ("a.b", "jsonl", ".gz")),
        ("pairs.csv.zst", ("pairs", "csv", ".zst")),
        ("pairs.parquet", ("pairs", "parquet", "")),
        ("pairs.json.zip", None),
        ("pairs", None),
        (".json", None),
    ],
)
def test_the_name_of_a_file_decides_how_its_records_are_read(name: str, expected: tuple[str, str, str] | None) -> None:
    assert record_file(name) == expected
