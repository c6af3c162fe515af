"""Result rows as JSON: the stored columns by name and shape, and the caller's metadata as an object again.

Each row is one line and valid JSON for strict readers too, so it has no NaN, and no character that some readers take
for the end of a line.

Many rows are encoded a column at a time: one call of Python's encoder writes all values of a column, and the lines are
joined from these. Python's own encoder writes the numbers in both ways, so a row has the same line in both.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asap.preprocessing.words import UNREADABLE

_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""Characters beside \\n at which Python and others split lines. JSON escapes the control characters anyway."""


def row_json(row: dict[str, Any], *, is_flat: bool = False) -> bytes:
    """Return a result row as one line of JSON, without its end.

    Args:
        row: The columns by name, as pyarrow returns them.
        is_flat: True to keep `metadata` a string.
    """
    metadata = row.get("metadata")
    if metadata is not None and not is_flat:
        row = row | {"metadata": read_metadata(metadata)}
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:  # seldom, so that most rows are not searched for NaN
        line = json.dumps(_finite(row), ensure_ascii=False)
    return _in_one_line(line).encode()


def json_lines(rows: pa.Table) -> bytes:
    """Return each row as `row_json` does, without its nulls and with the end of its line."""
    if not rows.num_rows:
        return b""
    columns = []
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        if column.null_count == len(column):
            continue
        values = _metadata_json(column) if name == "metadata" else _values_json(column)
        start = f"{json.dumps(name)}: "
        if not column.null_count:
            columns.append([start + value for value in values])
            continue
        has_value = column.is_valid().to_pylist()
        columns.append([start + value if is_there else "" for value, is_there in zip(values, has_value, strict=True)])
    lines = ["{" + ", ".join(filter(None, fields)) + "}\n" for fields in zip(*columns, strict=True)]
    return _in_one_line("".join(lines or ["{}\n"] * rows.num_rows)).encode()


_COLUMN = json.JSONEncoder(ensure_ascii=False, separators=("\n", ": "))
"""Encodes a list with a line for each value: JSON escapes the ends of lines that are in strings."""


def _values_json(column: pa.Array) -> list[str]:
    """Return the JSON of each value of a column; nulls, and numbers that JSON has no form for, are null."""
    if not len(column):
        return []
    if pa.types.is_struct(column.type):
        names = [json.dumps(field.name).replace("%", "%%") for field in column.type]
        form = "{" + ", ".join(f"{name}: %s" for name in names) + "}"
        fields = zip(*(_values_json(field) for field in column.flatten()), strict=True)
        values = [form % cells for cells in fields]
    elif pa.types.is_list(column.type):
        flat, values, start = _values_json(column.flatten()), [], 0
        for length in pc.fill_null(column.value_lengths(), 0).to_pylist():
            values.append("[" + ", ".join(flat[start : start + length]) + "]")
            start += length
    else:
        is_float = pa.types.is_floating(column.type)
        if is_float:
            column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
        # numpy makes Python's objects of a whole column at once. It has no null among numbers, so zeros stand there.
        is_gappy = column.null_count > 0 and (is_float or pa.types.is_integer(column.type))
        filled = pc.fill_null(column, 0) if is_gappy else column
        values = _COLUMN.encode(filled.to_numpy(zero_copy_only=False).tolist())[1:-1].split("\n")
        if not is_gappy:
            return values
    if column.null_count:
        has_value = column.is_valid().to_pylist()
        return [value if is_there else "null" for value, is_there in zip(values, has_value, strict=True)]
    return values


def _metadata_json(column: pa.Array) -> list[str]:
    """Return the JSON of metadata as `row_json` writes it. Many rows have equal metadata, which are read once."""
    coded = column.dictionary_encode()
    values = [json.dumps(read_metadata(metadata), ensure_ascii=False) for metadata in coded.dictionary.to_pylist()]
    return ["null" if index is None else values[index] for index in coded.indices.to_pylist()]


def _in_one_line(text: str) -> str:
    """Escape the characters in JSON that some readers take for the end of a line."""
    return text if text.isascii() else _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def read_metadata(metadata: str) -> Any:
    """Return stored metadata as the object or array that it is, or as the string if JSON could not say the same.

    That is so for text that is no JSON, a single value, NaN, a number beyond doubles, a repeated key, and half a
    surrogate pair.
    """
    if not metadata.lstrip().startswith(("{", "[")):
        return metadata
    try:
        value = _METADATA.decode(metadata)
        again = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return metadata
    return metadata if UNREADABLE.search(again) else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key is repeated")
    return entries


_METADATA = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_without_repeats)


def _finite(value: Any) -> Any:
    """Return a value with null in place of numbers that JSON has no form for."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
