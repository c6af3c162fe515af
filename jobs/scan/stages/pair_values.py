"""The key of a pair, and what is kept of one that was judged: its raw scores, from which a policy makes a verdict."""

from __future__ import annotations

import hashlib
import json
import re
from typing import NamedTuple

import pyarrow as pa

from jobs.scan.input.manifest import readable_text
from jobs.scan.stages.result_rows import RESULT_SCHEMA

RAW_COLUMNS = ["score", "types", "raw_box_px", "word_scores", "text_read", "familiarity", "familiarity_image",
               "familiarity_text", "agreement_image_text", "agreement_image_caption",
               "agreement_text_caption"]  # fmt: skip
"""Columns of a result row that follow from the model, the picture, the text and the caption, whatever the policy."""
VALUE_SCHEMA = pa.schema(
    [RESULT_SCHEMA.field(name) for name in RAW_COLUMNS] + [("text_warnings", pa.list_(pa.string()))]
)
"""The values that are kept of a pair that was judged."""
TEXT_WARNING = re.compile(
    r"word \d+ has \d+ pieces; |\d+ words? read anew for the model: |the text is longer than one pass holds |"
    r"the pair has no text\. It was scored against a caption|the model cannot read the text, so a caption replaced it"
)
"""Beginnings of the warnings that follow from the text. All other warnings come with the row or its picture."""


class ReuseContext(NamedTuple):
    """All that decides the raw scores of a pair, beside the pair itself."""

    model_id: str
    familiarity_id: str | None
    precision: str
    min_text_read: float
    reading: int
    """`READING_VERSION` of the program that judged."""

    def to_bytes(self) -> bytes:
        """Return the context as bytes, the same for equal contexts."""
        return json.dumps(self._asdict(), sort_keys=True).encode()


def pair_keys(rows: pa.Table, context: ReuseContext) -> list[bytes | None]:
    """Return a key of 32 bytes for each row. Rows that failed, or whose picture has no hash, have None.

    Args:
        rows: Prepared rows, or rows of results.
        context: All that decides the scores beside the pair.
    """
    start = hashlib.blake2b(context.to_bytes(), digest_size=32)
    names = ("error_code", "image_sha256", "text", "text_escapes", "caption")
    keys: list[bytes | None] = []
    for code, sha256, text, escapes, caption in zip(*(rows[name].to_pylist() for name in names), strict=True):
        if code is not None or sha256 is None:
            keys.append(None)
            continue
        digest = start.copy()
        # Each part comes after its length, so that no two pairs give the same bytes.
        for part in (sha256, None if text is None else readable_text(text, escapes), caption):
            data = b"" if part is None else part.encode()
            digest.update((-1 if part is None else len(data)).to_bytes(8, "big", signed=True) + data)
        keys.append(digest.digest())
    return keys


def values_of(results: pa.Table) -> pa.Table:
    """Return rows of `VALUE_SCHEMA`: what is kept of result rows that were judged."""
    warnings = [
        [one for one in found or () if TEXT_WARNING.match(one)] if found else []
        for found in results["warnings"].to_pylist()
    ]
    columns = {name: results[name] for name in RAW_COLUMNS}
    return pa.table(columns | {"text_warnings": pa.array(warnings, pa.list_(pa.string()))}, VALUE_SCHEMA)


class Found(NamedTuple):
    """Values of some keys."""

    keys: list[bytes]
    values: pa.Table


NOTHING = Found([], VALUE_SCHEMA.empty_table())
