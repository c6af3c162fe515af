"""Ten thousand random damages: every row is read once or is an error of its own, and no exception escapes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from asap.errors import StorageError
from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import ManifestRow, row_tables, to_table, write_manifest
from jobs.scan.input.sources import find_source
from tests.support.damages import FORMATS, ROWS, damage, records, write_pictures

CASES = 1000
"""Damages of each format."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damages")
    write_pictures(folder)
    return folder


def _check(rows: list[ManifestRow]) -> None:
    ids = [row.row_id for row in rows]
    assert len(set(ids)) == len(ids), "a row came twice"
    table = to_table(rows)  # every value has the type of its column
    for row, metadata in zip(rows, table["metadata"].to_pylist(), strict=True):
        if metadata is not None and metadata[:1] in "{[":
            json.loads(metadata, parse_constant=_no_json)
        for message in (row.row_error, *row.warnings):
            _check_message(message or "")


def _check_message(message: str) -> None:
    assert "\n" not in message, message
    assert " at 0x" not in message, message
    assert len(message) < 1500, message


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FORMATS))
def test_damaged_inputs_are_read_or_refused_in_a_sentence(name: str, folder: Path) -> None:
    draw = random.Random(name)
    refused = 0
    for number in range(CASES):
        (folder / name).write_bytes(damage(name, draw))
        try:
            rows = list(find_source(str(folder / name)).rows())
        except (InputNotFound, StorageError) as error:
            refused += 1
            _check_message(str(error))
            continue
        except Exception as error:
            raise AssertionError(f"case {number} of {name}") from error
        _check(rows)
    assert refused < CASES, "nothing was read"


@pytest.mark.slow
def test_a_damaged_line_takes_no_other_with_it(folder: Path) -> None:
    draw = random.Random(7)
    lines = [json.dumps(record).encode() for record in records()]
    for _ in range(CASES):
        position = draw.randrange(ROWS)
        broken = bytearray(lines[position])
        for _ in range(draw.randrange(1, 5)):
            broken[draw.randrange(len(broken))] = draw.choice([byte for byte in range(256) if byte not in b"\r\n"])
        damaged = [*lines[:position], bytes(broken), *lines[position + 1 :]]
        (folder / "lines.jsonl").write_bytes(b"\n".join(damaged) + b"\n")
        rows = {row.row_id: row for row in find_source(str(folder / "lines.jsonl")).rows()}
        for number, record in enumerate(records()):
            if number != position:
                assert rows[number].row_error is None
                assert (rows[number].custom_id, rows[number].text) == (record["id"], record["text"])


def test_the_undamaged_inputs_are_read_whole(folder: Path, tmp_path: Path) -> None:
    for name, write in FORMATS.items():
        (folder / name).write_bytes(write(records()))
        rows = list(find_source(str(folder / name)).rows())
        _check(rows)
        assert [row.row_error for row in rows] == [None] * ROWS, name
        assert [row.text for row in rows] == [record["text"] for record in records()], name
        assert write_manifest(row_tables(rows), Location(str(tmp_path / name))) == ROWS
