"""A result row as JSON: the stored columns by name and shape, and the caller's metadata as an object again.

Each row is one line and valid JSON for strict readers too, so it has no NaN, and no character that some readers take
for the end of a line.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

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
    return _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line).encode()


def read_metadata(metadata: str) -> Any:
    """Return stored metadata as the object or array that it is, or as the string if JSON could not say the same.

    That is so for text that is no JSON, a single value, NaN, a number beyond doubles, a repeated key, and half a
    surrogate pair.
    """
    if not metadata.lstrip().startswith(("{", "[")):
        return metadata
    try:
        value = json.loads(metadata, parse_constant=_refuse, object_pairs_hook=_without_repeats)
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


def _finite(value: Any) -> Any:
    """Return a value with null in place of numbers that JSON has no form for."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
