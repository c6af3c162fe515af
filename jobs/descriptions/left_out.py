"""The engine in the place of one whose process died: it describes nothing, and says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.descriptions.engine import Failure, Outcome, Request

DIED = "the process died each time that it worked on this pair, with others and alone"


class LeftOut:
    """An engine (`jobs.descriptions.engine.Engine`) for requests that ended each process that worked on them."""

    def describe(self, requests: Sequence[Request]) -> list[Outcome]:
        """Return a failure for each request."""
        return [Failure("process_died", DIED) for _ in requests]

    def record(self) -> dict[str, Any]:
        """Return nothing: no description is made."""
        return {}

    def close(self) -> None:
        """Do nothing: nothing is held."""
