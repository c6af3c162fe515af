"""Reads captions and explanations from the folder that `asap annotate` writes.

`captions.json` in that folder maps ids to sentences, as published. The rows in `annotations/` say more: the picture and
the text of each pair, so that pairs that share an id are told apart. They are read here.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asap.corpus.descriptions import Descriptions, Entry, Kind
from asap.corpus.picture_index import canonical
from asap.errors import CorpusError
from asap.storage.failures import storage_errors
from asap.storage.files import exists, list_files, open_seekable
from asap.storage.location import Location

_SUMMARY = "annotations.json"
_COLUMNS = ["row_id", "custom_id", "given_id", "image_uri", "image_name", "text", "text_escapes"]
_ROWS_AT_ONCE = 2**12


def find_annotations(*places: str) -> Location | None:
    """Return the first of these places that is a folder of annotations; None if none is.

    Raises `CorpusError` for a folder whose job is not done.
    """
    for place in places:
        if posixpath.splitext(place)[1] in (".json", ".jsonl", ".ndjson"):
            continue
        location = Location.parse(place)
        if exists(location / _SUMMARY):
            return location
        if exists(location / "job.json"):
            raise CorpusError(f"{location} holds no {_SUMMARY}: its job is not done. Run `asap resume {location}`.")
    return None


def read_annotations(folder: Location, kind: Kind) -> Descriptions:
    """Return the captions or explanations of a folder of annotations.

    Raises `CorpusError` if the job wrote none of this kind, `StorageError` for a file that cannot be read.
    """
    found = Descriptions(str(folder), kind, ((None, entry) for row in _rows(folder, kind) for entry in _of(row, kind)))
    if found.is_empty:
        raise CorpusError(f"{folder} holds no {kind}s. Give a folder whose job wrote some, or leave {kind}s out.")
    return found


def _rows(folder: Location, kind: Kind) -> Iterator[Mapping[str, Any]]:
    for info in list_files(folder / "annotations"):
        if not info.location.name.endswith(".parquet") or info.location.name.startswith("."):
            continue
        with storage_errors(info.location), open_seekable(info.location) as stream:
            try:
                for batch in pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE, columns=[*_COLUMNS, kind]):
                    yield from batch.to_pylist()
            except (pa.ArrowInvalid, KeyError) as error:
                raise CorpusError(f"{info.location} cannot be read as a file of annotations: {error}") from error


def _of(row: Mapping[str, Any], kind: Kind) -> Iterator[Entry]:
    """Yield the entries of a row: a caption under each name of its picture, an explanation with its text."""
    value = row[kind]
    if value is None:
        return
    is_unnamed = row["given_id"] is None and row["custom_id"].startswith(f"#{row['row_id']}")
    name = None if is_unnamed else row["given_id"] or row["custom_id"]
    images = ["/".join(canonical(image)) for image in (row["image_name"], row["image_uri"]) if image]
    if kind == "caption":
        yield from (Entry(value, name, image) for image in dict.fromkeys(images))
    elif not row["text_escapes"]:  # the stored text is the pair's
        # An explanation is of the text alone, so the picture is only its key, and only if there is no other.
        yield Entry(value, name, images[0] if name is None and images else None, row["text"])
