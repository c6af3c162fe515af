"""Records of CSV files: tables of text with commas, tabs, semicolons or bars between the cells.

A quote that is not closed takes the following lines into its record; each of them is a `RowError` too. If another stray
quote closes it, and the record has as many cells as the header, it looks like a text of several lines and is read as
one, unless these lines look like records.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO

from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables import record_files
from jobs.scan.input.tables.columns import (
    PICTURE_NAME,
    WEB,
    TableOptions,
    is_known,
    is_picture_column,
    plain,
    unique_names,
)
from jobs.scan.input.tables.encoding import find_encoding, open_text
from jobs.scan.input.tables.inline import starts_with_pictures
from jobs.scan.input.tables.record_files import UNDECODED, Record
from jobs.scan.input.tables.text_reader import TextReader

_HEAD_BYTES = 2**18
_HEAD_RECORDS = 100
_LONG_TEXT = 20
"""Lines of a longer text than most."""
_MOST_LINES = 0.9
"""Share of the lines of a text from which on they are taken for records."""
_DELIMITERS = {"tab": "\t", r"\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "bar": "|", "space": " "}
"""Names of delimiters that shells and people do not type as characters."""
_NAMES = {"\t": "tab", " ": "space"}
_SEPARATOR = re.compile(r"\s*sep=(.)\s*")
"""The line that tells Excel the delimiter."""


@dataclass(frozen=True)
class _Dialect:
    """The delimiter and quotes of a CSV file."""

    delimiter: str
    escaped: bool = False
    """True if quotes within a cell have a backslash before them; else they are doubled."""
    quoted: bool = True
    """False if quotes are letters like any other."""
    quote: str = '"'
    spaced: bool = False
    """True if spaces may stand before a quoted cell."""

    def read(self, lines: Iterator[str], strict: bool = True) -> Any:
        # strict: a stray quote is an error, not a part of the text
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote,
            doublequote=not self.escaped,
            escapechar="\\" if self.escaped else None,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            strict=strict,
            skipinitialspace=self.spaced,
        )


@dataclass
class CsvReader(TextReader):
    """A CSV file whose encoding, delimiter and header are known."""

    dialect: _Dialect
    names: Sequence[str]
    skipped: int
    """Lines before the header."""
    header: bool
    """True if the file has a header. Without one, columns are called 1, 2, 3."""
    twice: Sequence[str] = ()

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file."""
        quotes = "none" if not self.dialect.quoted else "backslash" if self.dialect.escaped else "doubled"
        return super().describe() | {
            "delimiter": _NAMES.get(self.dialect.delimiter, self.dialect.delimiter),
            "quotes": quotes,
            "header": self.header,
            "first_line": self.skipped,
        }

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield the records, with the lines on which they begin."""
        # A cell may be as long as a record. The limit belongs to the process; no reader needs a lower one.
        csv.field_size_limit(max(csv.field_size_limit(), self.limit))
        with open_text(self.location, self.encoding) as file:
            lines = _Lines(self.limit, len(self.encoding.mark))
            for _ in range(self.skipped):
                lines.position += len(file.readline())
            reader = self.dialect.read(lines.read(file))
            if self.header:
                next(reader, None)
            yield from self._body(reader, lines)

    def _body(self, reader: Any, lines: _Lines) -> Iterator[tuple[int, Record]]:
        pictures = self.pictures()
        taken, long_lines = lines.taken, lines.too_long
        names, width, skipped = unique_names(self.names), len(self.names), self.skipped
        while True:
            first = reader.line_num
            taken.clear()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield from self._broken(first + skipped, taken, f"the line is not CSV: {error}")
                continue
            if long_lines:
                long_lines.clear()
                problem = f"the line is longer than {self.limit} bytes"
                yield from self._broken(first + skipped, taken, problem)
                continue
            if not cells:
                continue
            if len(cells) > width and not any(cells[width:]):  # a delimiter at the end of the line
                del cells[width:]
            if len(cells) != width:
                problem = f"the line has {len(cells)} cells, the header {width}"
                yield from self._broken(first + skipped, taken, problem)
            elif len(taken) > 1 and self._holds_records(taken):
                problem = (
                    f"its quotes take the {len(taken) - 1} lines behind it into one record, and these look like "
                    "records. Close its quote, or double a quote that is a letter."
                )
                yield from self._broken(first + skipped, taken, problem)
            elif any(UNDECODED.search(line) for line in taken if not line.isascii()):
                read = {name: cell for name, cell in zip(names, cells, strict=True) if not UNDECODED.search(cell)}
                yield first + skipped, RowError(f"the line is not {self.encoding.name.upper()}", read)
            else:
                record: dict[str, Any] = {name: cell or None for name, cell in zip(names, cells, strict=True)}
                if self.holds_pictures:
                    raw = "".join(taken).encode()
                    record = pictures.replace(record, raw, lines.position - len(raw), is_json=False)
                yield first + skipped, record

    def _holds_records(self, taken: Sequence[str]) -> bool:
        """Return True if most lines behind the first of a record look like records themselves.

        They do if they have the width of the table and a picture where the first line has one; without names of
        pictures, many lines of a width that texts seldom have are enough.
        """
        width, delimiter = len(self.names), self.dialect.delimiter
        pictures = [n for n, cell in enumerate(taken[0].split(delimiter)) if self._is_picture(cell)]
        behind = [cells for line in taken[1:] if len(cells := line.split(delimiter)) == width]
        if pictures:
            alike = sum(self._is_picture(cells[pictures[0]]) for cells in behind if pictures[0] < width)
            return 2 * alike >= len(taken) - 1
        return width > 2 and len(taken) > _LONG_TEXT and len(behind) >= _MOST_LINES * (len(taken) - 1)

    def _is_picture(self, cell: str) -> bool:
        return PICTURE_NAME.fullmatch(cell.strip().strip(self.dialect.quote)) is not None

    def _broken(self, first: int, taken: list[str], problem: str) -> Iterator[tuple[int, RowError]]:
        """Yield an error for each line of a record whose quotes or cells are misplaced."""
        follows = f"the line was read as a part of line {first + 1}, whose quotes are wrong: {problem}"
        for number, line in enumerate(list(taken)):
            reason = follows if number else problem
            yield first + number, RowError(reason, self._readable(line), aligned=False)

    def _readable(self, line: str) -> dict[str, Any]:
        """Return the cells of a broken line as far as they can be read on their own."""
        try:
            cells: list[str] = next(self.dialect.read(iter([line[:_HEAD_BYTES]]), strict=False), [])
        except csv.Error:
            return {}
        return {
            name: cell
            for name, cell in zip(unique_names(self.names), cells, strict=False)
            if not UNDECODED.search(cell)
        }


class _Lines:
    """The lines of a file, as a CSV reader takes them."""

    def __init__(self, limit: int, position: int) -> None:
        self.position = position
        """Bytes of the file that were read."""
        self.taken: list[str] = []
        """The lines since a record began."""
        self.too_long: list[int] = []
        """Numbers of the lines that are too long."""
        self._limit = limit

    def read(self, file: BinaryIO) -> Iterator[str]:
        """Decode the lines without failing: a line that cannot be decoded is the error of its own record only."""
        number, limit = 0, self._limit
        while line := file.readline(limit + 1):
            self.position += len(line)
            if len(line) > limit and not line.endswith(b"\n"):
                self.too_long.append(number)
                while rest := file.readline(record_files.MAX_RECORD_BYTES):
                    self.position += len(rest)
                    if rest.endswith(b"\n"):
                        break
            text = line.decode(errors="surrogateescape")
            self.taken.append(text)
            number += 1
            yield text


def understand_csv(location: Location, options: TableOptions) -> CsvReader:
    """Return a CSV file with its encoding, delimiter, quotes and header.

    Raises `InputNotFound` for a file without a header, unless the options name columns by position.

    Args:
        location: The file.
        options: What a person said about the table.
    """
    encoding = find_encoding(location, options.encoding)
    with open_text(location, encoding) as file:
        head = file.read(_HEAD_BYTES).decode(errors="surrogateescape")
    lines = head.splitlines(keepends=True) if "\n" not in head else re.findall(r"[^\n]*\n|[^\n]+", head)
    # Positions are numbers, and a table whose header has these numbers as names is not meant by them.
    named = [name for name in (options.image_column, options.text_column, options.id_column) if name is not None]
    by_position = bool(named) and all(name.strip().isdecimal() for name in named)
    skipped, lines, told = _skip_preface(lines, by_position)
    dialect = _find_dialect(lines, _delimiters(options.delimiter, told, location.name), named)
    rows, _ = _head_records(dialect, lines, 2)
    if rows and len(rows[0]) > 1 and all(name.startswith(" ") for name in rows[0][1:]):
        dialect = replace(dialect, spaced=True)
        rows, _ = _head_records(dialect, lines, 2)
    if not rows:
        if not lines:  # without a name, the table is refused as empty
            return CsvReader(location, encoding, False, dialect, [], skipped, False)
        error = _first_error(dialect, lines)
        raise InputNotFound(f"the header of {location} is not CSV: {error}")
    names = list(rows[0])
    if names[0].lstrip().startswith("#"):
        names[0] = names[0].lstrip().removeprefix("#").strip()
    while names and not names[-1].strip():  # a delimiter at the end of each line
        names.pop()
    if by_position and not set(named) <= {name.strip() for name in names}:
        header = _is_header(names, options.image_column)
        names = [str(n + 1) for n in range(max(len(names), *(len(row) for row in rows)))]
    else:
        header = True
        _check_header(location, names, rows)
        names = _name_all(names)
    return CsvReader(location, encoding, starts_with_pictures(location, encoding), dialect, names, skipped, header)


def _skip_preface(lines: list[str], by_position: bool) -> tuple[int, list[str], str | None]:
    """Pass over blank lines, comments and Excel's line of the delimiter before the header.

    Return the number of lines passed over, the lines after them, and the delimiter that Excel was told.

    Args:
        lines: The first lines of the file.
        by_position: True if columns are named by their position, so that the first line may be a record.
    """
    told = None
    skipped = 0
    for number, line in enumerate(lines):
        if match := _SEPARATOR.fullmatch(line):
            told = match[1]
        elif line.strip() and (
            not line.lstrip().startswith(("#", "//")) or (by_position and _is_record(line, lines[number + 1 :]))
        ):
            break
        # A header may have a # before it. It is one if it names a picture or a text, and the next line does not.
        elif line.lstrip().startswith("#") and _names_roles(line.lstrip()[1:]) > 1:
            following = next((text for text in lines[number + 1 :] if text.strip()), "")
            if not _names_roles(following) and not following.startswith("#"):
                break
        skipped = number + 1
    return skipped, lines[skipped:], told


def _is_record(line: str, following: Sequence[str]) -> bool:
    """Return True for a line that looks like a comment, but is a record: its first cell is a hashtag or a path."""
    if any(PICTURE_NAME.fullmatch(cell) for cell in re.split(r"[,;|\t]", line)):
        return True
    after = next((text for text in following if text.strip()), "")
    is_comment = re.match(r"\s*(#+|//+)\s", line) is not None
    return not is_comment and any(0 < line.count(mark) == after.count(mark) for mark in ",;|\t")


def _is_header(names: Sequence[str], image: str | None) -> bool:
    """Return True if the first line of a table whose columns are named by position is a header.

    A text may be a known name, such as Photo, so that one known name is enough only in the column of the picture.
    """
    if any(PICTURE_NAME.fullmatch(name) or WEB.match(name) for name in names):
        return False
    column = int(image) if image is not None else 0
    return sum(is_known(name) for name in names) > 1 or (
        0 < column <= len(names) and is_picture_column(names[column - 1])
    )


def _names_roles(line: str) -> int:
    return sum(is_known(name) for name in re.split(r"[,;|\t]", line) if plain(name))


def _delimiters(given: str | None, told: str | None, name: str) -> list[str]:
    """Return the delimiters that are possible, the most likely first. Raises `InputNotFound` for a given one."""
    if given is not None:
        delimiter = _DELIMITERS.get(given.strip().lower(), given)
        if len(delimiter) != 1 or delimiter in '"\r\n\\':
            raise InputNotFound(f"the delimiter {given!r:.60} is not one character. Give one, or tab.")
        return [delimiter]
    likely = ([told] if told and told not in '"\r\n\\' else []) + (
        ["\t"] if re.search(r"\.(tsv|tab)\b", name, re.I) else []
    )
    return list(dict.fromkeys([*likely, ",", "\t", ";", "|"]))


def _find_dialect(lines: Sequence[str], delimiters: Sequence[str], named: Sequence[str]) -> _Dialect:
    """Return the dialect under which the first lines look most like a table."""
    head = "".join(lines[:_HEAD_RECORDS])
    quote = "'" if head.startswith("'") and '"' not in head else '"'
    dialects = [_Dialect(delimiter, quote=quote) for delimiter in delimiters]
    if rf"\{quote}" in head:
        dialects += [_Dialect(delimiter, escaped=True, quote=quote) for delimiter in delimiters]
    if re.search(rf"[,;|] +{quote}", head):
        dialects += [replace(dialect, spaced=True) for dialect in dialects]
    # Tables with tabs or bars are often written without quotes, so that a quote is a letter.
    dialects += [_Dialect(delimiter, quoted=False) for delimiter in delimiters if delimiter in "\t|"]
    wanted = {name.strip().lower() for name in named}
    best = max(dialects, key=lambda dialect: _score(dialect, lines, wanted))  # the first of equals
    known, several, _ = _score(best, lines, wanted)
    return best if known > 0 or several else dialects[0]


def _score(dialect: _Dialect, lines: Sequence[str], wanted: set[str]) -> tuple[int, bool, float]:
    """Return a key of how much the lines look like a table: known names, several cells, lines of one width."""
    rows, broken = _head_records(dialect, lines, _HEAD_RECORDS)
    if not rows or (not dialect.quoted and len(rows[0]) == 1):
        return -1, False, 0.0
    # A cell with another delimiter in it is no name.
    names = [name for name in rows[0] if not re.search(r"[,;|\t]", name)]
    known = sum(is_known(name) or name.strip().lower() in wanted for name in names)
    width = len(rows[0])
    while width > 1 and not rows[0][width - 1].strip():
        width -= 1
    fitting = sum(len(row) >= width and not any(row[width:]) for row in rows)
    # A record of several lines is one record; misplaced quotes make few records of many lines.
    return min(known, 2), width > 1, fitting / max(len(rows) + broken, min(len(lines), _HEAD_RECORDS) // 2)


def _head_records(dialect: _Dialect, lines: Sequence[str], count: int) -> tuple[list[list[str]], int]:
    """Return the first records that are not blank, and the number of those that are no CSV. A header must be CSV."""
    reader = dialect.read(iter(lines))
    found: list[list[str]] = []
    broken = 0
    while len(found) + broken < count:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error:
            if not found:
                break
            broken += 1
            continue
        if cells:
            found.append(cells)
    return found, broken


def _first_error(dialect: _Dialect, lines: Sequence[str]) -> str:
    try:
        next(dialect.read(iter(lines)), None)
    except csv.Error as error:
        return str(error)
    return "it has no cell"


def _check_header(location: Location, names: Sequence[str], rows: Sequence[list[str]]) -> None:
    """Raise `InputNotFound` if the first line is a record."""
    if any(is_known(name) for name in names):
        return
    pictures = [n for n, name in enumerate(names, 1) if PICTURE_NAME.fullmatch(name) or WEB.match(name)]
    if pictures:
        cells = ", ".join(f"{cell!r:.60}" for cell in islice(rows[0], 6))
        others = [n for n in range(1, len(names) + 1) if n not in pictures] or [pictures[0] + 1]
        # A text is longer than an id or a date.
        text = max(others, key=lambda n: sum(len(row[n - 1]) for row in rows if len(row) >= n))
        raise InputNotFound(
            f"{location} seems to have no header: its first line is {cells}. Name the columns by their position, for "
            f"example --image-column {pictures[0]} --text-column {text}, or add a line such as image,text."
        )


def _name_all(names: Sequence[str]) -> list[str]:
    """Return the names, with the number of the column for a name that is empty."""
    return [name if name.strip() else f"column {number}" for number, name in enumerate(names, 1)]
