"""Tests of the roles of columns: found by name, named by options, or refused with a sentence that says what to do."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.scan.input.tables.columns import TableOptions
from tests.support.tables import FORMATS, pairs_of, read_table, refusal_of, relative_image, write_table


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("image", "text", "id"),
    [
        ("image", "text", "custom_id"),
        ("image_uri", "text", "id"),
        ("url", "TEXT", "uid"),
        ("URL", "caption", "UUID"),
        ("Image", "Caption", "ID"),
        (" image", " text", " id"),
        ("file_name", "title", "sample-id"),
        ("filename", "sentence", "pair id"),
        ("image_path", "headline", "Custom ID"),
        ("imagePath", "description", "customId"),
        ("img-path", "alt_text", "key"),
        ("filepath", "alt-text", "image_id"),
        ("file path", "Title", "id"),
        ("source-ref", "txt", "id"),
        ("picture", "tweet_text", "id"),
        ("Photo", "sentence", "index"),
        ("uri", "text", "id"),
        ("Image URL", "Raw Caption", "id"),
        ("key", "caption", "id"),
    ],
)
def test_columns_are_found_by_their_names(tmp_path: Path, name: str, image: str, text: str, id: str) -> None:
    records = [{id: f"n{n}", text: f"text {n}", image: f"{n}.jpg", "source": "wire"} for n in (1, 2)]
    path = write_table(tmp_path / name, records)
    assert pairs_of(path) == [("n1", "1.jpg", "text 1"), ("n2", "2.jpg", "text 2")]
    table = read_table(path)
    columns = table.describe()["columns"]
    assert (columns["image"], columns["text"], columns["id"]) == ([image], [text], [id])
    assert [json.loads(row.metadata or "") for row in table.rows()] == [{"source": "wire"}] * 2
    json.dumps(table.describe())


@pytest.mark.parametrize("name", FORMATS)
def test_options_name_columns_in_every_format(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / name, [{"a": "1.jpg", "b": "one", "c": "x", "text": "no", "image": "no.jpg"}])
    options = TableOptions(image_column="a", text_column="B ", id_column="c")
    assert pairs_of(path, options) == [("x", "1.jpg", "one")]
    for wrong in ({"image_column": "d"}, {"text_column": "d"}, {"id_column": "d"}):
        message = refusal_of(path, TableOptions(**wrong))
        flag = "--" + next(iter(wrong)).replace("_", "-")
        assert (
            message == f"{name} has no column 'd', which {flag} names; its columns are 'a', 'b', 'c', 'text', 'image'"
        )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"image": "a.jpg", "caption": "x", "title": "y"}, "'caption', 'title', and each could be the text"),
        ({"image": "a.jpg", "Text": "x", "TEXT": "y"}, "'Text', 'TEXT', which could equally be meant"),
        ({"file_name": "a.jpg", "path": "b.jpg", "text": "y"}, "'file_name', 'path', and each could be the picture"),
    ],
)
def test_columns_that_could_equally_be_meant_are_refused(
    tmp_path: Path, name: str, record: dict[str, str], named: str
) -> None:
    message = refusal_of(write_table(tmp_path / name, [record]))
    assert named in message
    assert "Say which with --" in message


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    for name, text in (("a.csv", "image,text,text\na.jpg,x,y\n"), ("a.jsonl", '{"image":"a","text":"x","text":"y"}\n')):
        assert "2 columns 'text'. Rename all but one" in refusal_of(write_table(tmp_path / name, text))
    table = pa.table([["a.jpg"], ["x"], ["y"]], names=["image", "text", "text"])
    assert "2 columns 'text'. Rename all but one" in refusal_of(write_table(tmp_path / "a.parquet", table))


def test_columns_of_one_name_without_a_role_are_kept_apart(tmp_path: Path) -> None:
    (row,) = read_table(write_table(tmp_path / "a.csv", "image,text,x,x\na.jpg,t,1,2\n")).rows()
    assert json.loads(row.metadata or "") == {"x": "1", "x (2)": "2"}
    table = pa.table([["a.jpg"], ["t"], [1], [2]], names=["image", "text", "x", "x"])
    (row,) = read_table(write_table(tmp_path / "a.parquet", table)).rows()
    assert json.loads(row.metadata or "") == {"x": 1, "x (2)": 2}


def test_the_values_decide_between_columns_of_pictures(tmp_path: Path) -> None:
    records = [{"url": "https://h/1.jpg", "image_path": "1.jpg", "path": "1.jpg", "text": "t"}]
    assert pairs_of(write_table(tmp_path / "a.jsonl", records))[0][1] == "1.jpg"
    records = [{"image": "https://h/1.jpg", "local_path": "1.jpg", "text": "t"}]
    table = read_table(write_table(tmp_path / "b.jsonl", records))
    assert table.columns.image == ("local_path",)
    assert "'image' holds web addresses" in " ".join(table.notes)
    records = [{"filename": "1.jpg", "file": 12, "text": "t"}]
    assert pairs_of(write_table(tmp_path / "c.jsonl", records))[0][1] == "1.jpg"


def test_a_part_of_a_name_means_a_role_if_nothing_else_does(tmp_path: Path) -> None:
    records = [{"main_image_src": "a.jpg", "caption_en": "t", "image_width": 5, "text_length": 3}]
    table = read_table(write_table(tmp_path / "a.jsonl", records))
    assert (table.columns.image, table.columns.text) == (("main_image_src",), ("caption_en",))
    assert sum("by a part of its name" in note for note in table.notes) == 2
    records = [{"image": "a.jpg", "caption_en": "t", "caption_de": "u"}]
    assert "'caption_en', 'caption_de', and each could be the text" in refusal_of(
        write_table(tmp_path / "b.jsonl", records)
    )


def test_columns_of_bytes_are_not_read_unless_they_are_texts(tmp_path: Path) -> None:
    records = [{"image": b"a.jpg", "text": "é".encode(), "raw": b"\xff" * 4000, "more": {"bytes": b"\xff", "n": 1}}]
    table = read_table(write_table(tmp_path / "a.parquet", records))
    (row,) = table.rows()
    assert (relative_image(row, tmp_path / "a"), row.text) == ("a.jpg", "é")
    assert json.loads(row.metadata or "") == {"more": {"n": 1}}
    assert [note for note in table.notes if "holds bytes" in note] == [
        "the column 'raw' holds bytes and is not read",
        "the column 'more.bytes' holds bytes and is not read",
    ]


def test_fields_that_only_some_records_have_keep_their_roles(tmp_path: Path) -> None:
    records = [{"id": 1}, {"Caption": "only"}, {"img": "b.jpg", "Caption": "both"}, {"other": 1}]
    rows = list(read_table(write_table(tmp_path / "a.jsonl", records)).rows())
    assert [(row.text, relative_image(row, tmp_path / "a")) for row in rows[:3]] == [
        (None, None),
        ("only", None),
        ("both", "b.jpg"),
    ]
    assert "neither image nor text" in str(rows[3].row_error)


def test_a_column_with_almost_the_name_of_the_text_is_said(tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "a.csv", "image,text, TEXT\na.jpg,one,two\n"))
    assert "the column 'text' is taken, and ' TEXT' is not" in table.notes
    assert next(table.rows()).text == "one"


def test_fields_of_nested_columns_of_parquet_have_roles(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", [{"id": 1, "data": {"image": "a.jpg", "text": "t", "more": 5}}])
    assert pairs_of(path) == [("1", "a.jpg", "t")]
    assert pairs_of(path, TableOptions(image_column="data.image", text_column="data.text")) == [("1", "a.jpg", "t")]
    assert next(read_table(path).rows()).metadata == '{"data": {"more": 5}}'
