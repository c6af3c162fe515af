from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from asap.errors import StorageError
from asap.storage.location import Location
from jobs.scan.input import manifest
from jobs.scan.input.manifest import (
    MANIFEST_SCHEMA,
    ManifestRow,
    SeenIds,
    readable_text,
    row_tables,
    storable,
    write_manifest,
    write_tables,
)


def _rows(count: int) -> list[ManifestRow]:
    return [ManifestRow(row_id=number, custom_id=f"id-{number}", text="a text") for number in range(count)]


def _written(folder: Path) -> list[dict[str, object]]:
    return [row for file in sorted(folder.iterdir()) for row in pq.read_table(file).to_pylist()]


def test_every_row_is_written_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_ROWS_PER_GROUP", 4)
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 8)
    assert write_manifest(row_tables(_rows(21)), Location(str(tmp_path))) == 21
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert [row["row_id"] for row in _written(tmp_path)] == list(range(21))


def test_files_have_the_declared_schema_even_if_columns_are_null(tmp_path: Path) -> None:
    write_manifest(row_tables(_rows(1)), Location(str(tmp_path)))
    assert pq.read_schema(tmp_path / "00000.parquet").equals(MANIFEST_SCHEMA)


def test_a_row_with_a_repeated_id_gets_a_unique_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_ROWS_PER_GROUP", 2)
    names = ["a", "b", "a", "c", "c", "a#2", "d", "d", "d#7", "d#10", "d"]
    rows = [ManifestRow(row_id=number, custom_id=name) for number, name in enumerate(names)]
    write_manifest(row_tables(rows), Location(str(tmp_path)))
    written = _written(tmp_path)
    called = [str(row["custom_id"]) for row in written]
    assert called == ["a", "b", "a#2", "c", "c#4", "a#2#5", "d", "d#7", "d#7#8", "d#10", "d#10#"]
    assert [row["row_error"] for row in written] == [None] * len(names)
    assert [row["given_id"] for row in written if row["given_id"]] == ["a", "c", "a#2", "d", "d#7", "d"]
    assert written[2]["warnings"] == ["custom_id 'a' was used by an earlier row; this one is called 'a#2'"]


def test_unstorable_characters_are_escaped_with_a_warning(tmp_path: Path) -> None:
    rows = [
        ManifestRow(row_id=0, custom_id="a\ud800", text="x\udc00y\0z"),
        ManifestRow(row_id=1, custom_id="b", text="naïve 😀 text", metadata='{"a": "\ud83d"}'),
    ]
    write_manifest(row_tables(rows), Location(str(tmp_path)))
    first, second = _written(tmp_path)
    assert (first["text"], first["text_escapes"]) == (r"x\udc00y\u0000z", [1, 3])
    assert first["custom_id"] == r"a\ud800"
    assert len(first["warnings"]) == 1  # type: ignore[arg-type]
    assert (second["text"], second["text_escapes"]) == ("naïve 😀 text", None)
    assert second["warnings"] == []


def test_a_row_without_a_name_gets_one_that_no_caller_uses(tmp_path: Path) -> None:
    names = [None, "0", "1", None, "#5", None]
    rows = [ManifestRow(row_id=number, custom_id=name) for number, name in enumerate(names)]
    write_manifest(row_tables(rows), Location(str(tmp_path)))
    written = _written(tmp_path)
    assert [row["custom_id"] for row in written] == ["#0", "0", "1", "#3", "#5", "#5#"]
    assert [(row["given_id"], row["warnings"]) for row in written] == [(None, [])] * 6


@pytest.mark.parametrize("text", ["", "\0", "a\0b\ud800", "\udfff\0x \\u0000 😀\0", r"\u0000 as it was written"])
def test_a_stored_text_is_read_back_character_for_character(tmp_path: Path, text: str) -> None:
    write_manifest(row_tables([ManifestRow(row_id=0, custom_id="a", text=text)]), Location(str(tmp_path)))
    (row,) = _written(tmp_path)
    read = readable_text(row["text"], row["text_escapes"])  # type: ignore[arg-type]
    assert read == text.replace("\0", "\ufffd").replace("\ud800", "\ufffd").replace("\udfff", "\ufffd")


def test_storable_changes_nothing_else() -> None:
    text = "tab\t newline\n accents é emoji 😀 \u200f right \x7f"
    assert storable(text) == text


def test_seen_ids_agree_with_a_set_over_many_calls() -> None:
    generator = np.random.default_rng(0)
    seen, known = SeenIds(), set[str]()
    for _ in range(50):
        ids = [f"n{number}" for number in generator.integers(0, 2000, generator.integers(1, 60))]
        expected = []
        for name in ids:
            expected.append(name in known)
            known.add(name)
        assert seen.repeated(ids).tolist() == expected


def test_seen_ids_keep_few_runs() -> None:
    seen = SeenIds()
    for start in range(0, 10_000, 100):
        seen.repeated([str(number) for number in range(start, start + 100)])
    assert max(map(len, seen._runs)) < 10
    assert sum(len(run) for runs in seen._runs for run in runs) == 10_000
    assert seen.repeated([str(number) for number in range(10_001)]).tolist() == [True] * 10_000 + [False]


def test_a_manifest_of_an_earlier_version_gets_the_columns_that_it_lacks(tmp_path: Path) -> None:
    write_manifest(row_tables(_rows(3)), Location(str(tmp_path / "a")))
    table = pq.read_table(tmp_path / "a/00000.parquet").drop_columns(["text_uri", "given_id"])
    assert write_tables([table.slice(0, 2), table.slice(2)], Location(str(tmp_path / "b"))) == 3
    assert _written(tmp_path / "b") == _written(tmp_path / "a")
    assert pq.read_schema(tmp_path / "b/00000.parquet").equals(MANIFEST_SCHEMA)


def test_a_disk_that_is_full_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_ROWS_PER_GROUP", 4)
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 8)
    (tmp_path / "00001.parquet").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=rf"^{tmp_path}/00001\.parquet cannot be written: the disk is full"):
        write_manifest(row_tables(_rows(20)), Location(str(tmp_path)))
