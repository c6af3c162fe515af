"""Result rows as JSON, JSON lines, CSV or Parquet, written as they come.

A CSV is opened in spreadsheets, which run a text as a formula if it begins like one. Texts of a corpus come from
strangers, so such a cell gets an apostrophe in front.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from asap.errors import ConfigError, printable
from asap.job_records.json_rows import row_json

FORMATS = ("table", "json", "jsonl", "csv", "parquet")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Beginnings of a formula, also those of full width, which some spreadsheets read alike."""
Stream = BinaryIO | io.RawIOBase
"""A stream that takes bytes."""


def choose_format(given: str | None, to: str | None, *, in_terminal: bool, as_json: bool) -> str:
    """Return the format of rows. Raises `ConfigError` for one that is unknown or does not fit.

    Args:
        given: The format that was asked for; None to choose one.
        to: The file to write; None for the standard output.
        in_terminal: True if the standard output is a terminal.
        as_json: True if the standard output must be one JSON document.
    """
    if given is not None and given not in FORMATS:
        raise ConfigError(f"there is no format {given!r}. Choose from {', '.join(FORMATS)}.")
    if to is not None:
        chosen = given or to.rpartition(".")[2]
        if chosen not in FORMATS or chosen == "table":
            raise ConfigError(f"the format of {to} is not known. Give --format {', '.join(FORMATS[1:])}.")
        return chosen
    if as_json and given not in (None, "json"):
        raise ConfigError(f"--json and --format {given} contradict each other. Give one of them, or --to FILE.")
    if given == "parquet":
        raise ConfigError("a Parquet file cannot be printed. Give --to FILE.")
    return given or ("json" if as_json else "table" if in_terminal else "jsonl")


def write_rows(
    kind: str, stream: Stream, schema: pa.Schema, tables: Iterable[pa.Table], *, is_flat: bool = False
) -> int:
    """Write tables of a schema to a stream, and return the number of rows.

    Args:
        kind: `json` (one array), `jsonl`, `csv` or `parquet`.
        stream: Receives the bytes.
        schema: The columns of all tables.
        tables: The rows.
        is_flat: True for the rows of `jobs.control.flat_rows`. In JSON, their metadata stay a string. Their CSV begins
            with a byte order mark, without which a spreadsheet takes UTF-8 for another encoding.
    """
    if kind == "json":
        return _write_json(stream, tables, is_flat=is_flat)
    if kind == "jsonl":
        return _write_jsonl(stream, tables, is_flat=is_flat)
    if kind == "parquet":
        return _write_parquet(stream, schema, tables)
    if is_flat:
        stream.write(codecs.BOM_UTF8)
    return _write_csv(stream, schema, tables)


def _write_json(stream: Stream, tables: Iterable[pa.Table], *, is_flat: bool) -> int:
    written = 0
    stream.write(b"[")
    for table in tables:
        for row in table.to_pylist():
            stream.write((b",\n" if written else b"") + row_json(row, is_flat=is_flat))
            written += 1
    stream.write(b"]\n")
    return written


def _write_jsonl(stream: Stream, tables: Iterable[pa.Table], *, is_flat: bool) -> int:
    written = 0
    for table in tables:
        for row in table.to_pylist():
            stream.write(row_json(row, is_flat=is_flat) + b"\n")
        written += table.num_rows
    return written


def _write_csv(stream: Stream, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    written = 0
    text = io.TextIOWrapper(cast("BinaryIO", stream), "utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(text)
        writer.writerow(schema.names)
        for table in tables:
            for row in table.to_pylist():
                writer.writerow([csv_cell(value) for value in row.values()])
            written += table.num_rows
    finally:
        text.detach()  # the stream is the caller's, and stays open
    return written


def _write_parquet(stream: Stream, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    written = 0
    with pq.ParquetWriter(stream, schema) as writer:
        for table in tables:
            writer.write_table(table)
            written += table.num_rows
    return written


def csv_cell(value: Any) -> str:
    """Return a value as a cell: empty for null, JSON for lists and structs, and never a formula."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return str(value)  # a number, which may be negative and is no formula
    return f"'{value}" if value.startswith(_FORMULA) else value


def cell_text(value: Any, width: int) -> str:
    """Return a value for a cell or a line of the terminal: at most so wide, and without line breaks."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = ", ".join(value)
    return printable("".join(" " if sign.isspace() else sign for sign in text[: width + 1]), width)
