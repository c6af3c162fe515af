"""Lines of JSON that are parsed together are the records that each of them is alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from asap.errors import StorageError
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables import json_records
from jobs.scan.input.tables.json_records import _records_of_lines
from jobs.scan.input.tables.json_stream import line_record, line_records
from jobs.scan.input.tables.record_files import Record, RepeatedNames

WHOLE = [b'{"a": 1}\n', b'  {"b": [1, {"c": "d"}], "e": NaN}  \r\n', '{"é": "😀"}\n'.encode(), b"{}\n"]
ODD = [
    b'{"a": 1},\n', b'{"a": [1\n', b"2]}\n", b'{"a": {}\n', b"}\n", b'{"a": 1}, {"b": 2}\n', b'{"a": "x\n', b'y"}\n',
    b"]\n", b"[\n", b"1\n", b'"text"\n', b"null\n", b'{"a": 1, "a": 2}\n', b'{"a": "\xff"}\n', b'{"a": "\\ud83d"}\n',
    b"no JSON\n", b'{"n": ' + b"9" * 5000 + b"}\n", b'{"d": ' + b"[" * 100_000 + b"\n",
    b'{"a": [{}\n', b"{}]}\n", b"{},{}\n", b",\n",
]  # fmt: skip


def _plain(record: Record) -> Any:
    if isinstance(record, RowError):
        return str(record), dict(record.fields)
    return type(record), repr(record), record.twice if isinstance(record, RepeatedNames) else ()


@pytest.mark.parametrize("seed", range(60))
def test_lines_together_are_the_records_of_each_alone(seed: int) -> None:
    chance = random.Random(seed)
    odd = chance.choice([0, 0.02, 0.3, 1])
    found = [chance.choice(ODD if chance.random() < odd else WHOLE) for _ in range(chance.choice([1, 2, 5, 64]))]
    assert list(map(_plain, line_records(found))) == [_plain(line_record(line)) for line in found]


def test_halves_of_records_that_make_as_many_values_are_not_taken_for_others() -> None:
    found = [b'{"a": [{}\n', b"{}]}\n", b"{},{}\n"]
    assert all(isinstance(record, RowError) for record in line_records(found))
    assert line_records([]) == []


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_lines_keep_their_order_and_numbers_around_one_that_is_too_long(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(json_records, "_LINES_AT_ONCE", at_once)
    error = RowError("too long")
    given = [(2 * n, 0, error if n in (0, 4, 5, 11) else b'{"n": %d}\n' % n) for n in range(12)]
    wanted = [(2 * n, error if n in (0, 4, 5, 11) else {"n": n}) for n in range(12)]
    assert list(_records_of_lines(iter(given))) == wanted


def test_lines_before_a_break_are_read() -> None:
    def broken() -> Iterator[tuple[int, int, bytes | RowError]]:
        yield from ((n, 0, b'{"n": %d}\n' % n) for n in range(100))
        raise StorageError("the connection broke")

    records = _records_of_lines(broken())
    assert [next(records)[1] for _ in range(100)] == [{"n": n} for n in range(100)]
    with pytest.raises(StorageError):
        next(records)
