"""Tests of pictures inside tables: every row has the address of its picture, and the driver reads none."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import FetchFailed
from asap.storage import fetched_file
from asap.storage.fetch import FetchSettings
from asap.storage.files import file_info, write_bytes
from asap.storage.location import Location
from asap.storage.picture_address import PictureAddress, PictureReader
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.tables import record_files
from jobs.scan.input.tables.encoding import Encoding
from jobs.scan.input.tables.inline import TextPictures, looks_like_base64, starts_with_pictures
from jobs.scan.input.tables.table import TableOptions, understand_table


@pytest.fixture
def pictures(jpeg: Callable[..., bytes]) -> list[bytes]:
    """Return six pictures."""
    return [jpeg(number) for number in range(6)]


def _rows(path: Path | str, **options: Any) -> list[ManifestRow]:
    info = file_info(Location(str(path)))
    assert info is not None
    file = record_files.record_file(info.location.name)
    assert file is not None
    return list(understand_table(info, file.kind, TableOptions(**options)).rows())


def _read(rows: list[ManifestRow]) -> list[bytes]:
    reader = PictureReader(FetchSettings())
    return [reader.fetch(PictureAddress.of_row(vars(row)), 10**7).data for row in rows]


def _write(folder: Path, column: pa.Array, name: str = "image", **others: Any) -> Path:
    table = pa.table({name: column, "caption": [f"text {row}" for row in range(len(column))]} | others)
    pq.write_table(table, folder / "a.parquet", row_group_size=4)
    return folder / "a.parquet"


def _columns(pictures: list[bytes]) -> dict[str, tuple[pa.Array, str]]:
    structs = [{"bytes": picture, "path": f"{row}.jpg"} for row, picture in enumerate(pictures)]
    return {
        "struct": (pa.array(structs), "image.bytes"),
        "binary": (pa.array(pictures), "image"),
        "large binary": (pa.array(pictures, pa.large_binary()), "image"),
        "list of structs": (pa.array([[struct, structs[0]] for struct in structs]), "image.list.element.bytes"),
        "list of binary": (pa.array([[picture] for picture in pictures]), "image.list.element"),
    }


@pytest.mark.parametrize("kind", ["struct", "binary", "large binary", "list of structs", "list of binary"])
def test_pictures_in_a_parquet_column_are_addressed_by_row_group_and_row(
    tmp_path: Path, pictures: list[bytes], kind: str
) -> None:
    column, leaf = _columns(pictures)[kind]
    rows = _rows(_write(tmp_path, column))
    assert [(row.image_group, row.image_row) for row in rows] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert {row.image_column for row in rows} == {leaf}
    assert [row.text for row in rows] == [f"text {row}" for row in range(6)]
    assert [row.row_error for row in rows] == [None] * 6
    assert _read(rows) == pictures


def test_bytes_of_a_fixed_size_are_pictures(tmp_path: Path) -> None:
    column = pa.array([b"\xff" + bytes([row]) * 99 for row in range(6)], pa.binary(100))
    rows = _rows(_write(tmp_path, column, "jpg"))
    assert _read(rows) == column.to_pylist()


def test_the_driver_reads_no_picture(tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    large = [picture + random.Random(0).randbytes(500_000) for picture in pictures]
    path = _write(tmp_path, _columns(large)["struct"][0])
    data = path.read_bytes()
    read = 0
    real = fetched_file.FetchedFile._fetch_block

    def count(file: Any) -> None:
        nonlocal read
        real(file)
        read += len(file._block)

    monkeypatch.setattr(fetched_file.FetchedFile, "_fetch_block", count)
    monkeypatch.setattr(fetched_file, "_FIRST_BLOCK", 1024)
    monkeypatch.setattr(fetched_file, "_BLOCK", 1024)
    assert len(_rows(path)) == 6
    assert read < len(data) / 10


def test_a_row_without_bytes_has_the_path_beside_them_or_no_picture(tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "b.jpg").write_bytes(pictures[5])
    images: list[Any] = [{"bytes": picture, "path": f"{row}.jpg"} for row, picture in enumerate(pictures)]
    images[1] = {"bytes": None, "path": "b.jpg"}
    images[2] = None
    images[4] = images[5] = {"bytes": None, "path": "b.jpg"}
    rows = _rows(_write(tmp_path, pa.array(images)))
    assert [row.image_group for row in rows] == [0, None, None, 0, None, None]
    assert [row.image_uri for row in rows][1:3] == [str(tmp_path / "b.jpg"), None]
    assert _read([rows[0], rows[1], rows[3], rows[4]]) == [pictures[0], pictures[5], pictures[3], pictures[5]]
    assert json.loads(rows[0].metadata or "") == {"image.path": "0.jpg"}


def test_other_columns_of_bytes_are_neither_read_nor_metadata(tmp_path: Path, pictures: list[bytes]) -> None:
    path = _write(tmp_path, pa.array(pictures), hash=pa.array([b"\xff" * 8] * 6), source=pa.array(["wire"] * 6))
    rows = _rows(path)
    assert [row.metadata for row in rows] == ['{"source": "wire"}'] * 6
    assert _read(rows) == pictures


@pytest.mark.parametrize("name", ["jpg", "image_bytes", "IMG", "content"])
def test_the_column_of_pictures_is_found_by_its_name_or_as_the_only_one(
    tmp_path: Path, pictures: list[bytes], name: str
) -> None:
    path = _write(tmp_path, pa.array(pictures), name, url=pa.array([f"https://a.b/{row}.jpg" for row in range(6)]))
    assert _read(_rows(path)) == pictures


def test_two_columns_that_could_be_the_picture_are_refused_and_one_may_be_named(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    path = _write(tmp_path, pa.array(pictures), "front_jpg", back_jpg=pa.array(pictures[::-1]))
    with pytest.raises(InputNotFound, match="'front_jpg', 'back_jpg', and each could be the picture"):
        _rows(path)
    assert _read(_rows(path, image_column="back_jpg")) == pictures[::-1]


def test_a_parquet_object_gives_its_etag_as_version(bucket: str, tmp_path: Path, pictures: list[bytes]) -> None:
    data = _write(tmp_path, pa.array(pictures)).read_bytes()
    write_bytes(Location(f"s3://{bucket}/a.parquet"), data)
    rows = _rows(f"s3://{bucket}/a.parquet")
    assert rows[0].image_version
    assert rows[0].image_uri == f"s3://{bucket}/a.parquet"
    assert _read(rows) == pictures


def _texts(pictures: list[bytes]) -> list[str]:
    """Return the pictures in base64, each written in another way."""
    plain = [base64.b64encode(picture).decode() for picture in pictures]
    return [
        plain[0], f"data:image/jpeg;base64,{plain[1]}", base64.encodebytes(pictures[2]).decode(), plain[3].rstrip("="),
        base64.urlsafe_b64encode(pictures[4]).decode(), f" {plain[5]}\r\n",
    ]  # fmt: skip


@pytest.mark.parametrize("write", [json.dumps, lambda record: json.dumps(record).replace("/", r"\/")])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_pictures_in_base64_in_json_lines_are_byte_ranges(
    tmp_path: Path, pictures: list[bytes], write: Callable[[Any], str], mark: bytes
) -> None:
    records: list[Any] = [
        {"id": row, "caption": 'a "quoted" café \\', "image": text} for row, text in enumerate(_texts(pictures))
    ]
    records.insert(3, {"id": "path", "caption": "x", "image": "a.jpg"})
    records.insert(4, {"id": "none", "caption": "x"})
    records[5]["image"] = [records[5]["image"]]
    records[6]["image"] = {"bytes": records[6]["image"], "path": None}
    lines = "\r\n".join([*map(write, records[:2]), "", *map(write, records[2:])])
    (tmp_path / "a.jsonl").write_bytes(mark + lines.encode())
    rows = _rows(tmp_path / "a.jsonl")
    assert [row.row_error for row in rows] == [None] * 8
    inline = [row for row in rows if row.image_encoding]
    assert [row.custom_id for row in inline] == [str(number) for number in range(6)]
    assert _read(inline) == pictures
    assert [row.image_uri for row in rows][3:5] == [str(tmp_path / "a.jpg"), None]
    assert max(len(row.metadata or "") for row in rows) < 100


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_pictures_in_base64_in_csv_are_byte_ranges(tmp_path: Path, pictures: list[bytes], delimiter: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(["id", "image", "text"])
    for row, text in enumerate(_texts(pictures)):
        writer.writerow([row, text, 'a "quoted" café\nof two lines'])
        writer.writerow([f"{row}b", "a.jpg", "x"])
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())
    rows = _rows(tmp_path / "a.csv")
    inline = [row for row in rows if row.image_encoding]
    assert [row.custom_id for row in inline] == [str(number) for number in range(6)]
    assert _read(inline) == pictures
    assert [row.row_error for row in rows] == [None] * 12


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize("change", [lambda data: b" " * 9 + data, lambda data: data[:20]])
def test_a_text_file_that_changed_since_it_was_listed_gives_no_picture(
    tmp_path: Path, bucket: str, pictures: list[bytes], name: str, change: Callable[[bytes], bytes]
) -> None:
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    lines = [json.dumps({"image": text, "text": "t"}) for text in texts]
    data = "\n".join(["image,text", *(f"{text},t" for text in texts)] if name == "a.csv" else lines).encode()
    for folder in (str(tmp_path), f"s3://{bucket}"):
        location = Location(f"{folder}/{name}")
        write_bytes(location, data)
        rows = _rows(location.uri)
        assert _read(rows) == pictures
        write_bytes(location, change(data))
        with pytest.raises(FetchFailed, match="changed since it was listed") as caught:
            _read(rows)
        assert (caught.value.code, caught.value.retryable) == ("storage_error", False)


def test_lines_with_pictures_may_be_long_and_longer_ones_are_errors(
    tmp_path: Path, jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.scan.input.tables.text_reader.LONG_RECORD_BYTES", 3 * 2**20)
    pictures = [jpeg(0), jpeg(1) + b"\0" * 2**21, jpeg(2) + b"\0" * 2**22, jpeg(3)]
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    lines = [json.dumps({"id": row, "image": text, "text": "x"}) for row, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.csv").write_text("id,image,text\n" + "".join(f"{row},{text},x\n" for row, text in enumerate(texts)))
    for name in ("a.jsonl", "a.csv"):
        rows = _rows(tmp_path / name)
        assert [row.row_error for row in rows] == [None, None, f"the line is longer than {3 * 2**20} bytes", None]
        assert _read([rows[0], rows[1], rows[3]]) == [pictures[0], pictures[1], pictures[3]]


def test_pictures_in_base64_that_have_no_byte_range_are_refused_before_work(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    records = [{"image": base64.b64encode(picture).decode(), "text": "café"} for picture in pictures]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe" + lines.encode("utf-16-le"))
    (tmp_path / "c.json").write_text(json.dumps(records))
    (tmp_path / "d.json").write_text(json.dumps({"data": records}))
    (tmp_path / "e.json").write_text(json.dumps(records, indent=1))
    for name, reason in {
        "a.jsonl.gz": "compressed (.gz). Decompress it.",
        "b.jsonl": "its encoding is utf-16-le. Write it as UTF-8.",
        "c.json": "Write each record on a line of its own",
        "d.json": "Write each record on a line of its own",
        "e.json": "Write each record on a line of its own",
    }.items():
        with pytest.raises(InputNotFound, match=re.escape(reason)) as caught:
            _rows(tmp_path / name)
        assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_no_message_quotes_a_long_picture(tmp_path: Path, pictures: list[bytes]) -> None:
    text = base64.b64encode(pictures[0]).decode()
    lines = [
        json.dumps({"image": "a.jpg", "text": "x" * 2**19}), json.dumps({"image": text, "text": "x"}),
        json.dumps({"image": f"data:image/svg+xml,{text}", "text": "x"}), json.dumps({"image": text, "text": "x"})[:-9],
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = _rows(tmp_path / "a.jsonl")
    errors = [row.row_error or "" for row in rows]
    assert [bool(error) for error in errors] == [False, True, True, True]
    assert not [error for error in errors if re.search(r"[A-Za-z0-9+/=]{41}", error)]


def test_a_text_that_is_no_picture_is_not_taken_for_one() -> None:
    for text in ("a.jpg", "x" * 5000, "9" * 5000, "/9j/photos/of/the/year/2024/" + "a" * 80 + ".jpg",
                 "Qk" + "a" * 100, "data:text/plain,hello" + "o" * 100, "https://a.b/" + "c" * 100):  # fmt: skip
        assert not looks_like_base64(text)


def test_a_long_text_that_is_almost_base64_is_no_picture() -> None:
    beginning = "iVBORw0KGgo"
    for text in (f"{beginning}{' ' * 300_000}!", f"{beginning}{'=' * 300_000}!", f"{beginning}a{'= ' * 300_000}"):
        assert not looks_like_base64(text)
    assert looks_like_base64(beginning + " " * 300_000)


@pytest.mark.parametrize("filler", ["\n", "\t", ",", "data:", '" '])
def test_a_beginning_of_blank_lines_holds_no_picture(tmp_path: Path, filler: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(filler * 200_000 + json.dumps({"image": "a.jpg", "text": "x"}))
    assert not starts_with_pictures(Location(str(path)), Encoding("utf-8"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_record_of_many_pictures_has_an_address_of_each(tmp_path: Path, name: str) -> None:
    texts = [base64.b64encode(b"\xff\xd8\xff" + bytes([row % 256, row // 256]) * 30).decode() for row in range(4000)]
    others = {f"more {row}": text for row, text in enumerate(texts)}
    record = {"image": "a.jpg", "text": "x"} | others
    if name == "a.jsonl":
        (tmp_path / name).write_text(json.dumps(record))
        raw = json.dumps(record).encode()
    else:
        raw = ",".join(texts).encode()
    found = TextPictures(Location(str(tmp_path / name))).replace(others, raw, 0, is_json=name == "a.jsonl")
    assert [raw[one.offset : one.offset + one.length].decode() for one in found.values()] == texts
