"""Descriptions that exist already, in a file of entries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from asap.corpus.descriptions import Descriptions, PairKeys
from asap.corpus.picture_index import canonical
from asap.storage.location import Location
from jobs.descriptions.engine import Failure, Outcome, Reply, Request


class PrecomputedEngine:
    """An engine that looks descriptions up, by the id of the pair, else by the path of its picture.

    An entry may name a picture by its path below the input, or by the end of its path from some folder on.

    Args:
        descriptions: The entries of the file.
        input: Input of the job, from which paths in the file may start.
    """

    def __init__(self, descriptions: Descriptions, input: Location, kind: str = "caption") -> None:
        self._descriptions = descriptions
        self._input = input
        self._kind = kind

    def describe(self, requests: Sequence[Request]) -> list[Outcome]:
        """Look up each description. It fails if the file has none for the pair, or several."""
        return [self._lookup(request) for request in requests]

    def record(self) -> dict[str, Any]:
        """Return the name of the file."""
        return {"engine": "precomputed", "file": self._descriptions.name}

    def close(self) -> None:
        """Do nothing: the file is read whole at the beginning."""

    def _lookup(self, request: Request) -> Outcome:
        pair = PairKeys(request.custom_id, tuple(_names_of(request.image_uri, self._input)), request.text or "")
        found = self._descriptions.lookup(pair, request.given_id)
        if found is not None:
            return Reply(found)
        name, of = Location.parse(self._descriptions.name).name, "image" if self._kind == "caption" else "text"
        return Failure("no_entry", f"{name} has no {self._kind} that is certainly of {request.custom_id!r} or its {of}")


def _names_of(uri: str, input: Location) -> Iterator[str]:
    """Yield the names that an entry may use for a picture.

    The name of the file alone is one only for a picture beside the manifest, or at the top of an input folder.
    """
    yield "/".join(canonical(uri))
    for folder in (input, input.parent):
        if uri.startswith(f"{folder}/"):
            yield "/".join(canonical(uri.removeprefix(f"{folder}/")))
    parts = canonical(re.sub(r"^s3://[^/]*", "", uri))
    for start in range(len(parts) - 1):
        yield "/".join(parts[start:])
