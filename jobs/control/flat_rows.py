"""Result rows without nesting: each column holds one number, text or truth value, as a spreadsheet needs it.

A box becomes four columns, the types become one column of scores each, and a list becomes a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

_PREFIXES = {"types": "score_", "box_px": "box_", "raw_box_px": "raw_box_"}
"""Beginnings of the names that the fields of a structure get."""
_LEFT_OUT = ("word_scores", "text_escapes")
"""Lists that say nothing without the positions of words and characters."""
_BETWEEN = "; "


@dataclass(frozen=True)
class FlatColumn:
    """A column of the flat view."""

    source: str
    """The stored column that it is made of."""
    type: pa.DataType
    values: Callable[[pa.ChunkedArray], pa.ChunkedArray]
    """Returns the flat values of the stored ones."""


def flat_columns(schema: pa.Schema) -> dict[str, FlatColumn]:
    """Return the flat columns of a schema by name, in its order, with the metadata last."""
    columns: dict[str, FlatColumn] = {}
    for field in sorted(schema, key=lambda field: field.name == "metadata"):
        if pa.types.is_struct(field.type):
            prefix = _PREFIXES.get(field.name, f"{field.name}_")
            for part in field.type:
                if not pa.types.is_nested(part.type):
                    columns[f"{prefix}{part.name}"] = _column(field.name, part.type, part.name)
        elif pa.types.is_list(field.type):
            if field.name not in _LEFT_OUT:
                columns[field.name] = FlatColumn(field.name, pa.string(), _joined)
        else:
            columns[field.name] = _column(field.name, field.type)
    return columns


def flat_schema(columns: dict[str, FlatColumn]) -> pa.Schema:
    """Return the schema of flat columns."""
    return pa.schema([(name, column.type) for name, column in columns.items()])


def flatten(rows: pa.Table, names: Sequence[str], columns: dict[str, FlatColumn]) -> pa.Table:
    """Return the flat columns with these names of stored rows, which have their sources."""
    chosen = {name: columns[name] for name in names}
    values = [column.values(rows[column.source]) for column in chosen.values()]
    return pa.table(values, flat_schema(chosen))


def _column(source: str, kind: pa.DataType, part: str | None = None) -> FlatColumn:
    """Return a column of single values, which are a field of a structure if `part` names it."""

    def values(stored: pa.ChunkedArray) -> pa.ChunkedArray:
        found = stored if part is None else pc.struct_field(stored, part)
        return _rounded(found) if pa.types.is_floating(kind) else found

    return FlatColumn(source, pa.float64() if pa.types.is_floating(kind) else kind, values)


def _rounded(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return numbers as people write them: 0.9 and not 0.8999999761581421, the same as float32. NaN becomes null."""
    finite = pc.if_else(pc.is_finite(numbers), numbers, None)
    return finite.cast(pa.string()).cast(pa.float64())


def _joined(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return lists as texts. Of words, only the words."""
    texts = [
        None
        if items is None
        else _BETWEEN.join(str(item.get("word", "")) if isinstance(item, dict) else str(item) for item in items)
        for items in lists.to_pylist()
    ]
    return pa.chunked_array([pa.array(texts, pa.string())])
