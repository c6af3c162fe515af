"""A look at an input before any work: what was understood of it, and how a sample of its pairs would fare.

`asap plan` shows a look, and every new scan takes one. It needs neither Ray nor a model, and it reads rows for some
seconds only, so its counts may be lower bounds. The sample depends on its seed and on the rows that were read.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from asap.storage.picture_address import PictureAddress
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import ManifestRow, SeenIds, storable, to_table
from jobs.scan.input.sources import Source
from jobs.scan.settings import PairsSettings
from jobs.scan.stages.prepare import Preparation, prepare_batch

PLAN_S = 8.0
"""Seconds for which `asap plan` reads rows. The sample takes about two more."""
SCAN_S = 2.0
"""Seconds for which a scan reads rows before it starts."""
SAMPLE = 64
_AT_ONCE = 16
"""Pairs of the sample whose pictures are read together."""
_SHOWN = 3
_CHUNK = 1024
_LINES_SHOWN = 5
_IMAGE_SIZE = 224
"""Side in pixels to which the pictures of a sample are resized: any model's would do."""
_VALUES = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?:s3:/)?/\S+|\d+")
"""Parts of a message that differ between rows of one kind."""


@dataclass
class Group:
    """Rows with one kind of problem."""

    example: str
    """The message of the first of them."""
    count: int = 0
    row_ids: list[int] = field(default_factory=list)
    """The first few."""

    def add(self, row_id: int) -> None:
        """Count a row."""
        self.count += 1
        if len(self.row_ids) < _LINES_SHOWN:
            self.row_ids.append(row_id)

    def to_json(self) -> dict[str, Any]:
        """Return the group as JSON."""
        lines = [line_of(row_id) for row_id in sorted(self.row_ids)]
        return {"example": self.example, "count": self.count, "first": lines}


def line_of(row_id: int) -> dict[str, int]:
    """Return the line or record of a row, counted from 1, and its part of an input of several files."""
    part, line = divmod(row_id, 2**32)
    return {"line": line + 1} | ({"part": part + 1} if part else {})


@dataclass
class Look:
    """The findings of a look."""

    source: dict[str, Any]
    """The description of the input that `Source.describe` returns."""
    rows: int = 0
    is_whole: bool = True
    """False if reading stopped before the end of the input: counts are lower bounds then."""
    without_text: int = 0
    without_image: int = 0
    repeated_ids: int = 0
    repeated_images: int = 0
    """Rows whose picture an earlier row has."""
    repeated_pairs: int = 0
    """Rows whose picture and text an earlier row has."""
    text_characters: int = 0
    """Characters of all texts together."""
    invalid: dict[str, Group] = field(default_factory=dict)
    """Rows that cannot be understood, by kind of reason."""
    warnings: dict[str, Group] = field(default_factory=dict)
    """Rows that are read with a warning, by kind."""
    first: list[dict[str, Any]] = field(default_factory=list)
    """The first pairs, as the scan takes them."""
    sampled: int = 0
    failures: dict[str, Group] = field(default_factory=dict)
    """Sampled pairs that would fail, by error code."""
    picture_warnings: dict[str, Group] = field(default_factory=dict)
    """Sampled pairs whose pictures are read with a warning, by kind."""
    kept: list[ManifestRow] = field(default_factory=list)
    """A seeded sample of the rows that can be understood, for a pilot; in the order of the input."""
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Number of sampled pairs that would fail."""
        return sum(group.count for group in self.failures.values())

    def to_json(self) -> dict[str, Any]:
        """Return all findings as JSON."""
        sizes = {"width": self.widths, "height": self.heights} if self.widths else {}
        return {
            "input": self.source,
            "rows": self.rows,
            "is_whole": self.is_whole,
            "without_text": self.without_text,
            "without_image": self.without_image,
            "repeated": {"ids": self.repeated_ids, "images": self.repeated_images, "pairs": self.repeated_pairs},
            "mean_text_characters": round(self.text_characters / max(1, self.rows - self.without_text), 1),
            "invalid": [group.to_json() for group in self.invalid.values()],
            "warnings": [group.to_json() for group in self.warnings.values()],
            "first": self.first,
            "sample": {
                "pairs": self.sampled,
                "failed": self.failed,
                "failures": {code: group.to_json() for code, group in self.failures.items()},
                "warnings": [group.to_json() for group in self.picture_warnings.values()],
            }
            | {name: {"from": min(values), "to": max(values)} for name, values in sizes.items()},
        }

    @property
    def is_unreadable(self) -> bool:
        """True if every sampled pair would fail."""
        return 0 < self.sampled == self.failed

    def check(self, address: str) -> None:
        """Raise `InputNotFound` if every sampled pair would fail."""
        if not self.is_unreadable:
            return
        reasons = "; ".join(f"{group.count} {code} ({group.example})" for code, group in self.failures.items())
        whole = self.is_whole and self.rows == self.sampled
        which = f"all {self.rows} pairs" if whole else f"all {self.sampled} sampled pairs"
        raise InputNotFound(
            f"{address} was read as {_kind(self.source)}, and {which} of it would fail: {reasons}. Give another input, "
            "or options that say what is meant (`asap plan` shows what was understood). "
            "--allow-unreadable starts all the same."
        )


def notes_of(source: Mapping[str, Any]) -> list[str]:
    """Return what a person should know of an input before it is scanned, as sentences."""
    notes = [*source.get("notes", ()), *(note for table in source.get("tables", ()) for note in table.get("notes", ()))]
    if archived := source.get("archived"):
        least = "at least " if source.get("at_least") else ""
        notes.append(
            f"{least}{archived:,} files are archived in the store (Glacier). Restore them first, or their pairs fail"
        )
    return notes


def _kind(source: dict[str, Any]) -> str:
    """Return what an input was read as, with the columns of its first table, for a sentence."""
    table: dict[str, Any] = next(iter(source.get("tables") or ()), {})
    columns = table.get("columns") or {}
    roles = ", ".join(
        f"{role} from {' or '.join(columns[role])}" for role in ("image", "text", "id") if columns.get(role)
    )
    kind = str(table.get("format", source["kind"]))
    return f"{kind} ({roles})" if roles else kind


def look_at(
    source: Source,
    settings: PairsSettings,
    *,
    seconds: float | None,
    is_quick: bool = False,
    pictures: bool = True,
    kept: int = 0,
) -> Look:
    """Look at an input.

    Args:
        source: The input.
        settings: Settings of the job: the limits of pictures, and how they are fetched.
        seconds: Seconds for which rows are read. None: all rows are read.
        is_quick: True if one pair that would not fail is enough: the rest of the sample is then left out.
        pictures: False for a job that needs no pictures.
        kept: Most rows that are kept for a pilot.
    """
    look = Look(source.describe())
    sample = _read_rows(look, source.rows(), None if seconds is None else time.monotonic() + seconds, kept)
    size = _IMAGE_SIZE if pictures else None
    preparation = Preparation(size, settings.image_limits, settings.fetch, slow_after_s=settings.slow_picture_s)
    for start in range(0, len(sample), _AT_ONCE):
        _try(look, sample[start : start + _AT_ONCE], preparation, texts=settings.table_options.texts)
        if is_quick and look.failed < look.sampled:
            break
    return look


class _Sample:
    """A uniform sample of a stream: the n-th row replaces one of the sample with probability size / n."""

    def __init__(self, size: int) -> None:
        self.draw = random.Random(0)
        self.rows: list[ManifestRow] = []
        self._size, self._seen = size, 0

    def add(self, row: ManifestRow) -> None:
        """Look at the next row of the stream."""
        self._seen += 1
        if len(self.rows) < self._size:
            self.rows.append(row)
        elif (position := self.draw.randrange(self._seen)) < self._size:
            self.rows[position] = row


def _read_rows(look: Look, rows: Iterable[ManifestRow], deadline: float | None, kept: int) -> list[ManifestRow]:
    """Count the rows until the deadline, and return a seeded sample of them. Keep another one for a pilot.

    The first `_AT_ONCE` of it are a sample too. They are in the order of the input, and so are all others after them.
    """
    sample, pilot = _Sample(SAMPLE), _Sample(kept)
    ids, images, pairs = SeenIds(), SeenIds(), SeenIds()
    chunk: list[ManifestRow] = []

    def count_repeated() -> None:
        names = [storable(row.custom_id) for row in chunk if row.custom_id is not None]
        look.repeated_ids += int(ids.repeated(names).sum())
        addresses = [(_address(row), storable(row.text or "")) for row in chunk if row.image_uri is not None]
        look.repeated_images += int(images.repeated([address for address, _ in addresses]).sum())
        look.repeated_pairs += int(pairs.repeated([f"{address} {text}" for address, text in addresses]).sum())
        chunk.clear()

    for row in rows:
        look.rows += 1
        _count(look, row)
        sample.add(row)
        if row.row_error is None:
            pilot.add(row)
        chunk.append(row)
        if len(chunk) == _CHUNK:
            count_repeated()
            if deadline is not None and time.monotonic() > deadline:
                look.is_whole = False
                break
    count_repeated()
    # A table with pictures is a stream: reading back in it starts again.
    look.kept = sorted(pilot.rows, key=lambda row: row.row_id)
    found = sample.rows
    sample.draw.shuffle(found)
    return [row for part in (found[:_AT_ONCE], found[_AT_ONCE:]) for row in sorted(part, key=lambda row: row.row_id)]


def _address(row: ManifestRow) -> str:
    """Return where the picture of a row is, for a person."""
    return storable(str(PictureAddress.of_row(vars(row))))


def _count(look: Look, row: ManifestRow) -> None:
    if row.row_error is not None:
        _group(look.invalid, _VALUES.sub("…", row.row_error), row.row_error).add(row.row_id)
    else:
        look.without_text += row.text is None and row.text_uri is None
        look.without_image += row.image_uri is None
    look.text_characters += len(row.text or "")
    for warning in row.warnings:
        _group(look.warnings, _VALUES.sub("…", warning), warning).add(row.row_id)
    if len(look.first) < _SHOWN:
        image = _address(row) if row.image_uri else None
        error = {"error": row.row_error} if row.row_error else {}
        look.first.append({"id": row.custom_id, "image": image, "text": row.text or row.text_uri} | error)


def _group(groups: dict[str, Group], kind: str, example: str) -> Group:
    return groups.setdefault(kind, Group(example))


def _try(look: Look, rows: list[ManifestRow], preparation: Preparation, *, texts: bool) -> None:
    """Read the pictures of some rows as the scan does, and count the rows that would fail."""
    outcomes = {row["row_id"]: row for row in prepare_batch(to_table(rows), preparation).to_pylist()}
    for row in rows:
        look.sampled += 1
        outcome = outcomes.get(row.row_id)
        if outcome is None:  # slow: the scan would wait for it
            continue
        code, detail = outcome["error_code"], outcome["error_detail"]
        if code is None and texts and outcome["text"] is None:
            code, detail = "text_missing", "the pair has no text"
        if code is None:
            if outcome["width"] is not None:
                look.widths.append(outcome["width"])
                look.heights.append(outcome["height"])
            for warning in outcome["warnings"][len(row.warnings) :]:  # those of the picture
                _group(look.picture_warnings, _VALUES.sub("…", warning), warning).add(row.row_id)
        else:
            where = (
                f"{row.image_uri}: " if row.image_uri and row.image_uri not in detail and row.row_error is None else ""
            )
            _group(look.failures, code, where + detail).add(row.row_id)
