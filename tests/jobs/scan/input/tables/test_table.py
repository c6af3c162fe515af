"""Tables as people have them: each is read, or refused before work with a sentence that says what to do."""

import base64
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.tables import json_records, parquet_records
from jobs.scan.input.tables.columns import NO_OPTIONS, TableOptions
from jobs.scan.input.tables.record_files import record_file
from jobs.scan.input.tables.rows import MAX_METADATA
from jobs.scan.input.tables.table import Table, understand_table


def _table(path: Path, options: TableOptions = NO_OPTIONS) -> Table:
    file = record_file(path.name)
    assert file is not None
    return understand_table(Location(str(path)), file.kind, options)


def _write(path: Path, data: Any) -> Path:
    """Write a table of the kind that the name says: records, text or bytes."""
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif isinstance(data, str):
        path.write_bytes(data.encode())
    elif path.suffix == ".parquet":
        pq.write_table(data if isinstance(data, pa.Table) else pa.Table.from_pylist(data), path)
    elif path.suffix == ".csv":
        pd.DataFrame(data).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in data))
    else:
        path.write_text(json.dumps(data))
    return path


def _pairs(path: Path, options: TableOptions = NO_OPTIONS) -> list[tuple[str | None, str | None, str | None]]:
    """Return name, picture and text of each row, the picture relative to the folder of the table."""
    rows = list(_table(path, options).rows())
    assert [row.row_error for row in rows] == [None] * len(rows)
    return [(row.custom_id, _relative(row, path), row.text) for row in rows]


def _relative(row: ManifestRow, path: Path) -> str | None:
    return row.image_uri.removeprefix(f"{path.parent}/") if row.image_uri else None


def _refusal(path: Path, options: TableOptions = NO_OPTIONS) -> str:
    with pytest.raises(InputNotFound) as caught:
        _table(path, options)
    return str(caught.value).replace(f"{path.parent}/", "")


FORMATS = ["a.jsonl", "a.csv", "a.parquet", "a.json"]


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
    path = _write(tmp_path / name, records)
    assert _pairs(path) == [("n1", "1.jpg", "text 1"), ("n2", "2.jpg", "text 2")]
    table = _table(path)
    columns = table.describe()["columns"]
    assert (columns["image"], columns["text"], columns["id"]) == ([image], [text], [id])
    assert [json.loads(row.metadata or "") for row in table.rows()] == [{"source": "wire"}] * 2
    json.dumps(table.describe())


@pytest.mark.parametrize("name", FORMATS)
def test_options_name_columns_in_every_format(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, [{"a": "1.jpg", "b": "one", "c": "x", "text": "no", "image": "no.jpg"}])
    options = TableOptions(image_column="a", text_column="B ", id_column="c")
    assert _pairs(path, options) == [("x", "1.jpg", "one")]
    for wrong in ({"image_column": "d"}, {"text_column": "d"}, {"id_column": "d"}):
        message = _refusal(path, TableOptions(**wrong))
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
    message = _refusal(_write(tmp_path / name, [record]))
    assert named in message
    assert "Say which with --" in message


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    for name, text in (("a.csv", "image,text,text\na.jpg,x,y\n"), ("a.jsonl", '{"image":"a","text":"x","text":"y"}\n')):
        assert "2 columns 'text'. Rename all but one" in _refusal(_write(tmp_path / name, text))
    table = pa.table([["a.jpg"], ["x"], ["y"]], names=["image", "text", "text"])
    assert "2 columns 'text'. Rename all but one" in _refusal(_write(tmp_path / "a.parquet", table))


def test_columns_of_one_name_without_a_role_are_kept_apart(tmp_path: Path) -> None:
    (row,) = _table(_write(tmp_path / "a.csv", "image,text,x,x\na.jpg,t,1,2\n")).rows()
    assert json.loads(row.metadata or "") == {"x": "1", "x (2)": "2"}
    table = pa.table([["a.jpg"], ["t"], [1], [2]], names=["image", "text", "x", "x"])
    (row,) = _table(_write(tmp_path / "a.parquet", table)).rows()
    assert json.loads(row.metadata or "") == {"x": 1, "x (2)": 2}


def test_the_values_decide_between_columns_of_pictures(tmp_path: Path) -> None:
    records = [{"url": "https://h/1.jpg", "image_path": "1.jpg", "path": "1.jpg", "text": "t"}]
    assert _pairs(_write(tmp_path / "a.jsonl", records))[0][1] == "1.jpg"
    records = [{"image": "https://h/1.jpg", "local_path": "1.jpg", "text": "t"}]
    table = _table(_write(tmp_path / "b.jsonl", records))
    assert table.columns.image == ("local_path",)
    assert "'image' holds web addresses" in " ".join(table.notes)
    records = [{"filename": "1.jpg", "file": 12, "text": "t"}]
    assert _pairs(_write(tmp_path / "c.jsonl", records))[0][1] == "1.jpg"


def test_a_part_of_a_name_means_a_role_if_nothing_else_does(tmp_path: Path) -> None:
    records = [{"main_image_src": "a.jpg", "caption_en": "t", "image_width": 5, "text_length": 3}]
    table = _table(_write(tmp_path / "a.jsonl", records))
    assert (table.columns.image, table.columns.text) == (("main_image_src",), ("caption_en",))
    assert sum("by a part of its name" in note for note in table.notes) == 2
    records = [{"image": "a.jpg", "caption_en": "t", "caption_de": "u"}]
    assert "'caption_en', 'caption_de', and each could be the text" in _refusal(_write(tmp_path / "b.jsonl", records))


def test_columns_of_bytes_are_not_read_unless_they_are_texts(tmp_path: Path) -> None:
    records = [{"image": b"a.jpg", "text": "é".encode(), "raw": b"\xff" * 4000, "more": {"bytes": b"\xff", "n": 1}}]
    table = _table(_write(tmp_path / "a.parquet", records))
    (row,) = table.rows()
    assert (_relative(row, tmp_path / "a"), row.text) == ("a.jpg", "é")
    assert json.loads(row.metadata or "") == {"more": {"n": 1}}
    assert [note for note in table.notes if "holds bytes" in note] == [
        "the column 'raw' holds bytes and is not read",
        "the column 'more.bytes' holds bytes and is not read",
    ]


def test_fields_that_only_some_records_have_keep_their_roles(tmp_path: Path) -> None:
    records = [{"id": 1}, {"Caption": "only"}, {"img": "b.jpg", "Caption": "both"}, {"other": 1}]
    rows = list(_table(_write(tmp_path / "a.jsonl", records)).rows())
    assert [(row.text, _relative(row, tmp_path / "a")) for row in rows[:3]] == [
        (None, None),
        ("only", None),
        ("both", "b.jpg"),
    ]
    assert "neither image nor text" in str(rows[3].row_error)


@pytest.mark.parametrize("name", FORMATS)
def test_web_addresses_are_refused_before_work(tmp_path: Path, name: str) -> None:
    message = _refusal(_write(tmp_path / name, [{"url": f"https://h/{n}.jpg", "caption": "c"} for n in (1, 2)]))
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
    message = _refusal(_write(tmp_path / "a.jsonl", records))
    assert f"none of the first {len(records)} records of a.jsonl can be scanned" in message
    assert reason in message
    assert "--image-column" in message


def test_a_table_that_begins_with_records_without_a_text_is_read(tmp_path: Path) -> None:
    records = [{"image": f"{n}.jpg", "text": None} for n in range(300)] + [{"image": "a.jpg", "text": "t"}]
    assert [row.text for row in _table(_write(tmp_path / "a.jsonl", records)).rows()][-2:] == [None, "t"]


def test_few_long_rows_of_parquet_are_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    records = [{"image": "a.jpg", "text": f"{n}" * 2**20} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(records), path, use_dictionary=False)
    file = pq.ParquetFile(path)
    assert parquet_records._rows_at_once(file, ["image", "text"]) == 63
    assert parquet_records._rows_at_once(file, ["image"]) == 1024
    assert len(list(_table(path).rows())) == 9


PAIRS = [("1", "a.jpg", 'the "first", text'), ("2", "b.jpg", "second; one|bar")]


def _delimited(delimiter: str, escape: str = '""', end: str = "\n", tail: str = "") -> str:
    lines = [delimiter.join(("id", "image", "text"))]
    lines += [delimiter.join((id, image, '"' + text.replace('"', escape) + '"')) for id, image, text in PAIRS]
    return "".join(f"{line}{tail}{end}" for line in lines)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("escape", ['""', '\\"'])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("trailing", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_is_read_whatever_its_delimiter_quotes_line_ends_and_encoding(
    tmp_path: Path, delimiter: str, escape: str, end: str, trailing: bool, encoding: str
) -> None:
    text = _delimited(delimiter, escape, end, delimiter if trailing else "")
    path = _write(tmp_path / "a.csv", text.encode(encoding))
    assert _pairs(path) == PAIRS
    described = _table(path).describe()
    assert described["delimiter"] == {"\t": "tab"}.get(delimiter, delimiter)
    assert described["quotes"] == ("doubled" if escape == '""' else "backslash")
    assert described["header"] is True


@pytest.mark.parametrize("name", ["a.tsv", "a.TAB", "a.tsv.gz"])
def test_tsv_files_are_tables(tmp_path: Path, name: str) -> None:
    data = _delimited("\t").encode()
    assert _pairs(_write(tmp_path / name, gzip.compress(data, mtime=0) if name.endswith("gz") else data)) == PAIRS


def test_quotes_of_a_tsv_that_has_no_quoting_are_letters(tmp_path: Path) -> None:
    text = 'image\ttext\na.jpg\t"Hello", he said\nb.jpg\tan open " quote\nc.jpg\t"He\n'
    assert [pair[2] for pair in _pairs(_write(tmp_path / "a.tsv", text))] == [
        '"Hello", he said',
        'an open " quote',
        '"He',
    ]


def test_spaces_before_quotes_are_passed_over(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'image, text, id\na.jpg, "one, two", 7\nb.jpg, plain, 8\n')
    assert _pairs(path) == [("7", "a.jpg", "one, two"), ("8", "b.jpg", "plain")]


def test_spaces_behind_every_delimiter_are_no_part_of_the_cells(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "image_name| number| comment\na.jpg| 0| Two dogs\n")
    (row,) = _table(path).rows()
    assert (row.text, row.metadata) == ("Two dogs", '{"number": "0"}')


def test_a_delimiter_that_is_not_found_is_asked_for(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path / "a.csv", "image~text\na.jpg~t\n"))
    assert "has the columns 'image~text'" in message
    assert message.endswith("If its cells have another delimiter, say it with --delimiter.")


def test_a_given_delimiter_is_used(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "image~text\na.jpg~t\n")
    assert _pairs(path, TableOptions(delimiter="~")) == [(None, "a.jpg", "t")]
    path = _write(tmp_path / "b.csv", "image\ttext\na.jpg\tt\n")
    assert _pairs(path, TableOptions(delimiter="tab")) == [(None, "b.jpg".replace("b", "a"), "t")]
    for wrong in ("", "ab", '"', "\n"):
        assert "is not one character" in _refusal(path, TableOptions(delimiter=wrong))


@pytest.mark.parametrize(
    ("preface", "skipped"), [("\n\n", 2), ("# made by hand, 2024\n", 1), ("sep=;\n", 1), ("# image, text\n\n", 2)]
)
def test_lines_before_the_header_are_passed_over_and_line_numbers_stay_right(
    tmp_path: Path, preface: str, skipped: int
) -> None:
    path = _write(tmp_path / "a.csv", f"{preface}image;text\na.jpg;one\n\nb.jpg;two\n")
    assert [(row.row_id, row.text) for row in _table(path).rows()] == [(skipped + 1, "one"), (skipped + 3, "two")]


def test_a_header_may_stand_in_a_comment(tmp_path: Path) -> None:
    assert _pairs(_write(tmp_path / "a.csv", "# image,text\na.jpg,t\n")) == [(None, "a.jpg", "t")]


def test_a_table_without_a_header_is_refused_unless_columns_are_named_by_position(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "a.jpg,one,x\nb.jpg,two,y\n")
    message = _refusal(path)
    assert "seems to have no header: its first line is 'a.jpg', 'one', 'x'" in message
    assert "--image-column 1 --text-column 2" in message
    rows = list(_table(path, TableOptions(image_column="1", text_column="2", id_column="3")).rows())
    assert [(row.row_id, row.custom_id, _relative(row, path), row.text) for row in rows] == [
        (0, "x", "a.jpg", "one"),
        (1, "y", "b.jpg", "two"),
    ]
    assert "has no column '4'" in _refusal(path, TableOptions(image_column="1", text_column="4"))
    assert "it needs a column 'text'" in _refusal(path, TableOptions(image_column="1"))


def test_positions_also_name_columns_below_a_header(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "picture,caption,title\na.jpg,one,x\n")
    assert _pairs(path, TableOptions(image_column="1", text_column="3")) == [(None, "a.jpg", "x")]


@pytest.mark.parametrize("first", ["a.jpg,Photo", "#love,a.jpg", "//img/a.jpg,one", "#love,5", "text,a.jpg", "7,Title"])
def test_the_first_record_of_a_table_without_a_header_is_kept(tmp_path: Path, first: str) -> None:
    image, text = ("1", "2") if "jpg," in first or first.startswith("7") else ("2", "1")
    second = ",".join(("b.jpg", "two") if image == "1" else ("two", "b.jpg"))
    path = _write(tmp_path / "a.csv", f"{first}\n{second}\n")
    rows = list(_table(path, TableOptions(image_column=image, text_column=text)).rows())
    assert [(row.row_id, row.text) for row in rows] == [(0, first.split(",")[int(text) - 1]), (1, "two")]


def test_comments_above_a_table_without_a_header_are_passed_over(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "# made by hand, 2024\na.jpg,one\n")
    assert _pairs(path, TableOptions(image_column="1", text_column="2")) == [(None, "a.jpg", "one")]
    path = _write(tmp_path / "b.csv", "filename,beschreibung\na.jpg,one\n")
    assert _pairs(path, TableOptions(image_column="1", text_column="2")) == [(None, "a.jpg", "one")]


@pytest.mark.parametrize("lines", [2, 60])
def test_records_between_two_stray_quotes_are_errors_of_their_lines(tmp_path: Path, lines: int) -> None:
    text = [f"{n}.jpg,text {n}" for n in range(200)]
    text[100] = '100.jpg,"Hello'
    text[100 + lines] = f'{100 + lines}.jpg,bye"'
    rows = list(_table(_write(tmp_path / "a.csv", "image,text\n" + "\n".join(text))).rows())
    assert [row.row_id for row in rows] == list(range(1, 201))
    assert [row.row_id - 1 for row in rows if row.row_error] == list(range(100, 101 + lines))
    assert "look like records" in str(rows[100].row_error)


def test_many_lines_of_a_record_without_names_of_pictures_are_errors_of_their_lines(tmp_path: Path) -> None:
    text = [f"{n},images/{n},text" for n in range(60)]
    text[10], text[40] = '10,images/10,"Hello', '40,images/40,bye"'
    rows = list(_table(_write(tmp_path / "a.csv", "id,image,text\n" + "\n".join(text))).rows())
    assert [bool(row.row_error) for row in rows] == [10 <= n <= 40 for n in range(60)]


def test_a_text_of_many_lines_is_one_text(tmp_path: Path) -> None:
    poem = "\n".join(f"line {n}, of a poem" for n in range(50))
    records = [{"image": "a.jpg", "text": poem}, {"image": "b.jpg", "text": "see\nb.jpg\nand c.jpg, too\n\nor not"}]
    path = _write(tmp_path / "a.csv", records)
    assert [pair[2] for pair in _pairs(path)] == [record["text"] for record in records]


@pytest.mark.parametrize("shape", ["array", "lines", "objects in a row"])
def test_a_name_that_stands_twice_in_a_record_is_its_error(tmp_path: Path, shape: str) -> None:
    records = [json.dumps({"image": f"{n}.jpg", "text": "t"}) for n in range(30)]
    records[25] = '{"id": "x", "image": "25.jpg", "text": "one", "text": "two"}'
    records[26] = '{"id": "y", "image": "26.jpg", "text": "t", "more": 1, "more": 2}'
    if shape == "array":
        path = _write(tmp_path / "a.json", f"[{','.join(records)}]")
    elif shape == "lines":
        path = _write(tmp_path / "a.jsonl", "\n".join(records))
    else:
        path = _write(tmp_path / "a.json", "\n".join(record.replace(", ", ",\n") for record in records))
    table = _table(path)
    assert table.describe()["shape"] == shape
    rows = list(table.rows())
    assert [row.row_error for row in rows if row.row_error] == ["the record has 'text' twice. Rename all but one."]
    assert (rows[25].custom_id if shape != "objects in a row" else rows[-5].custom_id) == "x"


def test_a_name_that_stands_twice_in_one_object_is_refused(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path / "a.json", '{\n"a.jpg": "one",\n"a.jpg": "two",\n"b.jpg": "three"}'))
    assert "has the name 'a.jpg' twice in one object" in message
    message = _refusal(_write(tmp_path / "b.json", '{\n"image": "a.jpg",\n"text": "two",\n"text": "three"}'))
    assert "2 columns 'text'. Rename all but one" in message


def test_a_column_with_almost_the_name_of_the_text_is_said(tmp_path: Path) -> None:
    table = _table(_write(tmp_path / "a.csv", "image,text, TEXT\na.jpg,one,two\n"))
    assert "the column 'text' is taken, and ' TEXT' is not" in table.notes
    assert next(table.rows()).text == "one"


def test_fields_of_nested_columns_of_parquet_have_roles(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", [{"id": 1, "data": {"image": "a.jpg", "text": "t", "more": 5}}])
    assert _pairs(path) == [("1", "a.jpg", "t")]
    assert _pairs(path, TableOptions(image_column="data.image", text_column="data.text")) == [("1", "a.jpg", "t")]
    assert next(_table(path).rows()).metadata == '{"data": {"more": 5}}'


def test_texts_of_parquet_that_are_bytes_of_another_encoding_are_refused(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path / "a.parquet", [{"image": "a.jpg", "text": b"caf\xe9"}]))
    assert "in the column 'text', are bytes that are not UTF-8" in message
    assert "InlinePicture" not in message


def test_pictures_in_base64_in_parquet_are_refused_with_advice(tmp_path: Path) -> None:
    picture = base64.b64encode(b"\xff\xd8\xff" + b"a" * 99).decode()
    message = _refusal(_write(tmp_path / "a.parquet", [{"image": picture, "text": "t"}]))
    assert "Decode them into a column of bytes" in message
    assert picture not in message


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
    plain = _write(tmp_path / ("plain.parquet" if "parquet" in name else "plain.txt"), data).read_bytes()
    assert advice in _refusal(_write(tmp_path / name, gzip.compress(plain, mtime=0)))


def test_the_query_of_an_address_of_the_web_is_not_shown(tmp_path: Path) -> None:
    signed = {"image": "https://h/a.jpg?X-Amz-Signature=SECRET", "text": "t"}
    assert "'https://h/a.jpg?…'" in (message := _refusal(_write(tmp_path / "a.jsonl", [signed])))
    table = _table(_write(tmp_path / "b.jsonl", [signed, {"image": "a.jpg", "text": "t"}]))
    error = next(table.rows()).row_error or ""
    assert "'https://h/a.jpg?…'" in error
    assert "SECRET" not in message + error


def test_columns_of_pandas_are_joined_by_their_keys(tmp_path: Path) -> None:
    value = {"image": {"0": "a.jpg", "1": "b.jpg"}, "text": {"1": "two", "0": "one"}}
    assert _pairs(_write(tmp_path / "a.json", value)) == [(None, "a.jpg", "one"), (None, "b.jpg", "two")]


LETTERS = {
    "cp1252": ["Un café à côté", "L’été “chaud”", "Größe"],
    "latin-1": ["El niño pequeño", "una señora mañana"],
    "cp1251": ["Мужчина идёт по улице в Москве", "Женщина с ребёнком в парке"],
    "cp1250": ["Żółta łódź płynie po rzece", "Mężczyzna idzie ulicą w Łodzi"],
    "cp1253": ["Ένας άνδρας περπατά στον δρόμο της Αθήνας"],
    "shift_jis": ["東京の街を歩く男性の写真です。", "犬が公園で遊んでいます"],
    "gb18030": ["一个男人走在北京的街道上", "一只狗在公园里玩耍，天气很好"],
    "euc_kr": ["한 남자가 서울의 거리를 걷고 있다", "공원에서 놀고 있는 개"],
    "utf-16": ["Größe", "日本"],
    "utf-16-le": ["Größe", "Москва"],
    "utf-32": ["Größe"],
}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
@pytest.mark.parametrize("encoding", LETTERS)
def test_encodings_are_found_or_named(tmp_path: Path, name: str, encoding: str) -> None:
    texts = LETTERS[encoding]
    if name == "a.csv":
        data = "image,text\n" + "".join(f"{n}.jpg,{text}\n" for n, text in enumerate(texts))
    else:
        records = [{"image": f"{n}.jpg", "text": text} for n, text in enumerate(texts)]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        data = lines if name == "a.jsonl" else json.dumps(records, ensure_ascii=False)
    path = _write(tmp_path / name, data.encode(encoding))
    assert [text for _, _, text in _pairs(path, TableOptions(encoding=encoding))] == texts
    assert [text for _, _, text in _pairs(path)] == texts
    table = _table(path)
    guessed = any("was guessed" in note for note in table.notes)
    assert guessed == (encoding not in ("utf-16", "utf-32"))
    assert table.describe()["encoding"]


@pytest.mark.parametrize(("text", "encoding"), [("Привет", "cp1251"), ("Москва", "cp1251"), ("한국어", "euc_kr")])
def test_an_ambiguous_short_text_is_no_guess(tmp_path: Path, text: str, encoding: str) -> None:
    path = _write(tmp_path / "a.csv", f"image,text\na.jpg,{text}\n".encode(encoding))
    assert "or its encoding with --encoding" in _refusal(path)
    assert _pairs(path, TableOptions(encoding=encoding)) == [(None, "a.jpg", text)]


@pytest.mark.parametrize(
    ("text", "encoding"), [("中文标题", "gb18030"), ("東京タワー", "shift_jis"), ("台灣的街道", "big5")]
)
def test_a_short_text_of_frequent_characters_of_one_encoding_is_read(tmp_path: Path, text: str, encoding: str) -> None:
    assert _pairs(_write(tmp_path / "a.csv", f"image,text\na.jpg,{text}\n".encode(encoding))) == [(None, "a.jpg", text)]


@pytest.mark.parametrize("encoding", ["utf8000", "", "base64", "rot13", "punycode", "a\0b", "idna"])
def test_unknown_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    message = _refusal(_write(tmp_path / "a.csv", "image,text\na.jpg,t\n"), TableOptions(encoding=encoding))
    assert "is unknown. Give a name that Python knows" in message


def test_a_bad_line_of_utf8_keeps_its_name_and_picture(tmp_path: Path) -> None:
    lines = [
        b"id,image,text,note",
        *(f"{n},{n}.jpg,é,x".encode() for n in range(9)),
        b"9,9.jpg,caf\xe9,x",
        b"10,10.jpg",
    ]
    lines += [b'11,11.jpg,"stray,x', b"12,12.jpg,t,x", b"13,13.jpg,t, with, commas,x"]
    rows = list(_table(_write(tmp_path / "a.csv", b"\n".join(lines))).rows())
    assert [row.row_id for row in rows] == list(range(1, 15))
    for row in rows[9:]:
        assert (row.custom_id, _relative(row, tmp_path / "a")) == (str(row.row_id - 1), f"{row.row_id - 1}.jpg")
        assert row.row_error
        assert row.text is None
    assert rows[9].row_error == "the line is not UTF-8"
    good = [json.dumps({"id": n, "image": f"{n}.jpg", "text": "é"}, ensure_ascii=False).encode() for n in range(3)]
    bad = b'{"id": 3, "image": "3.jpg", "text": "caf\xe9"}'
    for name, data in (
        ("a.jsonl", b"\n".join([*good, bad])),
        ("a.json", b"[" + b",".join([*good, bad]) + b"]"),
        ("b.json", b'{"data":[' + b",".join([*good, bad]) + b"]}"),
    ):
        row = list(_table(_write(tmp_path / name, data)).rows())[-1]
        assert (row.custom_id, _relative(row, tmp_path / "a"), row.text) == ("3", "3.jpg", None)
        assert "not UTF-8" in str(row.row_error)


def test_a_line_that_is_too_short_or_out_of_place_never_names_a_wrong_picture(tmp_path: Path) -> None:
    text = "text,image\nfine,a.jpg\nwith, comma,b.jpg\nshort\n"
    rows = list(_table(_write(tmp_path / "a.csv", text)).rows())
    assert [row.image_uri is None for row in rows] == [False, True, True]


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
    path = _write(tmp_path / name, json.dumps(value, indent=indent))
    assert _pairs(path) == expected
    assert _table(path).describe()["shape"] in ([shape, "lines"] if shape == "one record" else [shape])


def test_records_printed_over_many_lines_one_behind_the_other_are_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert _pairs(path) == EXPECTED


def test_lines_of_a_json_file_that_name_s3_objects_are_read(tmp_path: Path) -> None:
    text = '{"source-ref": "s3://b/a.jpg", "caption": "c"}\n{"source-ref": "s3://b/b.jpg", "caption": "d"}\n'
    assert [pair[1] for pair in _pairs(_write(tmp_path / "a.manifest", text))] == ["s3://b/a.jpg", "s3://b/b.jpg"]


def test_several_lists_of_records_are_refused_and_named(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path / "a.json", {"train": ROWS, "test": ROWS}))
    assert "has records under 'train', 'test'" in message


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
    assert reason in _refusal(_write(tmp_path / name, data))


def test_lines_of_an_array_without_its_brackets_are_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", ",\n".join(map(json.dumps, ROWS)) + ",\n")
    assert _pairs(path) == EXPECTED


def test_an_array_with_a_record_a_line_is_read_whatever_the_name(tmp_path: Path) -> None:
    text = "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n"
    assert _pairs(_write(tmp_path / "a.jsonl", text)) == EXPECTED


def test_one_object_that_is_cut_off_is_named_with_the_place(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path / "a.json", json.dumps({"data": ROWS}, indent=2)[:-9]))
    assert message.startswith("a.json is no JSON: ")
    assert "line 1" in message


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    message = _refusal(_write(tmp_path / "a.json", {"image": ["a.jpg", "b.jpg"], "text": ["t"]}))
    assert "has columns of different lengths: 'image' 2, 'text' 1" in message


def test_a_line_of_broken_json_keeps_its_name_and_picture(tmp_path: Path) -> None:
    text = (
        json.dumps(ROWS[0])
        + '\n{"id": 3, "image": "c.jpg", "text": "cut o\n{"id": "d", "image": "d.jpg", "text": "a"b"}\n'
    )
    rows = list(_table(_write(tmp_path / "a.jsonl", text)).rows())
    assert [(row.custom_id, _relative(row, tmp_path / "a"), row.text) for row in rows[1:]] == [
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
    rows = list(_table(_write(tmp_path / "a.jsonl", "\n".join(lines))).rows())
    found = [(row.custom_id, _relative(row, tmp_path / "a")) for row in rows[1:]]
    assert found == [("1", "b.jpg"), (None, None), (None, None), (None, None), ("5", None)]
    assert all("the line is not JSON" in str(row.row_error) for row in rows[1:])


def test_an_object_without_records_is_refused(tmp_path: Path) -> None:
    assert "it needs a column 'image'" in _refusal(_write(tmp_path / "a.json", {"a": 1, "b": {"c": 2}}))
    assert "of type str" in _refusal(_write(tmp_path / "b.json", ["a.jpg", "b.jpg"]))
    assert "of type list" in _refusal(_write(tmp_path / "c.json", [["a.jpg", "text"]]))


def test_an_object_that_is_too_large_to_be_read_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_records, "MAX_WHOLE_BYTES", 50)
    message = _refusal(_write(tmp_path / "a.json", {"data": ROWS}))
    assert "too large to be read whole. Write its records as lines" in message


def test_a_small_compressed_object_that_grows_much_is_refused(tmp_path: Path) -> None:
    large = json.dumps({"data": ROWS, "more": [{}] * 3_000_000})
    path = _write(tmp_path / "a.json.gz", gzip.compress(large.encode(), mtime=0))
    assert "more than 32 times its compressed size" in _refusal(path)
    usual = json.dumps({"data": ROWS, "more": [{}] * 1000})
    assert _pairs(_write(tmp_path / "b.json.gz", gzip.compress(usual.encode(), mtime=0))) == EXPECTED


def test_a_caption_of_coco_without_its_picture_is_an_error_of_its_row(tmp_path: Path) -> None:
    value = COCO | {"annotations": [*COCO["annotations"], {"id": 4, "image_id": 99, "caption": "lost"}]}  # type: ignore[misc]
    row = list(_table(_write(tmp_path / "a.json", value)).rows())[-1]
    assert (row.custom_id, row.row_error) == ("4", "the picture with the id 99 is not among the images")


def test_a_conversation_gives_its_first_answer(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog runs."}]
    path = _write(tmp_path / "a.json", [{"id": "1", "image": "a.jpg", "conversations": turns}])
    table = _table(path)
    assert "the text is the first answer of each conversation in 'conversations'" in table.notes
    (row,) = table.rows()
    assert row.text == "A dog runs."
    assert row.warnings == ["the text is the first answer of a conversation of 2 turns"]


def test_one_record_may_have_lists_of_a_picture_and_of_texts(tmp_path: Path) -> None:
    for texts, key in ((["one", "two"], "captions"), ([{"role": "assistant", "content": "one"}], "messages")):
        path = _write(tmp_path / "a.jsonl", [{"images": ["a.jpg"], key: texts}])
        (row,) = _table(path).rows()
        assert (_relative(row, path), row.text) == ("a.jpg", "one")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_of_several_captions_the_first_is_taken_with_a_warning(tmp_path: Path, name: str) -> None:
    records = [{"image": "a.jpg", "captions": ["", "one", "two"]}, {"image": "b.jpg", "captions": ["only"]}]
    table = _table(_write(tmp_path / name, records))
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
        assert _pairs(_write(tmp_path / name, records))[0][0] == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json"])
def test_numbers_that_json_does_not_have_are_nothing(tmp_path: Path, name: str) -> None:
    good = {"image": "a.jpg", "text": "t", "score": 1.0, "more": {"x": [1.0]}}
    bad = {"image": "b.jpg", "text": "t", "score": math.nan, "more": {"x": [math.inf]}}
    rows = list(_table(_write(tmp_path / name, [good, bad])).rows())
    assert json.loads(rows[0].metadata or "", parse_constant=pytest.fail) == {"score": 1.0, "more": {"x": [1.0]}}
    assert json.loads(rows[1].metadata or "", parse_constant=pytest.fail) == {"score": None, "more": {"x": [None]}}


def test_nan_is_no_text_and_no_picture(tmp_path: Path) -> None:
    text = '{"image": "a.jpg", "text": "t"}\n{"image": "b.jpg", "text": NaN}\n{"image": NaN, "text": "t"}\n'
    rows = list(_table(_write(tmp_path / "a.jsonl", text)).rows())
    assert [(row.image_uri is None, row.text, row.row_error) for row in rows[1:]] == [
        (False, None, None),
        (True, "t", None),
    ]


def test_nan_in_metadata_that_the_caller_wrote_becomes_null(tmp_path: Path) -> None:
    records = [{"image": "a.jpg", "text": "t", "metadata": '{"a": NaN, "b": "NaN"}'}]
    (row,) = _table(_write(tmp_path / "a.jsonl", records)).rows()
    assert row.metadata == '{"a": null, "b": "NaN"}'


@pytest.mark.parametrize("word", ["NA", "N/A", "nan", "NaN", "None", "null", "NULL", "<NA>", "#N/A", " NA "])
def test_words_for_nothing_are_no_text_with_a_warning(tmp_path: Path, word: str) -> None:
    path = _write(tmp_path / "a.csv", f"image,text\na.jpg,{word}\nb.jpg,none of it\n")
    rows = list(_table(path).rows())
    assert [row.text for row in rows] == [None, "none of it"]
    assert rows[0].warnings == [f"the text {word.strip()!r} is taken as no text"]


def test_spaces_around_a_path_are_stripped(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", [{"image": " a b.jpg\t", "text": " t "}])
    assert _pairs(path) == [(None, "a b.jpg", " t ")]


@pytest.mark.parametrize("name", FORMATS)
def test_embeddings_are_left_out_of_the_metadata_and_said(tmp_path: Path, name: str) -> None:
    records = [{"image": "a.jpg", "text": "t", "box": [1, 2, 3, 4], "vector": [0.125] * 768}]
    table = _table(_write(tmp_path / name, records))
    (row,) = table.rows()
    assert list(json.loads(row.metadata or "")) == ["box"]
    assert table.describe()["columns"]["left_out"] == ["vector"]
    assert any("'vector' holds long lists of numbers" in note for note in table.notes)


def test_metadata_are_bounded(tmp_path: Path) -> None:
    long = "x" * MAX_METADATA
    records = [
        {"image": "a.jpg", "text": "t", "page": long, "source": "wire"},
        {"image": "a.jpg", "text": "t", "metadata": {"page": long, "source": "wire"}},
        {"image": "a.jpg", "text": "t", "metadata": json.dumps({"page": long})},
    ]
    first, second, third = _table(_write(tmp_path / "a.jsonl", records)).rows()
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
    row = next(_table(_write(tmp_path / name, "\n".join(lines) if name == "a.csv" else [record, good])).rows())
    assert row.image_offset == expected
    assert (row.row_error is None) == (expected is not None)


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
    path = _write(tmp_path / table, [{"id": 1, "image": name, "text": "t"}, {"image": "DGM4/none/y.jpg", "text": "t"}])
    found = _table(path)
    assert next(found.rows()).image_uri == str(tmp_path / picture)
    assert "paths of pictures start at" in " ".join(found.notes)


@pytest.mark.parametrize(("table", "name"), [("data/a.json", "/origin/x.jpg"), ("data/lists/a.json", "/x.jpg")])
def test_a_path_from_the_root_of_a_site_is_found_from_a_folder(tmp_path: Path, table: str, name: str) -> None:
    picture = tmp_path / "data" / name[1:]
    for path in (tmp_path / table, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(b"x")
    found = _table(_write(tmp_path / table, [{"image": name, "text": "t"}, {"image": "/none/y.jpg", "text": "t"}]))
    assert [row.image_uri for row in found.rows()] == [str(picture), str(tmp_path / "data/none/y.jpg")]
    assert "paths of pictures start at" in " ".join(found.notes)


def test_a_path_from_the_root_is_left_as_it_is_if_it_is_there_or_found_nowhere(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    there = [{"image": name, "text": "t"} for name in (str(tmp_path / "x.jpg"), "/x.jpg")]
    table = _table(_write(tmp_path / "a.jsonl", there))
    assert [row.image_uri for row in table.rows()] == [str(tmp_path / "x.jpg"), "/x.jpg"]
    nowhere = _table(_write(tmp_path / "b.jsonl", [{"image": "/no/y.jpg", "text": "t"}]))
    assert next(nowhere.rows()).image_uri == "/no/y.jpg"
    mixed = _table(_write(tmp_path / "c.jsonl", [{"image": "x.jpg", "text": "t"}, {"image": "/x.jpg", "text": "t"}]))
    assert [row.image_uri for row in mixed.rows()] == [str(tmp_path / "x.jpg"), "/x.jpg"]


def test_different_first_folders_are_never_left_out(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    few = [{"image": name, "text": "t"} for name in ("train/1.jpg", "test/1.jpg")]
    rows = list(_table(_write(tmp_path / "a.jsonl", few)).rows())
    assert [row.image_uri for row in rows] == [str(tmp_path / "train/1.jpg"), str(tmp_path / "test/1.jpg")]
    many = [{"image": "train/1.jpg", "text": "t"}] * 300 + [{"image": "test/1.jpg", "text": "t"}]
    rows = list(_table(_write(tmp_path / "b.jsonl", many)).rows())
    assert [row.image_uri for row in rows[-2:]] == [str(tmp_path / "1.jpg"), str(tmp_path / "test/1.jpg")]


def test_the_error_of_a_row_is_bounded(tmp_path: Path) -> None:
    wide = {"n" * 3000 + str(n): n for n in range(200)}
    records = [{"image": "a.jpg", "text": "t"}, wide, {"image": "ftp://" + "a" * 5000, "text": "t"}]
    errors = [row.row_error or "" for row in _table(_write(tmp_path / "a.jsonl", records)).rows()]
    assert "and 190 more" in errors[1]
    assert max(map(len, errors)) <= 1001


def test_pictures_that_are_nowhere_are_said(tmp_path: Path) -> None:
    table = _table(_write(tmp_path / "a.jsonl", [{"image": f"{n}.jpg", "text": "t"} for n in range(20)]))
    assert table.notes == (f"none of the first 8 pictures was found at {tmp_path}",)
    assert next(table.rows()).image_uri == str(tmp_path / "0.jpg")


def test_two_pictures_of_coco_with_one_id_are_an_error_of_their_captions(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "c.jpg"}]
    captions = [{"id": number, "image_id": number, "caption": f"text {number}"} for number in (1, 2)]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [*images, images[2]], "annotations": captions}))
    first, second = understand_table(Location(str(path)), "json").rows()
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
    first, second = understand_table(Location(str(path)), "json").rows()
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
        understand_table(Location(str(path)), "json")


@pytest.mark.parametrize("place", ["upload/3/ab-1.jpg", "media/upload/3/ab-1.jpg", "images/ab-1.jpg", "ab-1.jpg"])
def test_pictures_of_label_studio_are_found_beside_its_export(tmp_path: Path, place: str) -> None:
    tasks = [{"id": number, "data": {"image": f"/data/upload/3/ab-{number}.jpg", "text": "t"}} for number in (1, 2)]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    with pytest.raises(InputNotFound, match=r"paths on the server of Label Studio, .* Copy the server's folder media/"):
        understand_table(Location(str(path)), "json")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"x")
    table = understand_table(Location(str(path)), "json")
    second = place.replace("1.jpg", "2.jpg")
    assert [row.image_uri for row in table.rows()] == [str(tmp_path / place), str(tmp_path / second)]
    assert "Label Studio" in table.notes[-1]
