"""Tests of the rows that are made of records: names, texts, metadata and byte ranges."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jobs.scan.input.tables.rows import MAX_METADATA
from tests.support.tables import pairs_of, read_table, write_table


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_of_several_captions_the_first_is_taken_with_a_warning(tmp_path: Path, name: str) -> None:
    records = [{"image": "a.jpg", "captions": ["", "one", "two"]}, {"image": "b.jpg", "captions": ["only"]}]
    table = read_table(write_table(tmp_path / name, records))
    assert "records have several texts in 'captions'; the first that is not empty is taken" in table.notes
    rows = list(table.rows())
    assert [row.text for row in rows] == ["one", "only"]
    assert [row.warnings for row in rows] == [["the text is the first of 2 texts of the record"], []]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1.0, "1"), (-7.0, "-7"), (1.5, "1.5"), (12, "12"), ("1.0", "1.0"), (math.nan, None), (None, None), ("", None)],
)
def test_ids_that_pandas_made_floats_are_whole_again(tmp_path: Path, given: Any, expected: str | None) -> None:
    records = [{"image": "a.jpg", "text": "t", "id": given}]
    for name in ("a.jsonl", "a.parquet", "a.json"):
        assert pairs_of(write_table(tmp_path / name, records))[0][0] == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json"])
def test_numbers_that_json_does_not_have_are_nothing(tmp_path: Path, name: str) -> None:
    good = {"image": "a.jpg", "text": "t", "score": 1.0, "more": {"x": [1.0]}}
    bad = {"image": "b.jpg", "text": "t", "score": math.nan, "more": {"x": [math.inf]}}
    rows = list(read_table(write_table(tmp_path / name, [good, bad])).rows())
    assert json.loads(rows[0].metadata or "", parse_constant=pytest.fail) == {"score": 1.0, "more": {"x": [1.0]}}
    assert json.loads(rows[1].metadata or "", parse_constant=pytest.fail) == {"score": None, "more": {"x": [None]}}


def test_nan_is_no_text_and_no_picture(tmp_path: Path) -> None:
    text = '{"image": "a.jpg", "text": "t"}\n{"image": "b.jpg", "text": NaN}\n{"image": NaN, "text": "t"}\n'
    rows = list(read_table(write_table(tmp_path / "a.jsonl", text)).rows())
    assert [(row.image_uri is None, row.text, row.row_error) for row in rows[1:]] == [
        (False, None, None),
        (True, "t", None),
    ]


def test_nan_in_metadata_that_the_caller_wrote_becomes_null(tmp_path: Path) -> None:
    records = [{"image": "a.jpg", "text": "t", "metadata": '{"a": NaN, "b": "NaN"}'}]
    (row,) = read_table(write_table(tmp_path / "a.jsonl", records)).rows()
    assert row.metadata == '{"a": null, "b": "NaN"}'


@pytest.mark.parametrize("word", ["NA", "N/A", "nan", "NaN", "None", "null", "NULL", "<NA>", "#N/A", " NA "])
def test_words_for_nothing_are_no_text_with_a_warning(tmp_path: Path, word: str) -> None:
    path = write_table(tmp_path / "a.csv", f"image,text\na.jpg,{word}\nb.jpg,none of it\n")
    rows = list(read_table(path).rows())
    assert [row.text for row in rows] == [None, "none of it"]
    assert rows[0].warnings == [f"the text {word.strip()!r} is taken as no text"]


def test_spaces_around_a_path_are_stripped(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.jsonl", [{"image": " a b.jpg\t", "text": " t "}])
    assert pairs_of(path) == [(None, "a b.jpg", " t ")]


def test_metadata_are_bounded(tmp_path: Path) -> None:
    long = "x" * MAX_METADATA
    records = [
        {"image": "a.jpg", "text": "t", "page": long, "source": "wire"},
        {"image": "a.jpg", "text": "t", "metadata": {"page": long, "source": "wire"}},
        {"image": "a.jpg", "text": "t", "metadata": json.dumps({"page": long})},
    ]
    first, second, third = read_table(write_table(tmp_path / "a.jsonl", records)).rows()
    for row in (first, second):
        assert row.metadata == '{"source": "wire"}'
        assert row.warnings == [f"the metadata are longer than {MAX_METADATA} characters; left out: 'page'"]
    assert third.metadata is None
    assert third.row_error is None


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize(
    ("offset", "expected"),
    [("1536", 1536), (1536, 1536), (1536.0, 1536), ("1536.0", 1536), ("1536.5", None), (1.5, None)],
)
def test_byte_ranges_are_whole_numbers(tmp_path: Path, name: str, offset: Any, expected: int | None) -> None:
    record = {"image": "a.tar", "text": "t", "image_offset": offset, "image_length": 9}
    good = {"image": "a.tar", "text": "t", "image_offset": 0, "image_length": 9}
    # pandas would make floats of a column, so each format gets the value as it is.
    lines = [",".join(record), *(",".join(map(str, one.values())) for one in (record, good))]
    row = next(read_table(write_table(tmp_path / name, "\n".join(lines) if name == "a.csv" else [record, good])).rows())
    assert row.image_offset == expected
    assert (row.row_error is None) == (expected is not None)


def test_the_error_of_a_row_is_bounded(tmp_path: Path) -> None:
    wide = {"n" * 3000 + str(n): n for n in range(200)}
    records = [{"image": "a.jpg", "text": "t"}, wide, {"image": "ftp://" + "a" * 5000, "text": "t"}]
    errors = [row.row_error or "" for row in read_table(write_table(tmp_path / "a.jsonl", records)).rows()]
    assert "and 190 more" in errors[1]
    assert max(map(len, errors)) <= 1001
