"""Tables that cut no number and no name, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_WIDE = 10_000
"""More columns than any terminal has: the width in which a table is measured."""
_LEAST_TEXT = 16
"""Fewest columns for a text whose words may be broken."""


class Fitted:
    """A table that wraps between words only. Where it does not fit, each row becomes lines of a header and a value.

    Print it with `crop=False`: in lines, a long path is left to the terminal to wrap, so that it can be copied.

    Args:
        table: The table. Its columns on the right are numbers, which do not wrap at all.
        wraps: Headers of columns whose long words may be broken, because nobody copies them.
    """

    def __init__(self, table: Table, wraps: Collection[str] = ()) -> None:
        self.table = table
        self._wraps = wraps

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = self.table.columns
        ranges = [self._range(column) for column in columns]
        widths = [low for low, _ in ranges]
        room = options.max_width - self._width(console, options, widths)
        if room < 0:
            yield from self._lines(console, options)
            return
        # What is left goes to the columns that have more to show, one character in turn.
        while room > 0 and (short := [n for n, (_, high) in enumerate(ranges) if widths[n] < high]):
            for number in short[:room]:
                widths[number] += 1
            room -= len(short[:room])
        self._width(console, options, widths)
        yield self.table

    def _range(self, column: Column) -> tuple[int, int]:
        """Return the fewest columns that cut nothing, and the most that the cells fill."""
        lines = [line for cell in column.cells for line in _plain(cell).split("\n")]
        header = _plain(column.header)
        most = max(map(cell_len, [header, *lines]), default=0)
        words = [word for line in lines for word in line.split()]
        longest = max((cell_len(item) for item in (lines if self._is_whole(column) else words)), default=0)
        if header in self._wraps:
            longest = min(longest, _LEAST_TEXT)
        return max(1, longest, *map(cell_len, header.split())), max(1, most)

    def _is_whole(self, column: Column) -> bool:
        return column.no_wrap or column.justify == "right"

    def _width(self, console: Console, options: ConsoleOptions, widths: list[int]) -> int:
        """Set the widths of the columns, and return that of the whole table."""
        for column, width in zip(self.table.columns, widths, strict=True):
            column.width, column.overflow, column.no_wrap = width, "fold", False
        return Measurement.get(console, options.update(max_width=_WIDE), self.table).maximum

    def _lines(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        columns = self.table.columns
        headers = [_plain(column.header) for column in columns]
        indent = max(map(cell_len, headers)) + 2
        if self.table.title:
            yield Text(str(self.table.title), style="italic")
        for row in zip(*(column.cells for column in columns), strict=True):
            cells = [" ".join(_plain(cell).split("\n")) for cell in row]
            if not any(headers):
                yield _line("  ".join(filter(None, cells)), options)
                continue
            for header, text in zip(headers, cells, strict=True):
                if text:
                    yield _line(f"{header:<{indent}}{text}", options, is_breakable=header in self._wraps)
            yield Text("")
        if self.table.caption:
            yield Text(str(self.table.caption), style="dim")


def _line(text: str, options: ConsoleOptions, *, is_breakable: bool = False) -> Text:
    """Return a line that wraps between words, unless one of them is longer than a line and must stay whole."""
    if is_breakable or all(cell_len(word) <= options.max_width for word in text.split()):
        return Text(text, overflow="fold")
    return Text(text, no_wrap=True, overflow="ignore")


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
