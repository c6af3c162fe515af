"""The speed of a job over time, in few points, however long it runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MOST = 120
"""Most points of a timeline."""


class Timeline:
    """Rows that were finished by the seconds of work, without the pauses between runs.

    Two points are `every_s` apart, or more. When there are `MOST` points, every second one is dropped, and the distance
    doubles.
    """

    def __init__(self, points: Sequence[Sequence[float]] = (), every_s: float = 1.0) -> None:
        """Go on with the points of earlier runs.

        Args:
            points: Seconds and rows of each point.
            every_s: Fewest seconds between two points.
        """
        self._points = [(float(at_s), int(rows)) for at_s, rows in points]
        self._every_s = every_s
        self._began_s = self._points[-1][0] if self._points else 0.0

    def begin(self, rows: int) -> None:
        """Note the rows that are finished before this run, if they are others than at the end of the last one."""
        if self._points and self._points[-1][1] != rows:
            self._points.append((self._began_s, rows))

    def add(self, at_s: float, rows: int, *, is_last: bool = False) -> None:
        """Note the rows that are finished at some seconds of this run. The last ones are always noted."""
        at_s += self._began_s
        least_s = 0.1 if is_last else self._every_s
        if self._points and at_s < self._points[-1][0] + least_s:
            return
        self._points.append((round(at_s, 1), rows))
        if len(self._points) > MOST:
            self._points = self._points[::2]
            self._every_s *= 2

    def to_json(self) -> dict[str, object]:
        """Return the arguments of a timeline that goes on with this one."""
        return {"points": [list(point) for point in self._points], "every_s": self._every_s}


def speeds(points: Sequence[Sequence[float]]) -> list[tuple[float, float, float]]:
    """Return start, end and rows a second of each part of a timeline, in seconds of work."""
    return [
        (start, end, max(0.0, (rows - before) / (end - start)))
        for (start, before), (end, rows) in pairwise(points)
        if end > start
    ]
