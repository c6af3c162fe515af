"""Inputs of a scan, each a stream of manifest rows. What lies at the address decides how it is read.

    a file of records   JSON, JSON lines, CSV or Parquet                                     tables.py
    tables in parts     a folder of them, or a pattern such as 'part-*.jsonl'                parts.py
    pictures            a folder or a pattern; each has a text file of the same name         folders.py
    tars                one, a folder of them, or a pattern; pictures and texts are members  shards.py
    an S3 Inventory     its manifest.json                                                    inventory.py

Where two of these could be meant, nothing is read, and the error says how to name one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import pyarrow as pa

from asap.errors import AsapError
from asap.preprocessing.formats import STARTS
from asap.storage.fetch import ByteRange, FetchSettings, fetch
from asap.storage.files import exists, file_info
from asap.storage.fingerprint import file_fingerprint, files_fingerprint
from asap.storage.location import FileInfo, Location, without_query
from jobs.errors import InputNotFound
from jobs.scan.input.files.folders import PictureFolder
from jobs.scan.input.files.globs import find_glob
from jobs.scan.input.files.inventory import Inventory, find_inventory
from jobs.scan.input.files.listing import Address, Listing, Role, list_address, role_of, suffix_of
from jobs.scan.input.files.parts import SPLITS, TableParts, choose_parts, kind_of, place
from jobs.scan.input.files.shards import Shards
from jobs.scan.input.manifest import ManifestRow, row_tables
from jobs.scan.input.tables.record_files import record_file
from jobs.scan.input.tables.table import NO_OPTIONS, Table, TableOptions, understand_table

_READ = "Give a table (.json, .jsonl, .csv, .parquet), tars, or a folder of pictures with texts"
_FIRST_ROWS = 20
_MOST_FOLDERS = 16
_SNIFFED = 20
_OTHER_STORES = {
    "gs": "Write s3://BUCKET/KEY, with AWS_ENDPOINT_URL=https://storage.googleapis.com and HMAC keys",
    "s3a": "Write it as s3://",
    "s3n": "Write it as s3://",
    "hf": "Download it (hf download REPOSITORY --repo-type dataset --local-dir FOLDER) and give the folder",
    "az": "Copy it to a disk or to a store that speaks S3 (azcopy copy)",
}
_OTHER_STORES |= dict.fromkeys(("abfs", "abfss", "wasb", "wasbs", "adl"), _OTHER_STORES["az"])
_OTHER_STORES |= dict.fromkeys(
    ("http", "https", "ftp"), "Addresses of the web are not read. Download it and give the file"
)
_S3_HOST = re.compile(
    r"https?://(?:(?P<host>[\w.-]+)\.s3[.-][\w.-]*amazonaws\.com|s3[.\w-]*\.amazonaws\.com/(?P<bucket>[^/]+))/(?P<key>[^?]+)"
)
_ADVICE = {
    ".zip": "Unpack it (unzip) and give the folder",
    ".7z": "Unpack it (7z x) and give the folder",
    ".rar": "Unpack it (unrar x) and give the folder",
    ".txt": "If it is a table, name it .csv or .tsv",
    ".xlsx": "Save it as CSV",
    ".xls": "Save it as CSV",
    ".arrow": "Write it as Parquet (datasets.load_from_disk(FOLDER).to_parquet(FILE))",
    ".tfrecord": "Write the pictures and texts to tars or to a folder",
}
_ADVICE |= dict.fromkeys(
    (".feather", ".orc", ".avro", ".pkl", ".pickle", ".h5", ".hdf5", ".npz", ".mdb", ".sqlite", ".db", ".xml"),
    "Export it to Parquet, CSV or JSON lines",
)
_PIECE = re.compile(r".+\.(csv|tsv|jsonl|json)[.-]?([0-9]+|[a-z]{2,3})", re.IGNORECASE)
"""Names that `split` gives to the pieces of a table."""
_LAKES = {"Delta Lake": "_delta_log", "Hudi": ".hoodie", "Iceberg": ".metadata.json"}
_LAKE = re.compile(r"(^|/)(_delta_log|\.hoodie)/|(^|/)metadata/[^/]+\.metadata\.json$")
_UNPACK_TARS = "Their members cannot be read one by one. Unpack them (gunzip, bunzip2 or zstd -d) to .tar"
_MAX_NAME, _MAX_PATH = 255, 4096
"""Bytes of a local name and of a local path."""
_HEAD = 64
"""Bytes at the beginning of a file that show what it is."""
_PICTURE = re.compile(b"|".join(filter(None, (starts.bare for starts in STARTS.values()))), re.DOTALL)
"""The first bytes of pictures. Whether one can be decoded shows when it is."""


class Content(Protocol):
    """The files of an input, as manifest rows."""

    @property
    def kind(self) -> str:
        """The kind of the input, for `job.json`."""

    def rows(self, limit: int | None = None) -> Iterator[ManifestRow]:
        """Return the rows, in an order that stays. Later rows than `limit` are not needed."""

    def files(self, limit: int | None = None) -> Iterator[FileInfo]:
        """Return the files that are read."""

    def describe(self) -> dict[str, Any]:
        """Return what a short look found."""


@dataclass(frozen=True)
class Source:
    """An input that exists, and how to read it."""

    location: Location
    content: Table | Content
    limit: int | None = None
    """Read only the first so many rows."""
    info: FileInfo | None = None
    """The file, as it was found; None for an input of several files."""

    @property
    def kind(self) -> str:
        """The kind of the input: json, jsonl, csv … for tables, or folder, shards, inventory."""
        return self.content.kind

    def fingerprint(self) -> str:
        """Return a string that changes when the input does."""
        if isinstance(self.content, Table):
            return file_fingerprint(cast("FileInfo", self.info))  # a table is one file
        return files_fingerprint(self.content.files(self.limit))

    def describe(self) -> dict[str, Any]:
        """Return what was understood of the input, for `asap plan` and `job.json`."""
        if not isinstance(self.content, Table):
            kind = "tables" if isinstance(self.content, TableParts) else self.kind
            return {"kind": kind} | self.content.describe()
        files = {"count": 1, "bytes": self.info.size if self.info else 0}
        return {"kind": "table", "files": files, "tables": [self.content.describe()]}

    def rows(self) -> Iterator[ManifestRow]:
        """Return every row of the input, in its order."""
        rows = self.content.rows() if isinstance(self.content, Table) else self.content.rows(self.limit)
        return islice(rows, self.limit)

    def tables(self) -> Iterator[pa.Table]:
        """Return the same rows as small tables of `MANIFEST_SCHEMA`, for `write_manifest`. Rows may lack names."""
        if not isinstance(self.content, Table | TableParts):
            yield from row_tables(self.rows())
            return
        left = self.limit
        for table in self.content.tables():
            if left is not None and left <= table.num_rows:
                yield table.slice(0, left)
                return
            yield table
            left = None if left is None else left - table.num_rows


def find_source(text: str, limit: int | None = None, options: TableOptions = NO_OPTIONS) -> Source:
    """Return the input at an address.

    Raises `InputNotFound` or `StorageError` if there is nothing that can be scanned.

    Args:
        text: A path, an s3:// address, or one with wildcards.
        limit: Read only the first so many rows.
        options: What a person said about the tables of the input.
    """
    if not text.strip():
        raise InputNotFound(f"the input is empty. {_READ}")
    _refuse_other_stores(text)
    location = Location.parse(text)
    if _is_too_long(location):
        # A pattern may be longer than the names that it means.
        if (glob := find_glob(location)) is None or _is_too_long(glob.folder):
            raise InputNotFound(f"the path {text!r:.100} is longer than a path can be: {len(text)} characters. {_READ}")
        return Source(location, _content(list_address(Address(location, glob.folder, glob)), options), limit)
    if info := file_info(location):
        return Source(location, _file(info, options), limit, info)
    if not location.is_s3 and Path(location.uri).exists() and not Path(location.uri).is_dir():
        raise InputNotFound(f"{location} is neither a file nor a folder. {_READ}")
    address = Address(location, location)
    listing = list_address(address)
    if not any(listing.files.values()) and (glob := find_glob(location)):
        address = Address(location, glob.folder, glob)
        listing = list_address(address)
    return Source(location, _content(listing, options), limit)


def _is_too_long(location: Location) -> bool:
    """Return True for a local path that no file system takes."""
    parts = [os.fsencode(part) for part in location.uri.split("/")]
    return not location.is_s3 and (max(map(len, parts)) > _MAX_NAME or sum(map(len, parts)) + len(parts) > _MAX_PATH)


def _refuse_other_stores(text: str) -> None:
    """Raise `InputNotFound` for addresses of stores that are not read, with what to do instead."""
    scheme = re.match(r"([a-zA-Z][\w+.-]+):/", text)
    if scheme and (advice := _OTHER_STORES.get(scheme[1].lower())):
        if match := _S3_HOST.match(text):
            advice = f"Write s3://{match['host'] or match['bucket']}/{match['key']}"
        raise InputNotFound(f"{without_query(text)!r:.300} is not read; paths, file:// and s3:// are. {advice}")
    if re.match(r"[a-zA-Z]:\\|\\\\", text) and not Path(text).exists():
        raise InputNotFound(f"{text!r:.300} is a path of Windows. Give the path that it has on this machine")


def _file(info: FileInfo, options: TableOptions) -> Table | Content:
    """Return the content of a single file."""
    location = info.location
    if (file := record_file(location.name)) is not None:
        if file.kind == "json" and not file.packed and (inventory := find_inventory(info, options)):
            inventory.check()
            return inventory
        return understand_table(info, file.kind, options)
    role = role_of(location.name)
    if role is Role.TAR:
        return _shards(list_address(Address(location, location.parent, only=info)), options)
    if role is Role.PACKED_TAR:
        raise InputNotFound(f"{location} is a compressed tar. {_UNPACK_TARS}")
    if role is Role.PICTURE:
        raise InputNotFound(f"{location} is a picture. Give its folder, or judge one pair with `asap detect`")
    suffix = location.name[location.name.rfind(".") :].lower()
    raise InputNotFound(f"{location} is a file of another kind. {_ADVICE.get(suffix, _READ)}")


def _content(listing: Listing, options: TableOptions) -> Content:
    """Return the content of a folder, or of the files with a pattern. Raises `InputNotFound` if it could be several."""
    where = listing.address.location
    _refuse_lakes(listing)
    _name_companions(listing)
    has_bare = not listing[Role.PICTURE] and _are_pictures(listing[Role.BARE])
    pictures = listing[Role.BARE] if has_bare else listing[Role.PICTURE]
    tars, tables = listing[Role.TAR], listing[Role.TABLE]
    folder = PictureFolder(listing.address, has_bare, listing, options)
    if tables and (content := _tables(listing, folder, pictures, options)):
        return content
    if tars and pictures:
        raise InputNotFound(
            f"{where} holds {_count(tars, 'tar')} and {_count(pictures, 'picture')}, and either may be meant. Give "
            f"{_pattern(listing, tars[0])} or {_pattern(listing, pictures[0])}, in quotes"
        )
    if tars:
        return _shards(listing, options)
    if pictures:
        if options.texts:
            folder.check_texts()
        return folder
    if listing[Role.PACKED_TAR]:
        raise InputNotFound(f"{where} holds {_count(listing[Role.PACKED_TAR], 'compressed tar')}. {_UNPACK_TARS}")
    raise InputNotFound(f"{where} {_describe_nothing(listing)}")


def _tables(
    listing: Listing, folder: PictureFolder, pictures: Sequence[FileInfo], options: TableOptions
) -> Content | None:
    """Return the content of a folder that holds tables; None if its pictures or tars are meant."""
    where = listing.address.location
    by_kind: dict[str, list[FileInfo]] = {}
    for info in listing[Role.TABLE]:
        by_kind.setdefault(kind_of(info) or "", []).append(info)
    found: dict[str, TableParts] = {}
    reasons: list[InputNotFound] = []
    others: dict[FileInfo, InputNotFound] = {}
    for kind, infos in by_kind.items():
        if kind == "json" and (
            inventories := list(filter(None, (find_inventory(info, options) for info in infos[:_FIRST_ROWS])))
        ):
            return _inventory(listing, inventories)
        try:
            first, no_pairs = choose_parts(listing.address, infos, kind, options)
        except InputNotFound as error:
            reasons.append(error)
            continue
        by_kind[kind] = [info for info in infos if info not in no_pairs]
        others |= no_pairs
        # Where pictures lie too, the parts are those that the listing holds: it goes through all folders at the top.
        only = tuple(by_kind[kind]) if listing.is_complete or pictures or listing[Role.TAR] else None
        left_out = frozenset(info.location for info in no_pairs)
        folders = tuple(dict.fromkeys(info.location.parent for info in pictures))[:_MOST_FOLDERS]
        first = place(first, folders, options)
        found[kind] = TableParts(listing.address, kind, listing, first, options, only, left_out, folders)
    beside = pictures or listing[Role.TAR]
    naming = {kind: parts for kind, parts in found.items() if not beside or _names_files_here(parts, listing)}
    chosen = naming or found
    if len(chosen) > 1:
        files = "; ".join(f"{kind}: {_names(listing, by_kind[kind])}" for kind in chosen)
        raise InputNotFound(
            f"{where} holds tables of different kinds ({files}), and one is read. Give the file, or a pattern such as "
            f"{_pattern(listing, by_kind[next(iter(chosen))][0])}, in quotes"
        )
    if not chosen:
        if not beside:
            raise reasons[0]
        if listing[Role.TAR] or not options.texts or folder.has_texts():
            return None
        raise InputNotFound(
            f"{where} holds no table that can be read, and none of its pictures has a text beside it: {reasons[0]}"
        ) from reasons[0]
    kind, parts = next(iter(chosen.items()))
    if beside and not naming and (listing[Role.TAR] or not options.texts or folder.has_texts()):
        counted = _count(beside, "tar" if listing[Role.TAR] else "picture")
        raise InputNotFound(
            f"{where} holds {_names(listing, by_kind[kind])}, and {counted} that its first records do not name; either "
            f"may be meant. Give {parts.first.location}, or a pattern such as {_pattern(listing, beside[0])}, in quotes"
        )
    notes = tuple(_table_notes(listing, kind, by_kind, others, pictures, named=bool(naming)))
    return replace(parts, notes=notes, names_files=bool(beside and naming))


def _table_notes(
    listing: Listing,
    kind: str,
    by_kind: dict[str, list[FileInfo]],
    others: Mapping[FileInfo, InputNotFound],
    pictures: Sequence[FileInfo],
    *,
    named: bool,
) -> Iterator[str]:
    """Yield sentences about what was chosen among the files of a folder."""
    if len(by_kind[kind]) > 1:
        splits = dict.fromkeys(SPLITS.findall(" ".join(map(listing.address.name_of, by_kind[kind])).lower()))
        of_splits = f", of the splits {', '.join(splits)}" if len(splits) > 1 else ""
        yield f"All {len(by_kind[kind])} tables are read{of_splits}: {_names(listing, by_kind[kind])}."
    if pictures:
        yield (
            "Pictures are read as the tables name them, and not all that lie in the folder."
            if named
            else "The first records of the table name no picture of the folder."
        )
    if left_out := [*others, *(info for other, infos in by_kind.items() if other != kind for info in infos)]:
        reason = f" ({next(iter(others.values()))!s:.400})" if others else ""
        yield f"Not read as tables of pairs: {_names(listing, left_out)}{reason}."
    for suffix in (".zip", ".7z", ".rar"):
        if packed := [info for info in listing[Role.OTHER] if suffix_of(info) == suffix]:
            yield f"{_names(listing, packed)} is not read. {_ADVICE[suffix]}, if its pictures are meant."


def _inventory(listing: Listing, inventories: Sequence[Inventory]) -> Content:
    if len(inventories) > 1:
        raise InputNotFound(
            f"{listing.address.location} holds {len(inventories)} inventories of S3. Give the manifest.json of one, "
            f"such as {inventories[-1].location}"
        )
    inventories[0].check()
    return inventories[0]


def _shards(listing: Listing, options: TableOptions) -> Shards:
    packed = listing[Role.PACKED_TAR]
    notes = (f"{_count(packed, 'compressed tar')} left out. {_UNPACK_TARS}.",) if packed else ()
    shards = Shards(listing.address, listing, options, notes)
    shards.check()
    return shards


def _name_companions(listing: Listing) -> None:
    """Take those files for no tables that describe a picture, a tar or a folder of the same name beside them."""
    pictures, tars = (
        {form for info in listing[role] for form in (info.location.uri, info.location.uri.rpartition(".")[0])}
        for role in (Role.PICTURE, Role.TAR)
    )
    folders = {info.location.parent.uri for info in listing[Role.PICTURE]}
    texts: list[FileInfo] = []
    others: list[FileInfo] = []
    for info in listing[Role.TABLE]:
        stem = info.location.uri.rpartition(".")[0]
        if stem in pictures:
            (texts if info.location.uri.lower().endswith(".json") else others).append(info)
        elif stem in tars or stem in folders:
            others.append(info)
    listing.move(texts, Role.TEXT)
    listing.move(others, Role.OTHER)


def _names_files_here(parts: TableParts, listing: Listing) -> bool:
    """Return True if one of the first rows names a file below the folder."""
    below = listing.address.folder.uri.rstrip("/") + "/"
    for row in islice(parts.first.rows(), _FIRST_ROWS):
        if row.image_uri and row.image_uri.startswith(below) and exists(Location(row.image_uri)):
            return True
    return False


def _are_pictures(files: Sequence[FileInfo]) -> bool:
    """Return True if most of the first of some files begin as pictures do."""
    first = files[:_SNIFFED]
    found = 0
    for info in first:
        with suppress(AsapError):
            head = fetch(info.location.uri, _HEAD, FetchSettings(), ByteRange(0, _HEAD)).data
            found += _PICTURE.match(head) is not None
    return 2 * found > len(first)


def _refuse_lakes(listing: Listing) -> None:
    """Raise `InputNotFound` for a table that keeps removed rows in its files, and a log of what is valid."""
    for info in listing[Role.STRAY] + listing[Role.TABLE]:
        name = listing.address.name_of(info)
        if listing.address.glob is None and (match := _LAKE.search(name)):
            lake = next(kind for kind, mark in _LAKES.items() if mark in match[0])
            raise InputNotFound(
                f"{listing.address.location} is a table of {lake}, whose files may hold rows that were deleted. Export "
                "it to Parquet, or give a pattern such as '*.parquet' to read every file"
            )


def _describe_nothing(listing: Listing) -> str:
    others = [
        info for role in (Role.OTHER, Role.TEXT, Role.BARE) for info in listing[role] if listing.address.is_meant(info)
    ]
    if listing.address.glob and not others:
        return f"matches no file that is read. {_READ}"
    if not any(listing.files.values()):
        return f"is not there, or holds nothing. {_READ}"
    if pieces := [info for info in others if _PIECE.fullmatch(info.location.name)]:
        advice = f"{_names(listing, pieces)} look like pieces of a table: join them (cat) to one file"
    elif listing[Role.BARE] and len(listing[Role.BARE]) == len(others):
        advice = "Name tables by what they are (part-00000.jsonl, part-00000.csv)"
    else:
        advice = next((_ADVICE[suffix] for suffix in map(suffix_of, others) if suffix in _ADVICE), _READ)
    if listing.address.glob:
        return f"matches no table, picture or tar, but {_names(listing, others)}. {advice}"
    return f"holds no table, picture or tar, but {listing.sentence()}. {advice}"


def _count(files: Sequence[FileInfo], name: str) -> str:
    return f"{len(files)} {name}{'' if len(files) == 1 else 's'}"


def _names(listing: Listing, files: Sequence[FileInfo]) -> str:
    """Return the names of the first of some files, for a message."""
    names = [listing.address.name_of(info) for info in files[:3]]
    return ", ".join(names) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _pattern(listing: Listing, info: FileInfo) -> str:
    """Return a pattern that a file and others of its kind have."""
    suffix = info.location.name[info.location.name.rfind(".") :] if "." in info.location.name else ""
    deep = "**/" if "/" in listing.address.name_of(info) else ""
    return f"'{listing.address.folder.uri.rstrip('/')}/{deep}*{suffix}'"
