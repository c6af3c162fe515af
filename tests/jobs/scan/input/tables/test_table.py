"""Tables as people have them: each is read, or refused before work with a sentence that says what to do."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputNotFound
from tests.support.tables import FORMATS, read_table, refusal_of, write_table


@pytest.mark.parametrize("name", FORMATS)
def test_web_addresses_are_refused_before_work(tmp_path: Path, name: str) -> None:
    message = refusal_of(write_table(tmp_path / name, [{"url": f"https://h/{n}.jpg", "caption": "c"} for n in (1, 2)]))
    assert "web addresses, in the column 'url': 'https://h/1.jpg'" in message
    assert "img2dataset" in message


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([{"image": "a.jpg", "text": ""}, {"image": "b.jpg", "text": None}], "line 1: no text in 'text'"),
        ([{"image": None, "text": "t"}], "line 1: no picture in 'image'"),
        ([{"image": 12, "text": "t"}], "line 1: image is 12, of type int"),
        ([{"image": "a.jpg", "text": "None"}], "line 1: no text in 'text'"),
        ([{"image": "gs://b/a.jpg", "text": "t"}], "is an address of gs:. Local paths"),
    ],
)
def test_a_table_of_which_no_record_can_be_scanned_is_refused(
    tmp_path: Path, records: list[dict[str, Any]], reason: str
) -> None:
    message = refusal_of(write_table(tmp_path / "a.jsonl", records))
    assert f"none of the first {len(records)} records of a.jsonl can be scanned" in message
    assert reason in message
    assert "--image-column" in message


def test_a_table_that_begins_with_records_without_a_text_is_read(tmp_path: Path) -> None:
    records = [{"image": f"{n}.jpg", "text": None} for n in range(300)] + [{"image": "a.jpg", "text": "t"}]
    assert [row.text for row in read_table(write_table(tmp_path / "a.jsonl", records)).rows()][-2:] == [None, "t"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.parquet.gz", "is a compressed Parquet file. Decompress it"),
        ("a.JSONL.GZ", "ends in .gz, in lower case"),
        ("a.CSV.GZ", "ends in .gz, in lower case"),
    ],
)
def test_compressed_files_that_are_not_read_are_refused_with_advice(tmp_path: Path, name: str, advice: str) -> None:
    data: Any = [{"image": "a.jpg", "text": "t"}] if "parquet" in name else "image,text\na.jpg,t\n"
    plain = write_table(tmp_path / ("plain.parquet" if "parquet" in name else "plain.txt"), data).read_bytes()
    assert advice in refusal_of(write_table(tmp_path / name, gzip.compress(plain, mtime=0)))


def test_the_query_of_an_address_of_the_web_is_not_shown(tmp_path: Path) -> None:
    signed = {"image": "https://h/a.jpg?X-Amz-Signature=SECRET", "text": "t"}
    assert "'https://h/a.jpg?…'" in (message := refusal_of(write_table(tmp_path / "a.jsonl", [signed])))
    table = read_table(write_table(tmp_path / "b.jsonl", [signed, {"image": "a.jpg", "text": "t"}]))
    error = next(table.rows()).row_error or ""
    assert "'https://h/a.jpg?…'" in error
    assert "SECRET" not in message + error


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "is a Git LFS pointer"),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n",
            "Fetch the file with `git lfs pull`",
        ),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "is a Git LFS pointer"),
        ("a.csv", b"PK\x03\x04\x14\0", "Unpack it, or save the sheet as CSV"),
        ("a.json", b"\n<!DOCTYPE html><html>", "is a page of HTML"),
        ("a.jsonl", gzip.compress(b'{"image": "a.jpg", "text": "t"}', mtime=0), "Give it a name that ends in .gz"),
        ("a.csv", b"PAR1\x15\x04", "is a Parquet file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    assert reason in refusal_of(write_table(tmp_path / name, data))


def test_a_conversation_gives_its_first_answer(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog runs."}]
    path = write_table(tmp_path / "a.json", [{"id": "1", "image": "a.jpg", "conversations": turns}])
    table = read_table(path)
    assert "the text is the first answer of each conversation in 'conversations'" in table.notes
    (row,) = table.rows()
    assert row.text == "A dog runs."
    assert row.warnings == ["the text is the first answer of a conversation of 2 turns"]


@pytest.mark.parametrize("name", FORMATS)
def test_embeddings_are_left_out_of_the_metadata_and_said(tmp_path: Path, name: str) -> None:
    records = [{"image": "a.jpg", "text": "t", "box": [1, 2, 3, 4], "vector": [0.125] * 768}]
    table = read_table(write_table(tmp_path / name, records))
    (row,) = table.rows()
    assert list(json.loads(row.metadata or "")) == ["box"]
    assert table.describe()["columns"]["left_out"] == ["vector"]
    assert any("'vector' holds long lists of numbers" in note for note in table.notes)


@pytest.mark.parametrize(
    ("table", "name", "picture"),
    [
        ("DGM4/meta/a.json", "DGM4/origin/x.jpg", "DGM4/origin/x.jpg"),
        ("DGM4/a.json", "DGM4/origin/x.jpg", "DGM4/origin/x.jpg"),
        ("data/a.json", "DGM4/origin/x.jpg", "data/origin/x.jpg"),
        ("data/lists/a.json", "DGM4/origin/x.jpg", "data/origin/x.jpg"),
        ("data/a.json", "x.jpg", "data/images/x.jpg"),
        ("coco/annotations/a.json", "x.jpg", "coco/val2014/x.jpg"),
        ("data/lists/new/a.json", "origin/x.jpg", "data/origin/x.jpg"),
    ],
)
def test_the_folder_of_relative_pictures_is_found(tmp_path: Path, table: str, name: str, picture: str) -> None:
    for path in (table, picture):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / picture).write_bytes(b"x")
    path = write_table(
        tmp_path / table, [{"id": 1, "image": name, "text": "t"}, {"image": "DGM4/none/y.jpg", "text": "t"}]
    )
    found = read_table(path)
    assert next(found.rows()).image_uri == str(tmp_path / picture)
    assert "paths of pictures start at" in " ".join(found.notes)


@pytest.mark.parametrize(("table", "name"), [("data/a.json", "/origin/x.jpg"), ("data/lists/a.json", "/x.jpg")])
def test_a_path_from_the_root_of_a_site_is_found_from_a_folder(tmp_path: Path, table: str, name: str) -> None:
    picture = tmp_path / "data" / name[1:]
    for path in (tmp_path / table, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(b"x")
    found = read_table(
        write_table(tmp_path / table, [{"image": name, "text": "t"}, {"image": "/none/y.jpg", "text": "t"}])
    )
    assert [row.image_uri for row in found.rows()] == [str(picture), str(tmp_path / "data/none/y.jpg")]
    assert "paths of pictures start at" in " ".join(found.notes)


def test_a_path_from_the_root_is_left_as_it_is_if_it_is_there_or_found_nowhere(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    there = [{"image": name, "text": "t"} for name in (str(tmp_path / "x.jpg"), "/x.jpg")]
    table = read_table(write_table(tmp_path / "a.jsonl", there))
    assert [row.image_uri for row in table.rows()] == [str(tmp_path / "x.jpg"), "/x.jpg"]
    nowhere = read_table(write_table(tmp_path / "b.jsonl", [{"image": "/no/y.jpg", "text": "t"}]))
    assert next(nowhere.rows()).image_uri == "/no/y.jpg"
    mixed = read_table(
        write_table(tmp_path / "c.jsonl", [{"image": "x.jpg", "text": "t"}, {"image": "/x.jpg", "text": "t"}])
    )
    assert [row.image_uri for row in mixed.rows()] == [str(tmp_path / "x.jpg"), "/x.jpg"]


def test_different_first_folders_are_never_left_out(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    few = [{"image": name, "text": "t"} for name in ("train/1.jpg", "test/1.jpg")]
    rows = list(read_table(write_table(tmp_path / "a.jsonl", few)).rows())
    assert [row.image_uri for row in rows] == [str(tmp_path / "train/1.jpg"), str(tmp_path / "test/1.jpg")]
    many = [{"image": "train/1.jpg", "text": "t"}] * 300 + [{"image": "test/1.jpg", "text": "t"}]
    rows = list(read_table(write_table(tmp_path / "b.jsonl", many)).rows())
    assert [row.image_uri for row in rows[-2:]] == [str(tmp_path / "1.jpg"), str(tmp_path / "test/1.jpg")]


def test_pictures_that_are_nowhere_are_said(tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "a.jsonl", [{"image": f"{n}.jpg", "text": "t"} for n in range(20)]))
    assert table.notes == (f"none of the first 8 pictures was found at {tmp_path}",)
    assert next(table.rows()).image_uri == str(tmp_path / "0.jpg")


def test_two_pictures_of_coco_with_one_id_are_an_error_of_their_captions(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "c.jpg"}]
    captions = [{"id": number, "image_id": number, "caption": f"text {number}"} for number in (1, 2)]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [*images, images[2]], "annotations": captions}))
    first, second = read_table(path).rows()
    assert first.row_error == "several pictures have the id 1. Give each its own id."
    assert (second.text, second.row_error) == ("text 2", None)


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 7, "image_id": 1, "caption": "one", '
        '"caption": "two"}, {"id": 8, "image_id": 1, "caption": "three"}]}',
        '{"1": {"image": "a.jpg", "caption": "one", "caption": "two"}, "2": {"image": "a.jpg", "caption": "three"}}',
    ],
)
def test_a_text_that_stands_twice_in_a_record_of_an_object_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    first, second = read_table(path).rows()
    assert first.row_error == "the record has 'caption' twice. Rename all but one."
    assert second.text == "three"


@pytest.mark.parametrize(
    "text",
    [
        '{"1": {"image": "a.jpg", "text": "one"}, "1": {"image": "b.jpg", "text": "two"}}',
        '{"rows": {"1": {"image": "a.jpg", "text": "one"}, "1": {"image": "b.jpg", "text": "two"}}}',
        '{"image": {"0": "a.jpg", "0": "b.jpg"}, "text": {"0": "one"}}',
    ],
)
def test_a_key_of_a_record_that_stands_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputNotFound, match=r"has the name '.' twice in one object\. Rename one\."):
        read_table(path)


@pytest.mark.parametrize("place", ["upload/3/ab-1.jpg", "media/upload/3/ab-1.jpg", "images/ab-1.jpg", "ab-1.jpg"])
def test_pictures_of_label_studio_are_found_beside_its_export(tmp_path: Path, place: str) -> None:
    tasks = [{"id": number, "data": {"image": f"/data/upload/3/ab-{number}.jpg", "text": "t"}} for number in (1, 2)]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    with pytest.raises(InputNotFound, match=r"paths on the server of Label Studio, .* Copy the server's folder media/"):
        read_table(path)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"x")
    table = read_table(path)
    second = place.replace("1.jpg", "2.jpg")
    assert [row.image_uri for row in table.rows()] == [str(tmp_path / place), str(tmp_path / second)]
    assert "Label Studio" in table.notes[-1]
