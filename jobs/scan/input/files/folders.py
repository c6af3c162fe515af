"""Folders of pictures, each with a text file of the same name beside it, read as manifest rows."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from asap.storage.location import FileInfo, Location
from jobs.errors import InputNotFound
from jobs.scan.input.files.listing import MOST_FILES, Address, Listing, Role
from jobs.scan.input.files.sidecars import LOOKED_FOR, Text, find_texts, read_text, texts_by_name
from jobs.scan.input.manifest import ManifestRow, RowError, is_storable
from jobs.scan.input.tables.columns import NO_OPTIONS, TableOptions

FIRST_PICTURES = 1000
"""Pictures one of which at least must have a text."""
_FIRST_TEXTS = 20
_TEXT_READERS = 32
_SLOW_READ_S = 0.0005
"""Seconds for one text from which on texts are read by several threads: the disk is one of a network."""


class Pair(NamedTuple):
    """A picture of a folder and its texts."""

    picture: FileInfo
    text: FileInfo | None
    others: int = 0
    """Further texts of the picture, which are not read."""


@dataclass(frozen=True)
class PictureFolder:
    """Pictures below a folder, as a source of manifest rows."""

    address: Address
    has_bare: bool = False
    """True if files without a suffix are pictures too."""
    listing: Listing | None = None
    options: TableOptions = NO_OPTIONS
    notes: tuple[str, ...] = ()

    kind = "folder"

    def rows(self, limit: int | None = None) -> Iterator[ManifestRow]:
        """Return a row for each picture, in the order of the listing."""
        return rows_of_pairs(islice(self.pairs(), limit), self.address.folder, self.options)

    def files(self, limit: int | None = None) -> Iterator[FileInfo]:
        """Return the files that are read."""
        for pair in islice(self.pairs(), limit):
            yield from filter(None, (pair.picture, pair.text))

    def pairs(self, listed: Iterable[FileInfo] | None = None) -> Iterator[Pair]:
        """Return each picture with its text. A text without a picture is no pair."""
        pictures: list[FileInfo] = []
        others: list[FileInfo] = []
        last = None
        # Listings keep names with a common beginning together, so one such group at a time is enough to pair up.
        for info in self.address.files() if listed is None else listed:
            role = self.address.role_of(info)
            if role is Role.STRAY:
                continue
            key = _before_first_dot(info)
            if key != last:
                if pictures:
                    yield from _pair_up(pictures, others)
                pictures, others, last = [], [], key
            is_picture = role is Role.PICTURE or (self.has_bare and role is Role.BARE)
            (pictures if is_picture and self.address.is_meant(info) else others).append(info)
        yield from _pair_up(pictures, others)

    def has_texts(self) -> bool:
        """Return True if one of the first pictures has a text."""
        return any(pair.text for pair in islice(self.pairs(), FIRST_PICTURES))

    def check_texts(self) -> None:
        """Raise `InputNotFound` if none of the first pictures has a text, or if none of the first texts is one."""
        first = list(islice(self.pairs(), FIRST_PICTURES))
        if any(pair.text for pair in first):
            refuse_hopeless_texts(str(self.address.location), first, self.options)
            return
        counted = f"its {len(first)} pictures" if len(first) < FIRST_PICTURES else f"its first {len(first)} pictures"
        raise InputNotFound(
            f"{self.address.location} has no texts: none of {counted} has a text beside it. Looked for names such as "
            f"{_example(first[0].picture)}{self._other_texts()}. Put "
            "the texts there, give a table that names pictures and texts, or have captions made"
        )

    def _other_texts(self) -> str:
        texts = self.listing[Role.TEXT] if self.listing else []
        if not texts:
            return ""
        return f"; {self.address.name_of(texts[0])} has the name of no picture (if it is a table, name it .csv)"

    def describe(self) -> dict[str, Any]:
        """Return what a short look at the folder found."""
        if self.listing is None:
            return {}
        used = (Role.PICTURE, Role.BARE) if self.has_bare else (Role.PICTURE,)
        listed = [info for role in (*used, Role.TEXT) for info in self.listing[role]]
        pairs = list(islice(self.pairs(sorted(listed, key=_listing_order)), MOST_FILES))
        texts = {
            "looked_for": list(LOOKED_FOR),
            "missing": sum(pair.text is None for pair in pairs),
            "others": sum(pair.others for pair in pairs),
        }
        found = self.listing.describe(info for pair in pairs for info in (pair.picture, pair.text) if info)
        return found | {"pictures": len(pairs), "texts": texts, "notes": list(self.notes)}


def refuse_hopeless_texts(where: str, pairs: Sequence[Pair], options: TableOptions) -> None:
    """Raise `InputNotFound` if none of the first texts of an input can be read."""
    files = [pair.text for pair in pairs if pair.text][:_FIRST_TEXTS]
    texts = [read_text(file, options) for file in files]
    if any(isinstance(text, Location) or (isinstance(text, Text) and text.text) for text in texts):
        return
    reason = next((str(text) for text in texts if isinstance(text, RowError)), f"{files[0].location} holds no text")
    raise InputNotFound(f"none of the first {len(texts)} texts of {where} can be read: {reason}")


def rows_of_pairs(pairs: Iterator[Pair], folder: Location, options: TableOptions) -> Iterator[ManifestRow]:
    """Return a row for each picture, numbered from 0, with its text read."""
    row_id = 0
    waits = True
    # Texts are read a few hundred at a time: enough to keep all readers busy, and few in memory.
    with ThreadPoolExecutor(_TEXT_READERS) as readers:
        while chunk := list(islice(pairs, 16 * _TEXT_READERS)):
            read = partial(read_text, options=options)
            started = time.monotonic()
            if not folder.is_s3 and not (row_id and waits):
                # A disk of this machine delivers a text before another thread could wake up.
                texts: Iterable[Text | RowError | Location | None] = [read(pair.text) for pair in chunk]
                waits = time.monotonic() - started > len(chunk) * _SLOW_READ_S
            else:
                texts = readers.map(read, [pair.text for pair in chunk])
            for pair, text in zip(chunk, texts, strict=True):
                yield picture_row(row_id, pair.picture, text, folder)
                row_id += 1


def picture_row(
    row_id: int, picture: FileInfo, text: Text | RowError | Location | None, folder: Location
) -> ManifestRow:
    """Return the row of a picture that is a file."""
    name = picture.location.uri.removeprefix(folder.uri).lstrip("/")
    row = ManifestRow(row_id=row_id, custom_id=name, image_uri=picture.location.uri, image_version=picture.version)
    if not is_storable(picture.location.uri):  # `os.fsdecode` makes lone surrogates of bytes that are not UTF-8
        row.row_error = f"the path of the picture is not UTF-8: {os.fsencode(picture.location.uri)!r}. Rename it."
    elif isinstance(text, RowError):
        row.row_error = str(text)
    elif isinstance(text, Location):
        row.text_uri = text.uri
    elif text is not None:
        row.text, row.warnings = text.text, list(text.warnings)
    return row


def _pair_up(pictures: Sequence[FileInfo], others: Sequence[FileInfo]) -> Iterator[Pair]:
    """Return the pictures of a group of files with their texts."""
    texts = texts_by_name([(info.location.uri, info) for info in others])
    for info in pictures:
        found = find_texts(info.location.uri, texts)
        yield Pair(info, found[0] if found else None, max(0, len(found) - 1))


def _before_first_dot(info: FileInfo) -> str:
    parent, slash, name = info.location.uri.rpartition("/")
    return parent + slash + name.partition(".")[0]


def _listing_order(info: FileInfo) -> tuple[str, str]:
    return posixpath.split(info.location.uri)


def _example(picture: FileInfo) -> str:
    name = picture.location.name
    stem = posixpath.splitext(name)[0]
    return f"{stem}.txt, {name}.txt, {stem}.caption or {stem}.json"
