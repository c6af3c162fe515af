"""Tests of Parquet files as people have them."""

import base64
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.scan.input.tables import parquet_records
from tests.support.tables import read_table, refusal_of, write_table


def test_few_long_rows_of_parquet_are_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    records = [{"image": "a.jpg", "text": f"{n}" * 2**20} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(records), path, use_dictionary=False)
    file = pq.ParquetFile(path)
    assert parquet_records._rows_at_once(file, ["image", "text"]) == 63
    assert parquet_records._rows_at_once(file, ["image"]) == 1024
    assert len(list(read_table(path).rows())) == 9


def test_texts_of_parquet_that_are_bytes_of_another_encoding_are_refused(tmp_path: Path) -> None:
    message = refusal_of(write_table(tmp_path / "a.parquet", [{"image": "a.jpg", "text": b"caf\xe9"}]))
    assert "in the column 'text', are bytes that are not UTF-8" in message
    assert "InlinePicture" not in message


def test_pictures_in_base64_in_parquet_are_refused_with_advice(tmp_path: Path) -> None:
    picture = base64.b64encode(b"\xff\xd8\xff" + b"a" * 99).decode()
    message = refusal_of(write_table(tmp_path / "a.parquet", [{"image": picture, "text": "t"}]))
    assert "Decode them into a column of bytes" in message
    assert picture not in message
