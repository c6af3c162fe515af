"""Tests of JSON files as people have them: many shapes, and lines that are broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.scan.input.tables import json_records
from tests.support.tables import pairs_of, read_table, refusal_of, relative_image, write_table


@pytest.mark.parametrize("shape", ["array", "lines", "objects in a row"])
def test_a_name_that_stands_twice_in_a_record_is_its_error(tmp_path: Path, shape: str) -> None:
    records = [json.dumps({"image": f"{n}.jpg", "text": "t"}) for n in range(30)]
    records[25] = '{"id": "x", "image": "25.jpg", "text": "one", "text": "two"}'
    records[26] = '{"id": "y", "image": "26.jpg", "text": "t", "more": 1, "more": 2}'
    if shape == "array":
        path = write_table(tmp_path / "a.json", f"[{','.join(records)}]")
    elif shape == "lines":
        path = write_table(tmp_path / "a.jsonl", "\n".join(records))
    else:
        path = write_table(tmp_path / "a.json", "\n".join(record.replace(", ", ",\n") for record in records))
    table = read_table(path)
    assert table.describe()["shape"] == shape
    rows = list(table.rows())
    assert [row.row_error for row in rows if row.row_error] == ["the record has 'text' twice. Rename all but one."]
    assert (rows[25].custom_id if shape != "objects in a row" else rows[-5].custom_id) == "x"


def test_a_name_that_stands_twice_in_one_object_is_refused(tmp_path: Path) -> None:
    message = refusal_of(write_table(tmp_path / "a.json", '{\n"a.jpg": "one",\n"a.jpg": "two",\n"b.jpg": "three"}'))
    assert "has the name 'a.jpg' twice in one object" in message
    message = refusal_of(write_table(tmp_path / "b.json", '{\n"image": "a.jpg",\n"text": "two",\n"text": "three"}'))
    assert "2 columns 'text'. Rename all but one" in message


COCO = {
    "info": {"year": 2014},
    "licenses": [{"id": 1, "name": "x"}],
    "images": [{"id": 7, "file_name": "a.jpg", "width": 5}, {"id": 8, "file_name": "b.jpg", "width": 6}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": "one"},
        {"id": 2, "image_id": 8, "caption": "two"},
        {"id": 3, "image_id": 7, "caption": "three"},
    ],
}


ROWS = [{"image": "a.jpg", "text": "one", "id": "x"}, {"image": "b.jpg", "text": "two", "id": "y"}]


EXPECTED = [("x", "a.jpg", "one"), ("y", "b.jpg", "two")]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("value", "shape", "expected"),
    [
        (ROWS, "array", EXPECTED),
        ({"data": ROWS}, "records under 'data'", EXPECTED),
        ({"version": 1, "annotations": ROWS}, "records under 'annotations'", EXPECTED),
        ({"data": {row["id"]: row for row in ROWS}}, "object of records under 'data'", EXPECTED),
        (
            {"v": 1, "data": {key: [row[key] for row in ROWS] for key in ROWS[0]}},
            "object of columns under 'data'",
            EXPECTED,
        ),
        ({"v": 1, **{key: [row[key] for row in ROWS] for key in ROWS[0]}}, "object of columns", EXPECTED),
        ({"result": {"items": ROWS}}, "records under 'result.items'", EXPECTED),
        ({"data": ROWS, "classes": [{"name": "a"}]}, "records under 'data'", EXPECTED),
        (COCO, "COCO captions", [("1", "a.jpg", "one"), ("2", "b.jpg", "two"), ("3", "a.jpg", "three")]),
        ({key: [row[key] for row in ROWS] for key in ROWS[0]}, "object of columns", EXPECTED),
        ({key: {"0": ROWS[0][key], "1": ROWS[1][key]} for key in ROWS[0]}, "object of columns", EXPECTED),
        (
            {
                "columns": ["id", "image", "text"],
                "index": [0, 1],
                "data": [["x", "a.jpg", "one"], ["y", "b.jpg", "two"]],
            },
            "columns and rows",
            EXPECTED,
        ),
        ({row["id"]: {"image": row["image"], "text": row["text"]} for row in ROWS}, "object of records", EXPECTED),
        (
            {row["image"]: {"id": row["id"], "caption": row["text"]} for row in ROWS},
            "object of records",
            EXPECTED,
        ),
        ({row["image"]: row["text"] for row in ROWS}, "object of records", [(None, *pair[1:]) for pair in EXPECTED]),
        (ROWS[0], "one record", EXPECTED[:1]),
        (
            {"images": [{"filename": "a.jpg", "sentences": [{"raw": "one", "tokens": ["one"]}]}], "dataset": "coco"},
            "records under 'images'",
            [(None, "a.jpg", "one")],
        ),
        (
            [{"id": 1, "annotations": [], "data": {"image": "a.jpg", "text": "one", "more": 1}}],
            "array",
            [("1", "a.jpg", "one")],
        ),
        ([{"id": 3, "image_path": "a.jpg", "caption": "one", "topic": "law"}], "array", [("3", "a.jpg", "one")]),
    ],
)
def test_json_is_read_whatever_its_shape(
    tmp_path: Path, name: str, indent: int | None, value: Any, shape: str, expected: list[Any]
) -> None:
    path = write_table(tmp_path / name, json.dumps(value, indent=indent))
    assert pairs_of(path) == expected
    assert read_table(path).describe()["shape"] in ([shape, "lines"] if shape == "one record" else [shape])


def test_records_printed_over_many_lines_one_behind_the_other_are_read(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert pairs_of(path) == EXPECTED


def test_lines_of_a_json_file_that_name_s3_objects_are_read(tmp_path: Path) -> None:
    text = '{"source-ref": "s3://b/a.jpg", "caption": "c"}\n{"source-ref": "s3://b/b.jpg", "caption": "d"}\n'
    assert [pair[1] for pair in pairs_of(write_table(tmp_path / "a.manifest", text))] == [
        "s3://b/a.jpg",
        "s3://b/b.jpg",
    ]


def test_several_lists_of_records_are_refused_and_named(tmp_path: Path) -> None:
    message = refusal_of(write_table(tmp_path / "a.json", {"train": ROWS, "test": ROWS}))
    assert "has records under 'train', 'test'" in message


def test_lines_of_an_array_without_its_brackets_are_read(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.json", ",\n".join(map(json.dumps, ROWS)) + ",\n")
    assert pairs_of(path) == EXPECTED


def test_an_array_with_a_record_a_line_is_read_whatever_the_name(tmp_path: Path) -> None:
    text = "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n"
    assert pairs_of(write_table(tmp_path / "a.jsonl", text)) == EXPECTED


def test_one_object_that_is_cut_off_is_named_with_the_place(tmp_path: Path) -> None:
    message = refusal_of(write_table(tmp_path / "a.json", json.dumps({"data": ROWS}, indent=2)[:-9]))
    assert message.startswith("a.json is no JSON: ")
    assert "line 1" in message


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    message = refusal_of(write_table(tmp_path / "a.json", {"image": ["a.jpg", "b.jpg"], "text": ["t"]}))
    assert "has columns of different lengths: 'image' 2, 'text' 1" in message


def test_a_line_of_broken_json_keeps_its_name_and_picture(tmp_path: Path) -> None:
    text = (
        json.dumps(ROWS[0])
        + '\n{"id": 3, "image": "c.jpg", "text": "cut o\n{"id": "d", "image": "d.jpg", "text": "a"b"}\n'
    )
    rows = list(read_table(write_table(tmp_path / "a.jsonl", text)).rows())
    assert [(row.custom_id, relative_image(row, tmp_path / "a"), row.text) for row in rows[1:]] == [
        ("3", "c.jpg", None),
        ("d", "d.jpg", None),
    ]
    assert all("the line is not JSON" in str(row.row_error) for row in rows[1:])


def test_only_fields_of_the_record_itself_are_kept_of_a_broken_line(tmp_path: Path) -> None:
    lines = [
        json.dumps(ROWS[0]), '{"meta": {"id": "m", "image": "m.jpg"}, "id": "1", "image": "b.jpg", "text": "cut',
        '{"meta": {"id": "m", "image": "m.jpg", "id": "2"', '{"text": "he said "hi", "id": "3", "image": "c.jpg"}',
        '{"' + '\\"' * 300_000, '{"n": ' + "9" * 5000 + ', "id": "5", "text": "a"b"}',
    ]  # fmt: skip
    rows = list(read_table(write_table(tmp_path / "a.jsonl", "\n".join(lines))).rows())
    found = [(row.custom_id, relative_image(row, tmp_path / "a")) for row in rows[1:]]
    assert found == [("1", "b.jpg"), (None, None), (None, None), (None, None), ("5", None)]
    assert all("the line is not JSON" in str(row.row_error) for row in rows[1:])


def test_an_object_without_records_is_refused(tmp_path: Path) -> None:
    assert "it needs a column 'image'" in refusal_of(write_table(tmp_path / "a.json", {"a": 1, "b": {"c": 2}}))
    assert "of type str" in refusal_of(write_table(tmp_path / "b.json", ["a.jpg", "b.jpg"]))
    assert "of type list" in refusal_of(write_table(tmp_path / "c.json", [["a.jpg", "text"]]))


def test_an_object_that_is_too_large_to_be_read_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "MAX_WHOLE_BYTES", 50)
    message = refusal_of(write_table(tmp_path / "a.json", {"data": ROWS}))
    assert "too large to be read whole. Write its records as lines" in message


def test_a_small_compressed_object_that_grows_much_is_refused(tmp_path: Path) -> None:
    large = json.dumps({"data": ROWS, "more": [{}] * 3_000_000})
    path = write_table(tmp_path / "a.json.gz", gzip.compress(large.encode(), mtime=0))
    assert "more than 32 times its compressed size" in refusal_of(path)
    usual = json.dumps({"data": ROWS, "more": [{}] * 1000})
    assert pairs_of(write_table(tmp_path / "b.json.gz", gzip.compress(usual.encode(), mtime=0))) == EXPECTED


def test_a_caption_of_coco_without_its_picture_is_an_error_of_its_row(tmp_path: Path) -> None:
    value = COCO | {"annotations": [*COCO["annotations"], {"id": 4, "image_id": 99, "caption": "lost"}]}  # type: ignore[misc]
    row = list(read_table(write_table(tmp_path / "a.json", value)).rows())[-1]
    assert (row.custom_id, row.row_error) == ("4", "the picture with the id 99 is not among the images")


def test_one_record_may_have_lists_of_a_picture_and_of_texts(tmp_path: Path) -> None:
    for texts, key in ((["one", "two"], "captions"), ([{"role": "assistant", "content": "one"}], "messages")):
        path = write_table(tmp_path / "a.jsonl", [{"images": ["a.jpg"], key: texts}])
        (row,) = read_table(path).rows()
        assert (relative_image(row, path), row.text) == ("a.jpg", "one")


def test_columns_of_pandas_are_joined_by_their_keys(tmp_path: Path) -> None:
    value = {"image": {"0": "a.jpg", "1": "b.jpg"}, "text": {"1": "two", "0": "one"}}
    assert pairs_of(write_table(tmp_path / "a.json", value)) == [(None, "a.jpg", "one"), (None, "b.jpg", "two")]
