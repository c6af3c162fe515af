"""The part that the readers of CSV and of JSON have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asap.storage.location import Location
from jobs.scan.input.tables import record_files
from jobs.scan.input.tables.encoding import Encoding
from jobs.scan.input.tables.inline import LONG_RECORD_BYTES, TextPictures, problem_of_text


@dataclass
class TextReader:
    """A text file of records whose encoding is known."""

    location: Location
    encoding: Encoding
    holds_pictures: bool
    """True if the records are long, because pictures in base64 are in them."""

    @property
    def limit(self) -> int:
        """Bytes of the longest record."""
        return LONG_RECORD_BYTES if self.holds_pictures else record_files.MAX_RECORD_BYTES

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for a person about how the file is read."""
        return self.encoding.notes

    def pictures(self) -> TextPictures:
        """Return what finds the pictures in the records."""
        return TextPictures(self.location, problem_of_text(self.location, self.encoding.name))

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the file."""
        return {"encoding": self.encoding.name}
