"""Tests of patterns of names."""

from __future__ import annotations

import pytest

from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.files.globs import find_glob


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a*b*c", "axxbyyc", True), ("a*b*c", "abc", True), ("a*b*c", "acb", False), ("*b*b", "ab", False),
        ("*b*b", "abb", True), ("*?*?", "a", False), ("*?*?", "ab", True), ("**x***y", "xy", True),
        ("*ab*ab*", "abab", True), ("*ab*ab*", "aba", False), ("*.{jpg,jpeg}", "a.jpg.jpeg", True),
        ("*{a,ab}*c", "xabc", True), ("*[0-9]*z", "a1bz", True), ("*{1..12}*.txt", "x12y.txt", True),
    ],
)  # fmt: skip
def test_stars_fit_as_in_a_shell(pattern: str, name: str, fits: bool) -> None:
    glob = find_glob(Location(f"/data/{pattern}"))
    assert glob is not None
    assert glob.matches(Location(f"/data/{name}")) is fits


def test_a_pattern_of_many_stars_takes_no_time_and_one_that_would_is_refused() -> None:
    glob = find_glob(Location("s3://bucket/" + "*?" * 18 + "~"))
    assert glob is not None
    assert not glob.matches(Location("s3://bucket/" + "a" * 1000))
    with pytest.raises(InputNotFound, match="has too many wildcards"):
        find_glob(Location("s3://bucket/" + "*{a,ab}" * 9 + "~"))
    with pytest.raises(InputNotFound, match="has too many wildcards"):
        find_glob(Location("s3://bucket/" + "**/" * 9 + "a"))
