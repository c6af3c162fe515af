"""Files of records: their names, their records, and the reasons why a record cannot be read.

The readers are encoding.py, csv_records.py, json_records.py and parquet_records.py. Each record comes with its line,
from 0: the line in a text file, else the position among the records. A record that cannot be read is replaced by a
`RowError`. A file that cannot be read any further raises `InputNotFound`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from jobs.scan.input.manifest import RowError

MAX_RECORD_BYTES = 2**20
UNDECODED = re.compile("[\udc80-\udcff]")
"""Characters that `surrogateescape` makes of bytes that cannot be decoded; they mark the record that holds them."""
_FILE = re.compile(
    r"(?P<stem>.+)\.(?P<kind>json|jsonl|ndjson|manifest|csv|tsv|tab|parquet|pq)(?P<packed>\.gz|\.bz2|\.zst)?",
    re.IGNORECASE | re.DOTALL,
)
_KINDS = {"ndjson": "jsonl", "manifest": "jsonl", "tsv": "csv", "tab": "csv", "pq": "parquet"}
"""Kinds of the suffixes that do not name their kind. A .manifest of SageMaker Ground Truth holds JSON lines."""


class RepeatedNames(dict[str, Any]):
    """A JSON object in which a name stands twice. Python keeps the last value of such a name."""

    twice: Sequence[str] = ()
    """The names that stand twice."""


Record = dict[str, Any] | RowError


class RecordReader(Protocol):
    """A file of records, after a look at its beginning."""

    @property
    def names(self) -> Sequence[str] | None:
        """Names of the columns, in the order of the file. None for JSON, whose records each have their own."""

    @property
    def twice(self) -> Sequence[str]:
        """Names that stand twice in one JSON object."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for a person about how the file is read."""

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file."""

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the records, with their lines."""


class RecordFile(NamedTuple):
    """The parts of the name of a file of records."""

    stem: str
    kind: str
    """json, jsonl, csv or parquet."""
    packed: str
    """The suffix of the compression, or an empty string."""


def record_file(name: str) -> RecordFile | None:
    """Return the parts of the name of a file of records; None for a file of another kind."""
    match = _FILE.fullmatch(name)
    if match is None:
        return None
    kind = match["kind"].lower()
    return RecordFile(match["stem"], _KINDS.get(kind, kind), match["packed"] or "")
