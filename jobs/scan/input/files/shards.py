"""Tar files of pictures and texts (WebDataset shards), read as manifest rows.

Members whose names agree up to the first dot of the last part are one sample. The row of a picture names its bytes
within the tar, so that the pipeline fetches them as it fetches a file.
"""

from __future__ import annotations

import posixpath
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from asap.errors import StorageError
from asap.storage.location import FileInfo
from jobs.errors import InputNotFound
from jobs.scan.input.files.folders import FIRST_PICTURES
from jobs.scan.input.files.listing import PICTURE_SUFFIXES, TEXT_SUFFIXES, Address, Listing, Role
from jobs.scan.input.files.parts import PART_BITS
from jobs.scan.input.files.sidecars import (
    MAX_TEXT_BYTES,
    Text,
    find_texts,
    parse_lone_text,
    parse_metadata,
    texts_by_name,
)
from jobs.scan.input.files.tars import BrokenTar, Member, ReadAt, check_tar, open_tar, read_members
from jobs.scan.input.manifest import ManifestRow, RowError, is_storable
from jobs.scan.input.tables.columns import NO_OPTIONS, TableOptions

_MOST_WAITING = 100_000
"""Samples that wait for a text. A tar whose members are not sorted has their texts far behind their pictures."""
_WINDOW = 256
"""Samples that wait, with picture and text, for more members of theirs."""
_MOST_DONE = 2**19
"""Samples that are done and whose names are kept, to know a member that comes too late."""
_MOST_WAITING_BYTES = 2**26


@dataclass
class _Sample:
    """Members of a tar whose names agree up to the first dot."""

    key: str
    """The names up to the first dot."""
    names: set[str] = field(default_factory=set)
    pictures: list[Member] = field(default_factory=list)
    texts: list[tuple[str, bytes | RowError]] = field(default_factory=list)
    """Names of texts and their bytes, which are decoded once it is known which text is taken."""
    bytes: int = 0
    comes_again: bool = False
    """True if a sample of this name was done before."""

    @property
    def is_late(self) -> bool:
        """True for members of a sample that was done before they came."""
        return self.comes_again and not (self.pictures and self.texts)


@dataclass(frozen=True)
class Shards:
    """Tars of pictures and texts, read one after the other in the order of their names."""

    address: Address
    listing: Listing
    options: TableOptions = NO_OPTIONS
    notes: tuple[str, ...] = ()

    kind = "shards"

    def tars(self) -> list[FileInfo]:
        """Return every tar, in the order of the names."""
        meant = (info for info in self.address.files() if self.address.is_meant(info))
        return sorted((i for i in meant if self.address.role_of(i) is Role.TAR), key=lambda info: info.location)

    def files(self, limit: int | None = None) -> Iterator[FileInfo]:
        """Return the files that are read."""
        del limit
        return iter(self.tars())

    def rows(self, limit: int | None = None) -> Iterator[ManifestRow]:
        """Return a row for each picture of each tar. A tar that cannot be read, or not to its end, adds a row."""
        del limit  # rows are read as they are taken
        tars = self.tars()
        for number, tar in enumerate(tars):
            prefix = f"{self.address.name_of(tar)}/" if len(tars) > 1 else ""
            yield from tar_rows(tar, number << PART_BITS, prefix, self.options)

    def check(self) -> None:
        """Raise `InputNotFound` for a first tar that is none, and if none of its first pictures has a text."""
        tar = self.tars()[0]
        try:
            with open_tar(tar) as read:
                check_tar(tar, read)
        except BrokenTar as error:
            raise InputNotFound(str(error)) from error
        rows = list(islice(tar_rows(tar, 0, "", self.options), FIRST_PICTURES))
        if not any(row.image_uri for row in rows):
            reason = next((f": {row.row_error}" for row in rows if row.row_error), "")
            raise InputNotFound(f"{tar.location} holds no picture that can be read{reason}")
        if self.options.texts and not any(row.text or row.metadata or row.warnings for row in rows):
            if errors := [row.row_error for row in rows if row.row_error]:
                raise InputNotFound(f"none of the first {len(rows)} pairs of {tar.location} can be read: {errors[0]}")
            raise InputNotFound(
                f"{tar.location} has no texts: none of its first {len(rows)} pictures has a member of the same name "
                f"that ends in {', '.join(TEXT_SUFFIXES)}. Add the texts, or have captions made"
            )

    def describe(self) -> dict[str, Any]:
        """Return what a short look at the tars found."""
        taken = self.listing[Role.TAR]
        names = [self.address.name_of(info) for info in taken[:20]]
        found = self.listing.describe(taken)
        return found | {"parts": {"tar": len(taken)}, "first_parts": names, "notes": list(self.notes)}


def tar_rows(tar: FileInfo, first: int, prefix: str, options: TableOptions) -> Iterator[ManifestRow]:
    """Return a row for each picture of a tar, in its order.

    Args:
        tar: The tar.
        first: Number of its first row.
        prefix: Text before the name of each member, so that names in several tars differ.
        options: What a person said about texts. Pictures that need none wait for none.
    """
    number = first
    try:
        with open_tar(tar) as read:
            for sample in _samples(tar, read, needs_texts=options.texts):
                if sample.is_late:
                    yield from _late_rows(number, sample, prefix)
                    number += max(1, len(sample.pictures))
                    continue
                texts = texts_by_name((name, (name, text)) for name, text in sample.texts)
                for picture in sample.pictures:
                    text = _text_of(find_texts(picture.name, texts, sample.key), options)
                    yield _member_row(number, tar, picture, text, prefix)
                    number += 1
    except BrokenTar as error:
        yield ManifestRow(row_id=number, custom_id=f"{prefix}#end", row_error=f"{tar.location}: {error}")
    except StorageError as error:
        if error.retryable:
            raise
        yield ManifestRow(row_id=number, custom_id=f"{prefix}#end", row_error=str(error))


def _samples(tar: FileInfo, read: ReadAt, *, needs_texts: bool) -> Iterator[_Sample]:
    """Yield the samples of a tar, each after a window of others: its members need not stand together.

    A sample whose text has not come waits for longer, and so do the samples after it.
    """
    waiting: OrderedDict[int, _Sample] = OrderedDict()
    numbers: dict[str, int] = {}
    done: OrderedDict[str, None] = OrderedDict()
    held, number, last = 0, 0, ""
    broken = None
    try:
        for member in read_members(tar, read):
            folder, name = posixpath.split(member.name)
            key = posixpath.join(folder, name.partition(".")[0])
            suffix = posixpath.splitext(name)[1].lower()
            is_text = suffix in TEXT_SUFFIXES
            if name.startswith(".") or not (is_text or suffix in PICTURE_SUFFIXES):
                continue
            if key != last:
                last = key
                while waiting and _may_leave(next(iter(waiting.values())), len(waiting), held, needs_texts):
                    first, sample = waiting.popitem(last=False)
                    if numbers.get(sample.key) == first:
                        del numbers[sample.key]
                    held -= sample.bytes
                    done[sample.key] = None
                    if len(done) > _MOST_DONE:
                        done.popitem(last=False)
                    yield sample
            # A name that comes again begins another sample, as in tars that were joined.
            if key not in numbers or member.name in waiting[numbers[key]].names:
                number += 1
                numbers[key] = number
                waiting[number] = _Sample(key, comes_again=needs_texts and key in done)
            sample = waiting[numbers[key]]
            sample.names.add(member.name)
            if is_text:
                sample.texts.append((member.name, _read_member(member, read)))
                size = min(member.size, MAX_TEXT_BYTES)
                sample.bytes, held = sample.bytes + size, held + size
            else:
                sample.pictures.append(member)
    except BrokenTar as error:
        broken = error
    yield from waiting.values()
    if broken:
        raise broken


def _may_leave(sample: _Sample, waiting: int, held: int, needs_texts: bool) -> bool:
    """Return True if the first sample that waits has waited long enough for more members, or if too many wait."""
    is_whole = bool(sample.pictures) and (bool(sample.texts) or not needs_texts)
    return (is_whole and waiting > _WINDOW) or waiting > _MOST_WAITING or held > _MOST_WAITING_BYTES


def _read_member(member: Member, read: ReadAt) -> bytes | RowError:
    if member.problem:
        return b"" if member.size == 0 else RowError(f"the text {member.name}: {member.problem}")
    if member.size > MAX_TEXT_BYTES:
        return RowError(f"the text {member.name} has {member.size} bytes; the limit is {MAX_TEXT_BYTES}")
    return read(member.offset, member.size)


def _text_of(found: Sequence[tuple[str, bytes | RowError]], options: TableOptions) -> Text | RowError | None:
    """Return the first text of a picture, with the JSON member beside it as metadata."""
    if not found:
        return None
    (name, data), *others = found
    try:
        if isinstance(data, RowError):
            raise data
        text = parse_lone_text(data, name, options)
    except RowError as error:
        return error
    beside = next(((name, data) for name, data in others if name.lower().endswith(".json")), None)
    if beside is None or text.metadata is not None:
        return text
    name, data = beside
    try:
        if isinstance(data, RowError):
            raise data
        metadata = parse_metadata(data, name)
    except RowError as error:
        return Text(text.text, [*text.warnings, str(error)])
    return Text(text.text, text.warnings + metadata.warnings, metadata.metadata)


def _late_rows(row_id: int, sample: _Sample, prefix: str) -> Iterator[ManifestRow]:
    """Yield error rows for members that stand too far behind the others of their sample."""
    names = [picture.name for picture in sample.pictures] or [sample.texts[0][0]]
    for number, name in enumerate(names):
        problem = (
            f"the member {name!r:.200} stands too far behind the other members of its sample "
            f"{sample.key!r:.200}, which was read without it. Sort the members by name (tar --sort=name)."
        )
        yield ManifestRow(row_id=row_id + number, custom_id=prefix + name.removeprefix("./"), row_error=problem)


def _member_row(row_id: int, tar: FileInfo, picture: Member, text: Text | RowError | None, prefix: str) -> ManifestRow:
    row = ManifestRow(row_id=row_id, custom_id=prefix + picture.name.removeprefix("./"))
    if not is_storable(picture.name):
        row.row_error = f"the name of the member is not UTF-8: {picture.name.encode(errors='surrogateescape')!r:.200}"
    elif picture.problem:
        row.row_error = f"the picture {picture.name} of {tar.location} is not read: {picture.problem}"
    elif isinstance(text, RowError):
        row.row_error = str(text)
    elif text is not None:
        row.text, row.warnings, row.metadata = text.text, list(text.warnings), text.metadata
    if row.row_error is None:
        row.image_uri, row.image_version = tar.location.uri, tar.version
        row.image_offset, row.image_length = picture.offset, picture.size
    return row
