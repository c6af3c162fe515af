"""Inventories of S3: lists of the objects of a bucket, which S3 writes daily or weekly, read as manifest rows.

The `manifest.json` of an inventory names data files (CSV without a header, or Parquet) of some million keys each, in no
order. The keys of texts are kept as hashes, 8 bytes each; then each picture asks for its texts.
"""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain, islice
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asap.errors import StorageError
from asap.storage.failures import storage_errors
from asap.storage.files import file_info, open_read, open_seekable, read_bytes
from asap.storage.location import FileInfo, Location
from jobs.errors import InputNotFound
from jobs.scan.input.files.folders import FIRST_PICTURES, Pair, refuse_hopeless_texts, rows_of_pairs
from jobs.scan.input.files.listing import TEXT_SUFFIXES, Role, role_of
from jobs.scan.input.files.sidecars import LOOKED_FOR
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.tables.columns import NO_OPTIONS, TableOptions

_MAX_MANIFEST_BYTES = 2**24
_MOST_LOOKED_AT = 1_000_000
"""Objects that are looked at for a first picture and text."""
_BATCH = 2**16
_HEAD = 2**14
_FORMATS = ("CSV", "Parquet")


class _Object(NamedTuple):
    bucket: str
    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class Inventory:
    """The pictures that an inventory lists, as a source of manifest rows."""

    location: Location
    format: str
    """CSV or Parquet."""
    columns: Sequence[str]
    data: Sequence[Location]
    bytes: int
    source_bucket: str
    options: TableOptions = NO_OPTIONS

    kind = "inventory"

    def rows(self, limit: int | None = None) -> Iterator[ManifestRow]:
        """Return a row for each picture, in the order of the inventory."""
        rows = rows_of_pairs(self._pairs(), Location(f"s3://{self.source_bucket}"), self.options)
        return islice(rows, limit)

    def files(self, limit: int | None = None) -> Iterator[FileInfo]:
        """Return the files that are read."""
        del limit
        for location in (self.location, *self.data):
            if (info := file_info(location)) is None:
                raise InputNotFound(f"{self.location} names the data file {location}, which does not exist")
            yield info

    def check(self) -> None:
        """Raise `InputNotFound` if the first data file cannot be read, or the first pictures have no texts."""
        if (first := next(self._objects(), None)) is None:
            raise InputNotFound(f"{self.location} lists no object: nothing to scan")
        looked_at = islice(self._objects(), _MOST_LOOKED_AT)
        names = dict.fromkeys(Role, 0)
        for item in looked_at:
            names[role_of(item.key)] += 1
            if names[Role.PICTURE] and (names[Role.TEXT] or not self.options.texts):
                break
        if not names[Role.PICTURE]:
            raise InputNotFound(
                f"{self.location} lists no picture among its first {sum(names.values())} objects, such as "
                f"s3://{first.bucket}/{first.key}"
            )
        if not self.options.texts:
            return
        pairs = list(islice(self._pairs(), FIRST_PICTURES))
        if any(pair.text for pair in pairs):
            refuse_hopeless_texts(str(self.location), pairs, self.options)
        if not any(pair.text for pair in pairs):
            raise InputNotFound(
                f"{self.location} lists no texts of its first {len(pairs)} pictures. Looked for keys such as "
                f"{', '.join(LOOKED_FOR[:3])}. Have an inventory made that lists them too, or have captions made"
            )

    def describe(self) -> dict[str, Any]:
        """Return what the inventory's manifest says."""
        return {
            "files": {"count": len(self.data), "bytes": self.bytes},
            "parts": {self.format: len(self.data)},
            "columns": list(self.columns),
            "texts": {"looked_for": list(LOOKED_FOR)},
            "notes": [f"The objects are those of the bucket {self.source_bucket} at the time of the inventory."],
        }

    def _pairs(self) -> Iterator[Pair]:
        texts = _hashed(self._texts())
        pictures = (item for item in self._objects() if role_of(item.key) is Role.PICTURE)
        while batch := list(islice(pictures, 2**13)):
            names = [_text_names(f"{item.bucket}/{item.key}") for item in batch]
            known = iter(_are_in(_hash(list(chain.from_iterable(names))), texts))
            for item, candidates in zip(batch, names, strict=True):
                found = [name for name in candidates if next(known)]
                picture = FileInfo(Location(f"s3://{item.bucket}/{item.key}"), item.size, item.etag)
                text = FileInfo(Location(f"s3://{found[0]}"), 0, "") if found else None
                yield Pair(picture, text, max(0, len(found) - 1))

    def _texts(self) -> Iterator[str]:
        for item in self._objects():
            if posixpath.splitext(item.key)[1].lower() in TEXT_SUFFIXES:
                yield f"{item.bucket}/{item.key}"

    def _objects(self) -> Iterator[_Object]:
        """Yield the objects that are there: no older versions, no markers of a deletion, no folders."""
        for data in self.data:
            for record in self._csv(data) if self.format == "CSV" else self._parquet(data):
                named = dict(zip(self.columns, record, strict=False))
                gone = str(named.get("IsLatest", "")).lower() == "false"
                gone |= str(named.get("IsDeleteMarker", "")).lower() == "true"
                key = named.get("Key") or ""
                if key and not gone and not key.endswith("/"):
                    bucket = named.get("Bucket") or self.source_bucket
                    yield _Object(bucket, key, _size(named.get("Size")), named.get("ETag") or "")

    def _csv(self, data: Location) -> Iterator[Sequence[Any]]:
        key = self.columns.index("Key")
        try:
            with open_read(data) as file, storage_errors(data), TextIOWrapper(file, "utf-8", newline="") as text:
                for cells in csv.reader(text):
                    if len(cells) > key:
                        cells[key] = unquote_plus(cells[key])  # in CSV, and there only
                        yield cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputNotFound(f"{data}, a data file of the inventory, cannot be read: {error}") from error

    def _parquet(self, data: Location) -> Iterator[Sequence[Any]]:
        try:
            with storage_errors(data):
                file = pq.ParquetFile(open_seekable(data))
                names = {name.replace("_", "").lower(): name for name in file.schema_arrow.names}
                wanted = [names.get(column.lower()) for column in self.columns]
                for batch in file.iter_batches(_BATCH, columns=[name for name in wanted if name]):
                    columns = [batch[name].to_pylist() if name else [None] * len(batch) for name in wanted]
                    yield from zip(*columns, strict=True)
        except pa.ArrowException as error:
            raise InputNotFound(f"{data}, a data file of the inventory, cannot be read: {error}") from error


_COLUMNS = ("Bucket", "Key", "Size", "ETag", "IsLatest", "IsDeleteMarker")


def find_inventory(info: FileInfo, options: TableOptions) -> Inventory | None:
    """Return the inventory whose manifest a JSON file is; None if it is something else.

    Raises `InputNotFound` for an inventory that cannot be read.
    """
    if info.size > _MAX_MANIFEST_BYTES or b'"fileSchema"' not in _head(info):
        return None
    try:
        manifest = json.loads(read_bytes(info.location))
    except (ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not {"fileFormat", "fileSchema", "files"} <= set(manifest):
        return None
    if options.only_below is not None:
        # It names data files, pictures and texts of any bucket, which are read with the credentials of the cluster.
        raise InputNotFound(
            f"{info.location} is an S3 Inventory, which is not read for jobs that may read some prefixes only. Give a "
            "table, tars, or the folder of the pictures"
        )
    kind = next((name for name in _FORMATS if name.lower() == str(manifest["fileFormat"]).lower()), None)
    if kind is None:
        raise InputNotFound(
            f"{info.location} is an S3 Inventory of the format {manifest['fileFormat']!r:.50}, which is not read. Set "
            f"its format to {' or '.join(_FORMATS)}"
        )
    columns: Sequence[str] = _COLUMNS
    if kind == "CSV":
        columns = [name.strip() for name in str(manifest["fileSchema"]).split(",")]
    if "Key" not in columns:
        raise InputNotFound(
            f"{info.location} is an S3 Inventory without the column Key: {manifest['fileSchema']!r:.200}"
        )
    if not isinstance(manifest["files"], list):
        raise InputNotFound(
            f"{info.location} is an S3 Inventory whose files are no list: {manifest['files']!r:.100}. Copy it again"
        )
    files = [entry for entry in manifest["files"] if isinstance(entry, dict) and isinstance(entry.get("key"), str)]
    return Inventory(
        location=info.location,
        format=kind,
        columns=columns,
        data=_data_files(info.location, str(manifest.get("destinationBucket", "")), [entry["key"] for entry in files]),
        bytes=sum(entry["size"] for entry in files if isinstance(entry.get("size"), int)),
        source_bucket=str(manifest.get("sourceBucket", "")).rpartition(":")[2],
        options=options,
    )


def _size(value: Any) -> int:
    """Return the bytes of an object; 0 where the inventory does not say it, or says no number."""
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _head(info: FileInfo) -> bytes:
    """Return the first bytes of a file, where an inventory's manifest has its schema."""
    with open_read(info.location) as file:
        return file.read(_HEAD)


def _data_files(manifest: Location, bucket: str, keys: list[str]) -> list[Location]:
    """Return the locations of the data files: where the manifest says, or in data/ near it if it was copied."""
    if not keys:
        return []
    bucket = bucket.rpartition(":")[2]
    near = [manifest.parent.parent / "data", manifest.parent / "data", manifest.parent]
    copied = [[folder / posixpath.basename(key) for key in keys] for folder in near]
    as_written = [[Location(f"s3://{bucket}/{key}") for key in keys]] if bucket else []
    for files in as_written + copied if manifest.is_s3 else copied + as_written:
        try:
            if file_info(files[0]):
                return files
        except StorageError:  # such as another account's bucket
            continue
    raise InputNotFound(
        f"{manifest} is an S3 Inventory whose data files are not there, such as {copied[0][0]}. Copy them to {near[1]}"
    )


def _text_names(picture: str) -> list[str]:
    """Return the names that the text of a picture may have, the first one first."""
    stem = posixpath.splitext(picture)[0]
    suffixes = [form for suffix in TEXT_SUFFIXES for form in (suffix, suffix.upper())]
    return [name + suffix for suffix in suffixes for name in (stem, picture)]


def _hashed(names: Iterator[str]) -> NDArray[np.uint64]:
    """Return the sorted hashes of some names. Two names share a hash once in 2^64."""
    hashes = [np.empty(0, np.uint64)]
    while batch := list(islice(names, _BATCH)):
        hashes.append(_hash(batch))
    return np.sort(np.concatenate(hashes))


def _hash(names: list[str]) -> NDArray[np.uint64]:
    import pandas as pd

    return pd.util.hash_array(np.array(names, dtype=object), categorize=False)


def _are_in(hashes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(hashes), bool)
    return known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
