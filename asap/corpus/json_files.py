"""JSON and JSON lines out of bytes, and the one thing that is nearly JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from asap.errors import CorpusError


def parse_json(name: str, data: bytes, *, trailing_comma: bool = False) -> Any:
    """The content of a file; a list of its lines where `name` ends in .jsonl or .ndjson.

    `trailing_comma` allows a comma between the last object of a list and the bracket that closes it, and nothing else
    that is not JSON. Raises `CorpusError`, naming the file.
    """
    try:
        text = data.decode("utf-8-sig")
        if name.endswith((".jsonl", ".ndjson")):
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(_without_trailing_comma(text) if trailing_comma else text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{name} cannot be read as JSON: {error}") from error


def _without_trailing_comma(text: str) -> str:
    """No string of a JSON text can hold the comma that is found here: a bracket that is outside all of them ends it."""
    match = re.search(r"\}\s*(,)\s*\]\s*\Z", text)
    return text[: match.start(1)] + text[match.end(1) :] if match else text
