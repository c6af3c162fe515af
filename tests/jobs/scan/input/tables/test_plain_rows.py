"""Rows that are made a column at a time are those that `RowMaker` makes one by one, whatever the records hold."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError, unnamed_table
from jobs.scan.input.sources import find_source
from jobs.scan.input.tables import table as table_module
from jobs.scan.input.tables.columns import Columns
from jobs.scan.input.tables.inline import InlinePicture
from jobs.scan.input.tables.json_stream import DECODER
from jobs.scan.input.tables.record_files import Record
from jobs.scan.input.tables.rows import Base, RowMaker

NAN = float("nan")
INLINE = InlinePicture(Location("/data/a.parquet"), group=0, row=1, column="image", name="a.jpg")
TEXTS = [
    "A minister opens the bridge", "  a text with spaces  ", "", None, " \t", "NaN", "null ", "short", "['a', 'b']",
    "[x]", "a\0b and more", "half \ud83d of a pair", "naïve 😀 text", "\x1c\x1d\x1e\x1f\x85\u2003", "text\nof lines", 5,
    NAN, ["one", "two"], {"text": "inner"}, True, b"bytes", INLINE,
]  # fmt: skip
PICTURES = [
    "images/a.jpg", "a.jpg", " a.jpg", "", None, "NA", "/abs/a.jpg", "/abs//a.jpg", "/abs/../a.jpg", "../a.jpg",
    "./a.jpg", "a//b.jpg", "a/./b.jpg", "a/", "/", "..", "a/..", "...jpg", "a/.../b", "s3://bucket/key.jpg",
    "S3://bucket/key.jpg", "s3://bucket", "s3://bucket/", "s3://bucket/a//b.jpg",
    "s3://bucket/a.jpg?versionId=7", "s3://bucket/ a.jpg ",
    "http://x/a.jpg", "file:///data/a.jpg", "data:image/png;base64,AAAA", "C:\\a.jpg", "a\\b.jpg", "a:b.jpg", "~/a.jpg",
    "%41.jpg", "a\0.jpg", "half\ud83d.jpg", "drop/a.jpg", "drop/", "drop", "drop//a.jpg", "drop/drop/a.jpg", "é/😀.jpg",
    "/9j/" + "A" * 80, "images/" + "b" * 80, "a\n.jpg", "s3://bucket/a\n.jpg", 7, NAN, ["a.jpg", "b.jpg"], INLINE,
    {"path": "a.jpg"}, "s3a://b/c.jpg", "a?b.jpg", "\u2003a.jpg", "a.jpg\n",
]  # fmt: skip
IDS = ["a", "b c", "", None, "nan", " None ", 5, 0, 2**70, 2.0, 2.5, NAN, True, "a\0", "\ud83d", ["a"], INLINE]
OTHERS = [
    "bbc", 1, 2.5, None, True, NAN, [1, 2], [1], [], {"a": 1}, {"a": 1, "b": [2, 3]}, {"a": [1, 2]}, "line\nend", "%s",
    date(2024, 1, 2), float("inf"), "\ud83d", "\0", INLINE, {1: 2}, "x" * 20_000, b"bytes",
]  # fmt: skip
METADATA = ['{"a": 1}', '{"a": NaN}', "no JSON", "", None, {"a": 1}, {"a": NAN}, "[Infinity]", "a\0b", "y" * 20_000, 5]


def _agree(columns: Columns, base: Base, records: Sequence[Record]) -> None:
    maker = RowMaker(columns, base)
    numbered = [(3 * number, record) for number, record in enumerate(records)]
    one_by_one = unnamed_table([maker.row(row_id, record) for row_id, record in numbered])
    assert maker.table(numbered).to_pylist() == one_by_one.to_pylist()


BASES = [
    *(Base(Location(uri)) for uri in ("/data", "/", "s3://bucket/folder", "s3://bucket", "/data/./x")),
    Base(Location("/data"), dropped="drop"),
    Base(Location("/data"), server="/abs/"),
]
COLUMNS = Columns(image=("image",), text=("text",), id=("id",), metadata="metadata", offset="offset", length="length")


@pytest.mark.parametrize("base", BASES, ids=str)
def test_each_odd_value_alone_and_among_plain_records(base: Base) -> None:
    plain = {"id": "a", "image": "images/a.jpg", "text": "A team wins the cup", "source": "bbc"}
    odd: dict[str, list[Any]] = {"id": IDS, "image": PICTURES, "text": TEXTS, "source": OTHERS, "metadata": METADATA}
    for name, values in (odd | {"offset": [None, "", 5, NAN]}).items():
        for value in values:
            record = plain | {name: value}
            _agree(COLUMNS, base, [record])
            _agree(COLUMNS, base, [plain, record, plain])
            _agree(COLUMNS, base, [record, plain | {name: None}, record])


@pytest.mark.parametrize("seed", range(40))
def test_random_records_of_any_values(seed: int) -> None:
    chance = random.Random(seed)
    pools = {"id": IDS, "image": PICTURES, "image_uri": PICTURES, "text": TEXTS, "source": OTHERS, "metadata": METADATA}
    names = [name for name in pools if chance.random() < 0.8]
    plain: dict[str, Any] = {"id": "n", "image": "i/a.jpg", "image_uri": None, "text": "A text of words", "source": "x"}
    records: list[Record] = []
    for number in range(60):
        record = {
            name: chance.choice(pools[name]) if chance.random() < 0.1 else plain.get(name, '{"n": 1}') for name in names
        }
        if chance.random() < 0.05:
            record["more"] = 1
        records.append(RowError("broken", record) if chance.random() < 0.02 else record)
        if number == 50 and seed % 2:
            records.append(DECODER.decode('{"id": "twice", "image": "a.jpg", "image": "b.jpg", "text": "A text"}'))
    columns = Columns(
        image=("image_uri", "image"), text=("text",), id=("id",), metadata="metadata" if seed % 3 else None,
        left_out=("source",) if seed % 5 == 0 else (),
    )  # fmt: skip
    _agree(columns, chance.choice(BASES), records)


@pytest.mark.parametrize("role", ["image", "text", "id", "offset"])
def test_fields_of_objects_are_read_one_by_one(role: str) -> None:
    columns = {"image": ("image",), "text": ("text",), "id": ("id",)}
    named: Any = {role: "data.it"} if role == "offset" else {role: ("data.it",)}
    records = [
        {"image": "a.jpg", "text": "A text", "id": "a", "data": {"it": f"b{n}.jpg", "more": n}} for n in range(3)
    ]
    _agree(Columns(**(columns | named)), Base(Location("/data")), records)


@pytest.mark.parametrize("names", [["a.jpg", "b.jpg"], [None, None], ["a.jpg", None], ["", "b"], ["\ud83d", "a\0"]])
@pytest.mark.parametrize("more", [{}, {"image.path": 1}, {"metadata": '{"a": 1}'}, {"source": INLINE}])
def test_pictures_in_the_table_itself(names: list[str | None], more: dict[str, Any]) -> None:
    file = Location("/data/a.parquet")
    pictures = [
        InlinePicture(file, "v1", 0, row, "image.bytes", 7 if row else None, 9, "base64", name)
        for row, name in enumerate(names)
    ]
    records = [{"id": "a", "image": picture, "text": "A text of words", "n": 1} | more for picture in pictures]
    _agree(COLUMNS, Base(Location("/data")), records)
    _agree(COLUMNS, Base(Location("/data")), [*records, records[0] | {"image": "a.jpg"}])
    broken = InlinePicture(Location("/data/\0"), problem="it is compressed")
    _agree(COLUMNS, Base(Location("/data")), [*records, records[0] | {"image": broken}])


def test_plain_records_become_columns_without_an_object_each(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = RowMaker(Columns(image=("image",), text=("text",), id=("id",)), Base(Location("/data")))
    monkeypatch.setattr(RowMaker, "row", lambda *_: pytest.fail("a plain record was read alone"))
    record = {"id": 7, "image": "images/a.jpg", "text": "A team wins", "n": 1, "tags": ["a", "b"]}
    table = maker.table([(number, record) for number in range(5)])
    assert table["image_uri"].to_pylist() == ["/data/images/a.jpg"] * 5
    assert table["metadata"].to_pylist() == ['{"n": 1, "tags": ["a", "b"]}'] * 5


def _write_lines(path: Path, rows: int) -> Path:
    lines = [f'{{"image": "{n}.jpg", "text": "A text of line {n}"}}\n' for n in range(rows)]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("limit", [1, 4, 5, 8, 11, 99])
def test_a_limit_ends_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(table_module, "_ROWS_AT_ONCE", 4)
    source = find_source(str(_write_lines(tmp_path / "a.jsonl", 11)), limit)
    found = pa.concat_tables(source.tables())
    assert found["row_id"].to_pylist() == list(range(min(limit, 11)))


def test_what_lies_before_a_broken_place_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_ROWS_AT_ONCE", 4)
    monkeypatch.setattr(table_module, "SAMPLE", 2)
    monkeypatch.setattr(table_module, "_MOST_BAD", 2)
    for name in ("0.json", "1.json"):
        records = ", ".join(f'{{"image": "{n}.jpg", "text": "A text of record {n}"}}' for n in range(6))
        (tmp_path / name).write_text(f"[{records}, broken" if name == "0.json" else f"[{records}]")
    rows = unnamed_table(list(find_source(str(tmp_path)).rows()))
    found = pa.concat_tables(find_source(str(tmp_path)).tables())
    assert found.to_pylist() == rows.to_pylist()
    assert found.num_rows == 13
    assert "cannot be read after 6 lines" in found["row_error"][6].as_py()
    read = []
    with pytest.raises(InputNotFound, match="broken after 6 records"):
        read.extend(find_source(str(tmp_path / "0.json")).tables())
    assert [table.num_rows for table in read] == [] or sum(table.num_rows for table in read) == 6


@pytest.mark.parametrize("depth", [500, 900])
def test_metadata_that_are_nested_too_deep_are_an_error_of_their_row(depth: int) -> None:
    nested: Any = NAN
    for _ in range(depth):
        nested = [nested]
    records = [{"id": "a", "image": "a.jpg", "text": "A text", "metadata": {"a": value}} for value in (1, nested)]
    maker = RowMaker(
        Columns(image=("image",), text=("text",), id=("id",), metadata="metadata"), Base(Location("/data"))
    )
    found = maker.table(list(enumerate(records)))
    assert found.to_pylist() == unnamed_table([maker.row(n, record) for n, record in enumerate(records)]).to_pylist()
    assert found["row_error"][0].as_py() is None


def test_long_records_become_rows_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_WEIGHT_AT_ONCE", 1000)
    lines = [
        json.dumps({"image": f"{n}.jpg", "text": "A text", "vectors": [[0.5] * 90] * 5})
        for n in range(table_module.SAMPLE)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    tables = list(find_source(str(tmp_path / "a.jsonl")).tables())
    assert max(table.num_rows for table in tables) <= 3
    assert sum(table.num_rows for table in tables) == table_module.SAMPLE
