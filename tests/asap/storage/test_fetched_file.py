"""Tests of files that are read a block at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.errors import FetchFailed
from asap.storage import fetched_file
from asap.storage.fetch import FetchSettings
from asap.storage.fetched_file import FetchedFile
from asap.storage.parquet_values import ColumnReader

SETTINGS = FetchSettings(attempts=2, read_timeout_s=5)
LIMIT = 2**20


def test_bytes_are_read_at_any_offset_and_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched_file, "_FIRST_BLOCK", 7)
    monkeypatch.setattr(fetched_file, "_BLOCK", 100)
    data = random.Random(0).randbytes(1000)
    (tmp_path / "a").write_bytes(data)
    file = FetchedFile(str(tmp_path / "a"), SETTINGS, None)
    draw = random.Random(1)
    for _ in range(200):
        start, size = draw.randrange(1000), draw.randrange(300)
        assert file.seek(start) == start
        assert file.read(size) == data[start : start + size]
        assert file.tell() == min(1000, start + size)


def test_a_file_that_was_listed_with_another_version_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    version = FetchedFile(str(tmp_path / "a"), SETTINGS, None).version
    assert not FetchedFile(str(tmp_path / "a"), SETTINGS, version).has_changed()
    (tmp_path / "a").write_bytes(b"22")
    with pytest.raises(FetchFailed, match="changed since it was listed") as caught:
        FetchedFile(str(tmp_path / "a"), SETTINGS, version)
    assert not caught.value.retryable


def test_a_table_that_becomes_shorter_while_it_is_read_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [bytes([row]) * 300_000 for row in range(9)]}), path, compression="none")
    reader = ColumnReader(str(path), 0, "image", SETTINGS)
    reader.read(0, LIMIT)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FetchFailed, match="changed while it was read"):
        reader.read(8, LIMIT)


def test_a_table_that_changes_while_it_is_read_is_not_mixed_with_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = [random.Random(row).randbytes(300_000) for row in range(30)]
    pq.write_table(pa.table({"image": values}), path, use_dictionary=False)
    reader = ColumnReader(str(path), 0, "image", SETTINGS)
    assert reader.read(0, LIMIT).data == values[0]
    pq.write_table(pa.table({"image": [b"x" * 300_000] * 30}), path, use_dictionary=False, compression="none")
    with pytest.raises(FetchFailed, match="changed while it was read") as caught:
        reader.read(29, LIMIT)
    assert caught.value.retryable
