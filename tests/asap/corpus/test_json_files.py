"""JSON files, and files that are nearly JSON."""

import pytest

from asap.corpus.folder import parse_json
from asap.errors import CorpusError


def test_a_file_may_begin_with_a_byte_order_mark() -> None:
    assert parse_json("a.json", b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_lines_are_split_at_line_feeds_only() -> None:
    assert parse_json("a.jsonl", '{"a": "x\u2028y"}\n\n{"b": 2}\r\n'.encode()) == [{"a": "x\u2028y"}, {"b": 2}]
    assert parse_json("a.ndjson", b'{"a": 1}') == [{"a": 1}]


@pytest.mark.parametrize("end", [",]", ",\n]", " ,\n ] \n"])
def test_a_comma_after_the_last_object_is_accepted_only_if_allowed(end: str) -> None:
    text = ('[{"a": "x}, ]"},\n{"b": "y"}' + end).encode()
    assert parse_json("a.json", text, trailing_comma=True) == [{"a": "x}, ]"}, {"b": "y"}]
    with pytest.raises(CorpusError, match=r"a\.json cannot be read as JSON"):
        parse_json("a.json", text)


def test_a_string_that_looks_like_such_a_comma_is_not_changed() -> None:
    for text in ('["},]"]', '[{"a": "}, ]"}]', '"},]"'):
        assert parse_json("a.json", text.encode(), trailing_comma=True) == parse_json("a.json", text.encode())


@pytest.mark.parametrize(
    "text",
    ["", "[", "[,]", '[{"a": 1},,]', '[{"a": 1,}]', '{"a": 1,}', "[1, 2,]", "['a']", '[{"a": 1},] x', "[" * 100_000],
)
def test_anything_else_that_is_not_json_is_refused_by_name(text: str) -> None:
    with pytest.raises(CorpusError, match=r"a\.json cannot be read as JSON"):
        parse_json("a.json", text.encode(), trailing_comma=True)


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"a\.json cannot be read as JSON: 'utf-8'"):
        parse_json("a.json", b"\xff\xfe")
