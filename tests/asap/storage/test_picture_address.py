"""Tests of the addresses of pictures, and of texts in base64."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import DecodeFailed, FetchFailed, ImageTooLarge
from asap.storage.fetch import ByteRange, FetchSettings
from asap.storage.picture_address import PictureAddress, PictureReader, decode_base64

DATA = random.Random(0).randbytes(1000)
TEXT = base64.b64encode(DATA)


@pytest.mark.parametrize(
    "text",
    [
        TEXT, b" " + TEXT + b"\r\n", base64.encodebytes(DATA), TEXT.replace(b"/", b"\\/"),
        TEXT.rstrip(b"="), base64.urlsafe_b64encode(DATA), b"data:image/jpeg;base64," + TEXT,
        b"DATA:image/png;charset=utf-8;base64,\n" + TEXT, b"data:;base64," + TEXT,
        json.dumps(base64.encodebytes(DATA).decode())[1:-1].encode(), TEXT.replace(b"+", b"\\u002B"),
        TEXT.replace(b"=", b"\\u003d"),
    ],
)  # fmt: skip
def test_a_text_in_base64_stands_for_its_bytes_however_it_is_written(text: bytes) -> None:
    assert decode_base64(text, 1000) == DATA


@pytest.mark.parametrize(
    "text",
    [
        b"?" + TEXT,
        TEXT[:1],
        b"caf\xc3\xa9",
        b"data:image/png," + TEXT,
        TEXT[:9] + b"\\x" + TEXT[9:],
        b"\\u20ac",
        b"a=b=",
    ],
)
def test_a_text_that_is_not_base64_is_refused_and_hardly_quoted(text: bytes) -> None:
    with pytest.raises(DecodeFailed, match="is a text that is not base64") as caught:
        decode_base64(text, 2000)
    assert len(str(caught.value)) < 200


def test_a_picture_in_base64_above_the_limit_is_not_decoded() -> None:
    with pytest.raises(ImageTooLarge, match="has 1000 bytes, the limit is 999"):
        decode_base64(TEXT, 999)


def test_each_kind_of_address_gives_the_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(DATA)
    line = b'{"image": "' + TEXT + b'"}'
    (tmp_path / "a.jsonl").write_bytes(line)
    pq.write_table(pa.table({"image": [b"other", DATA]}), tmp_path / "a.parquet")
    rows = [
        {"image_uri": str(tmp_path / "a.jpg")},  # of an earlier version
        {"image_uri": str(tmp_path / "a.jpg"), "image_offset": 0, "image_length": 1000, "image_group": None},
        {"image_uri": str(tmp_path / "a.jsonl"), "image_offset": 11, "image_length": len(TEXT),
         "image_encoding": "base64"},
        {"image_uri": str(tmp_path / "a.parquet"), "image_group": 0, "image_row": 1, "image_column": "image"},
    ]  # fmt: skip
    reader = PictureReader(FetchSettings())
    assert [reader.fetch(PictureAddress.of_row(row), 1000).data for row in rows] == [DATA] * 4
    folder = str(tmp_path)
    assert [str(PictureAddress.of_row(row)).removeprefix(folder) for row in rows] == [
        "/a.jpg", "/a.jpg, 1000 bytes from 0", f"/a.jsonl, {len(TEXT)} bytes from 11",
        "/a.parquet, row group 0, row 1, image",
    ]  # fmt: skip


def test_a_table_that_could_not_be_read_is_opened_again_for_the_next_batch(tmp_path: Path) -> None:
    address = PictureAddress(str(tmp_path / "a.parquet"), group=0, row=0, column="image")
    reader = PictureReader(FetchSettings())
    with pytest.raises(FetchFailed):
        reader.fetch(address, 1000)
    pq.write_table(pa.table({"image": [DATA]}), tmp_path / "a.parquet")
    with pytest.raises(FetchFailed):
        reader.fetch(address, 1000)
    reader.look_again()
    assert reader.fetch(address, 1000).data == DATA
    pq.write_table(
        pa.table({"image": [DATA[::-1]], "text": ["new"]}), tmp_path / "a.parquet"
    )  # a row without a version
    reader.look_again()
    assert reader.fetch(address, 1000).data == DATA[::-1]


def test_a_range_of_base64_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x" * 5000)
    address = PictureAddress(str(tmp_path / "a.csv"), ByteRange(0, 5000), "base64")
    with pytest.raises(ImageTooLarge):
        PictureReader(FetchSettings()).fetch(address, 1000)
