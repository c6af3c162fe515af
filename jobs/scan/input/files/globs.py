"""Addresses with wildcards: `data/part-*.jsonl`, `s3://bucket/**/*.jpg`, `shards/{00000..00099}.tar`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from asap.storage.location import Location
from jobs.errors import InputNotFound

_ANY = "[^/]*"
"""Expression of a star whose place is found by trying each."""
_OPEN = re.compile(re.escape(_ANY) + r"(?!\?)")
_MOST_OPEN = 6
"""Stars of a pattern whose places are found by trying each, so that no name takes long."""
_WILDCARD = re.compile(r"[*?\[{]")
_PIECE = re.compile(
    r"(?P<range>\{(?P<first>\d+)\.\.(?P<last>\d+)\})|(?P<words>\{[^{}/]*,[^{}/]*\})|"
    r"(?P<set>\[!\]?[^\]/]+\]|\[\]?[^!\]/][^\]/]*\]|\[!?\][^\]/]*\])"
    r"|(?P<deep>\*\*+)|(?P<star>\*)|(?P<one>\?)|(?P<letter>.)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Glob:
    """A pattern of names, as a shell understands it."""

    folder: Location
    """The folder that all names with the pattern lie in."""
    is_deep: bool
    """True if names in folders of that folder may have the pattern."""
    names: re.Pattern[str]
    """The names, from that folder on. Each group is a number that lies in the range of its place."""
    ranges: Sequence[tuple[int, int]] = ()

    def matches(self, location: Location) -> bool:
        """Return True if a file below the folder has the pattern."""
        match = self.names.fullmatch(location.uri.removeprefix(self.folder.uri).lstrip("/"))
        return match is not None and all(
            first <= int(number) <= last for number, (first, last) in zip(match.groups(), self.ranges, strict=True)
        )


def find_glob(location: Location) -> Glob | None:
    """Return the pattern in an address; None if it has no wildcard.

    Raises `InputNotFound` for a pattern that no name can have.
    """
    parts = location.uri.split("/")
    at = next((number for number, part in enumerate(parts) if _WILDCARD.search(part)), None)
    if at is None or (location.is_s3 and at < 3):  # a bucket has one name
        return None
    ranges: list[tuple[int, int]] = []
    names = ""
    for part in parts[at:-1]:
        names += r"(?:[^/]+/)*" if part == "**" else _translate(part, ranges) + "/"
    names += r".+" if parts[-1] == "**" else _translate(parts[-1], ranges)
    if len(_OPEN.findall(names)) + parts.count("**") > _MOST_OPEN:
        raise InputNotFound(
            f"the pattern {location.uri!r:.200} has too many wildcards: a name could fit it in too many ways. Give a "
            f"pattern with at most {_MOST_OPEN} of them in all"
        )
    is_deep = len(parts) > at + 1 or parts[-1] == "**"
    return Glob(Location("/".join(parts[:at]) or "/"), is_deep, re.compile(names, re.DOTALL), tuple(ranges))


def _translate(part: str, ranges: list[tuple[int, int]]) -> str:
    """Return the regular expression of one part of a pattern; add its ranges to the list."""
    expression = ""
    begin: int | None = None  # behind the last star
    is_fixed = True  # all names that fit the expression from there on have one length
    for piece in _PIECE.finditer(part):
        if piece["range"]:
            first, last = int(piece["first"]), int(piece["last"])
            if first > last or len(piece["first"]) > len(piece["last"]):
                raise InputNotFound(
                    f"the pattern {part!r:.200} counts backwards: {piece['range']}. Write the smaller number first"
                )
            ranges.append((first, last))
            is_fixed = False
            # 00 to 99 has two digits everywhere, and 8 to 12 has one or two.
            expression += rf"(\d{{{len(piece['first'])},{len(piece['last'])}}})"
        elif piece["words"]:
            is_fixed = False
            words = [_translate(word, ranges) for word in piece["words"][1:-1].split(",")]
            expression += f"(?:{'|'.join(words)})"
        elif piece["set"]:
            negated = piece["set"].startswith("[!")
            letters = re.sub(r"([\\\]\[^&~|])", r"\\\1", piece["set"][2 if negated else 1 : -1])
            expression += f"[^/{letters}]" if negated else f"[{letters}]"
            try:
                re.compile(f"[{letters}]")
            except re.error as error:
                raise InputNotFound(
                    f"the pattern {part!r:.200} has the letters {piece['set']}, which no name has: {error.msg}. Write "
                    "the smaller letter first, as in [a-z]"
                ) from error
        elif piece["deep"] or piece["star"]:
            if begin == len(expression):  # one star after another
                continue
            if begin is not None and is_fixed:
                # The first place that fits leaves the most to the next star, so no other is ever tried.
                expression = f"{expression[: begin - len(_ANY)]}(?>[^/]*?{expression[begin:]})"
            expression += _ANY
            begin, is_fixed = len(expression), True
        else:
            expression += "[^/]" if piece["one"] else re.escape(piece["letter"])
    return expression
