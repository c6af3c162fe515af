"""Result rows as JSON lines: metadata as the caller gave it, and JSON that every reader takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from asap.job_records.json_rows import json_lines, read_metadata, row_json
from asap.storage.location import Location
from jobs.scan.output.parts import write_lists
from tests.support.job_folders import failed, scored, write_scan


def _strictly(line: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    fields: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return fields


@pytest.mark.parametrize(
    ("metadata", "value"),
    [
        ('{"source": "wire", "n": [1, 2.5, null], "ключ": "é"}', {"source": "wire", "n": [1, 2.5, None], "ключ": "é"}),
        ('  [{"a": {}}]\n', [{"a": {}}]),
        ("{}", {}),
        ('{"id": 123456789012345678901234567890}', {"id": 123456789012345678901234567890}),
        (r'{"nul": "a\u0000b", "pair": "\ud83d\ude00"}', {"nul": "a\0b", "pair": "😀"}),
    ],
)
def test_metadata_that_is_an_object_or_array_becomes_one(metadata: str, value: Any) -> None:
    assert read_metadata(metadata) == value
    assert _strictly(row_json({"metadata": metadata})) == {"metadata": value}


@pytest.mark.parametrize(
    "metadata",
    [
        "wire",
        "",
        "{broken",
        '"a string"',
        "5",
        "null",
        "NaN",
        '{"score": NaN}',
        "[Infinity]",
        '{"far": 1e999}',
        '{"a": 1, "a": 2}',
        r'{"half": "\ud83d"}',
        "[" * 100_000 + "]" * 100_000,
        '{"digits": ' + "9" * 5000 + "}",
    ],
)
def test_metadata_that_json_could_not_say_the_same_stays_a_string(metadata: str) -> None:
    assert read_metadata(metadata) == metadata
    assert _strictly(row_json({"row_id": 1, "metadata": metadata})) == {"row_id": 1, "metadata": metadata}


def test_a_flat_row_keeps_the_string() -> None:
    assert _strictly(row_json({"metadata": '{"a": 1}'}, is_flat=True)) == {"metadata": '{"a": 1}'}


def test_a_number_that_json_has_no_form_for_is_null() -> None:
    nan, infinite = float("nan"), float("inf")
    row = {
        "score": nan,
        "types": {"face_swap": infinite, "text_swap": 0.5},
        "words": [{"word": "a", "score": -infinite}],
    }
    assert _strictly(row_json(row)) == {
        "score": None,
        "types": {"face_swap": None, "text_swap": 0.5},
        "words": [{"word": "a", "score": None}],
    }


def test_a_row_is_one_line_for_every_reader() -> None:
    text = "one\ntwo\r\x0b\x0c\x1c\x85\u2028\u2029 end"
    line = row_json({"text": text, "metadata": json.dumps({"note": text}, ensure_ascii=False)})
    assert len(line.decode().splitlines()) == 1
    assert _strictly(line) == {"text": text, "metadata": {"note": text}}


def test_many_rows_have_the_lines_that_each_of_them_has_alone() -> None:
    nan = float("nan")
    whole = {
        "row_id": 2**62, "text": 'a "quoted"\ttext\nof\u2028 lines é 😀', "score": 0.1, "flag": True,
        "tags": ["a", None], "types": {"a%s": 1e-7, "b": None}, "words": [{"word": "x\x85", "score": 1e22}, None],
        "metadata": '{"a": 1.0}',
    }  # fmt: skip
    rows = [
        whole,
        {"row_id": 0},
        {"row_id": -1, "score": nan, "types": {"a%s": nan, "b": 1.0}, "words": [], "tags": []},
        whole | {"metadata": "no JSON", "words": [{"word": None, "score": nan}], "flag": False, "score": -0.0},
    ]
    kinds = pa.schema(
        [
            ("row_id", pa.int64()), ("text", pa.string()), ("score", pa.float32()), ("flag", pa.bool_()),
            ("tags", pa.list_(pa.string())), ("types", pa.struct([("a%s", pa.float32()), ("b", pa.float64())])),
            ("words", pa.list_(pa.struct([("word", pa.string()), ("score", pa.float32())]))),
            ("metadata", pa.string()), ("nothing", pa.string()),
        ]
    )  # fmt: skip
    table = pa.Table.from_pylist(rows, kinds)
    table = pa.concat_tables([table, table.slice(1, 2), table.slice(0, 1)])  # with chunks, offsets and a repetition
    alone = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    assert json_lines(table) == b"".join(row_json(row) + b"\n" for row in alone)
    assert json_lines(table.slice(1, 1).drop_columns(["row_id"])) == b"{}\n"
    assert json_lines(table.slice(0, 0)) == b""


def test_the_lists_of_a_scan_have_metadata_as_an_object(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    metadata = {"metadata": '{"source": "wire", "tags": ["a"]}'}
    rows = [
        scored(0, 0.75, "manipulated", "face_swap", **metadata, word_scores=[0.5]),
        scored(1, 0.75, "unfamiliar", **metadata),
        failed(2, "throttled", retryable=True) | metadata | {"given_id": "mine"},
        failed(3, "throttled", retryable=True) | {"metadata": "no JSON"},
    ]
    write_scan(folder, rows)
    write_lists(folder)
    for name, row_ids in (("flagged", [0]), ("unfamiliar", [1]), ("errors", [2, 3])):
        lines = [_strictly(line) for line in (tmp_path / f"{name}.jsonl").read_bytes().splitlines()]
        assert [line["row_id"] for line in lines] == row_ids
        assert lines[0]["metadata"] == {"source": "wire", "tags": ["a"]}
    assert lines[0]["given_id"] == "mine"
    assert lines[1]["metadata"] == "no JSON"
    frame = pd.read_json(tmp_path / "flagged.jsonl", lines=True)
    assert frame["metadata"][0]["source"] == "wire"
    flagged = duckdb.read_json(f"{tmp_path}/flagged.jsonl")
    assert flagged.project("metadata.source, metadata.tags[1]").fetchall() == [("wire", "a")]
