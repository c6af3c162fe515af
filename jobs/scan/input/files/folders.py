"""Folders of pictures, each with a text file of the same name beside it, read as manifest rows."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple
from unicodedata import is_normalized, normalize

from asap.storage.location import FileInfo, Location
from jobs.errors import InputNotFound
from jobs.scan.input.files.listing import (
    MOST_FILES,
    PICTURE_SUFFIXES,
    TEXT_SUFFIXES,
    Address,
    Listing,
    Role,
    split_suffix,
)
from jobs.scan.input.files.sidecars import LOOKED_FOR, Text, TextParser, find_texts, read_data, texts_by_name
from jobs.scan.input.manifest import ManifestRow, RowError, is_storable
from jobs.scan.input.tables.columns import NO_OPTIONS, TableOptions

FIRST_PICTURES = 1000
"""Pictures one of which at least must have a text."""
_FIRST_TEXTS = 20
_MOST_UNPAIRED = 2**17
"""Groups that wait for a name in another form."""
_TEXT_READERS = 32
_SLOW_READ_S = 0.0005
"""Seconds for one text from which on texts are read by several threads: the disk is one of a network."""


class Pair(NamedTuple):
    """A picture of a folder and its texts."""

    picture: FileInfo
    text: FileInfo | None
    others: int = 0
    """Further texts of the picture, which are not read."""


@dataclass
class _Group:
    """Pictures and texts whose names agree up to their suffixes."""

    pictures: list[FileInfo] = field(default_factory=list)
    texts: list[FileInfo] = field(default_factory=list)

    def pairs(self) -> list[Pair]:
        """Return the pictures with their texts. Two forms of a name (ö, and o with two dots) are one name."""
        if not self.texts:
            return [Pair(info, None) for info in self.pictures]
        texts = texts_by_name((normalize("NFC", info.location.uri), info) for info in self.texts)
        pairs = []
        for info in self.pictures:
            found = find_texts(normalize("NFC", info.location.uri), texts)
            pairs.append(Pair(info, found[0] if found else None, max(0, len(found) - 1)))
        return pairs


class _Unpaired:
    """Groups that wait for the other half of their pairs, whose name may have another form in Unicode.

    Such forms stand far from each other in a listing, so pictures whose names have one form only wait for nothing.
    """

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def pair_up(self, base: str, group: _Group) -> list[Pair]:
        """Return the pairs of a group, or those of a group that waited too long."""
        name = normalize("NFC", base)
        if base.isascii() or is_normalized("NFD", name):
            return group.pairs()
        if other := self._groups.pop(name, None):
            group = _Group(other.pictures + group.pictures, other.texts + group.texts)
        pairs = group.pairs()
        if any(pair.text for pair in pairs):
            return pairs
        self._groups[name] = group
        if len(self._groups) > _MOST_UNPAIRED:
            return self._groups.pop(next(iter(self._groups))).pairs()
        return []

    def rest(self) -> Iterator[Pair]:
        """Yield the pictures that wait."""
        for group in self._groups.values():
            yield from group.pairs()


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
        return islice(rows_of_pairs(self.pairs(), self.address.folder, self.options), limit)

    def files(self, limit: int | None = None) -> Iterator[FileInfo]:
        """Return the files that are read."""
        for pair in islice(self.pairs(), limit):
            yield from filter(None, (pair.picture, pair.text))

    def pairs(self, listed: Iterable[FileInfo] | None = None) -> Iterator[Pair]:
        """Return each picture with its text, nearly in the order of the listing. A text without a picture is no pair.

        Args:
            listed: The files. Those of one folder are in the order of their names, as listings have them.
        """
        opened: dict[str, _Group] = {}
        unpaired = _Unpaired()
        for info in self.address.files() if listed is None else listed:
            role = self.address.role_of(info)
            uri = info.location.uri
            base, is_text = _base(uri)
            is_picture = role is Role.PICTURE or (self.has_bare and role is Role.BARE)
            if role is Role.STRAY or not (is_text or (is_picture and self.address.is_meant(info))):
                continue
            if (group := opened.get(base)) is None:
                # Open groups are beginnings of one another (a, a.b, a.b/c), so there are few at a time.
                for ended in [name for name in opened if not _may_grow(name, uri)]:
                    yield from unpaired.pair_up(ended, opened.pop(ended))
                group = opened[base] = _Group()
            (group.texts if is_text else group.pictures).append(info)
        for base, group in opened.items():
            yield from unpaired.pair_up(base, group)
        yield from unpaired.rest()

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
    texts = TextParser(options).parse((file, read_data(file)) for file in files)
    if any(isinstance(text, Location) or (isinstance(text, Text) and text.text) for text in texts):
        return
    reason = next((str(text) for text in texts if isinstance(text, RowError)), f"{files[0].location} holds no text")
    raise InputNotFound(f"none of the first {len(texts)} texts of {where} can be read: {reason}")


def rows_of_pairs(pairs: Iterator[Pair], folder: Location, options: TableOptions) -> Iterator[ManifestRow]:
    """Return a row for each picture, numbered from 0, with its text read."""
    row_id = 0
    waits = True
    parser = TextParser(options)
    # Texts are read a few hundred at a time: enough to keep all readers busy and to guess an encoding, and few in
    # memory.
    with ThreadPoolExecutor(_TEXT_READERS) as readers:
        while chunk := list(islice(pairs, 16 * _TEXT_READERS)):
            infos = [pair.text for pair in chunk]
            started = time.monotonic()
            if not folder.is_s3 and not (row_id and waits):
                # A disk of this machine delivers a text before another thread could wake up.
                data = list(map(read_data, infos))
                waits = time.monotonic() - started > len(chunk) * _SLOW_READ_S
            else:
                data = list(readers.map(read_data, infos))
            for pair, text in zip(chunk, parser.parse(zip(infos, data, strict=True)), strict=True):
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


def _base(uri: str) -> tuple[str, bool]:
    """Return the name that a picture and its texts share, and True for a text.

    The name is `a` for a.jpg, a.txt, a.jpg.txt and a file `a`.
    """
    stem, suffix = split_suffix(uri)
    is_text = suffix in TEXT_SUFFIXES
    base = stem if is_text else uri
    stem, suffix = split_suffix(base) if is_text else (stem, suffix)
    while suffix in PICTURE_SUFFIXES:
        base = stem
        stem, suffix = split_suffix(base)
    return base, is_text


def _may_grow(base: str, uri: str) -> bool:
    """Return True if a name, or one that comes after it in a listing, may belong to a group.

    Such names are BASE and BASE.SUFFIX. Between them lie BASE-2, and a folder BASE.k with all that is in it.
    """
    return uri.startswith(base) and uri[len(base) : len(base) + 1] <= "."


def _listing_order(info: FileInfo) -> tuple[str, str]:
    return posixpath.split(info.location.uri)


def _example(picture: FileInfo) -> str:
    name = picture.location.name
    stem = posixpath.splitext(name)[0]
    return f"{stem}.txt, {name}.txt, {stem}.caption or {stem}.json"
