"""The reuse store: a folder of Parquet files with the raw scores of pairs that earlier jobs judged.

A file holds pairs of one model and is never changed after it was written, so several jobs may add files at once. A job
reads the hashes of all keys when it starts, and the values of a pair when it has one of them.

Nothing of a file is trusted blindly. Its schema and what it says of itself are checked when it is listed, and its
values when they are read. A file that fails a check is named and not used again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asap.errors import StorageError
from asap.labels import IMAGE_TYPES, TYPES
from asap.storage.failures import storage_errors
from asap.storage.files import list_files, open_seekable, write_bytes
from asap.storage.location import Location
from jobs.scan.stages.pair_values import NOTHING, TEXT_WARNING, VALUE_SCHEMA, Found

STORE_VERSION = 1
STORE_SCHEMA = pa.schema(
    [
        # The first eight bytes of the key, in a column of its own: an index reads no more of a file.
        pa.field("hash", pa.uint64(), nullable=False),
        pa.field("key", pa.binary(32), nullable=False),
        *VALUE_SCHEMA,
    ]
)
_ABOUT = b"asap_pairs"
_GROUP_ROWS = 2**10
_GROUPS_KEPT = 64
"""Row groups that a detector keeps in memory. The next pairs are often in the same ones."""
_READERS = 16
_PAUSE_S = 60.0
"""Seconds for which a store that cannot be read is left alone."""
_LOG = logging.getLogger("asap.reuse")


def folder_of(store: Location, model_id: str, familiarity_id: str | None) -> Location:
    """Return the folder of the pairs of a model."""
    return store / f"model-{hashlib.sha256(json.dumps([model_id, familiarity_id]).encode()).hexdigest()[:16]}"


def _about(model_id: str, familiarity_id: str | None) -> dict[str, Any]:
    return {"version": STORE_VERSION, "model_id": model_id, "familiarity_id": familiarity_id}


def hashes_of(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """Return the hashes of keys of 32 bytes."""
    return np.frombuffer(b"".join(keys), "<u8").reshape(-1, 4)[:, 0].astype(np.uint64)


def write_pairs(folder: Location, keys: Sequence[bytes], values: pa.Table, model: tuple[str, str | None]) -> None:
    """Add a file of pairs to the folder of their model. Pairs that are written twice have one file.

    Args:
        folder: The folder of the model.
        keys: Their keys.
        values: Rows of `VALUE_SCHEMA`.
        model: Ids of the model and of its familiarity file.
    """
    columns = {"hash": pa.array(hashes_of(keys)), "key": pa.array(keys, pa.binary(32))}
    table = pa.table(columns | {name: values[name] for name in VALUE_SCHEMA.names}, STORE_SCHEMA)
    sink = pa.BufferOutputStream()
    about = {_ABOUT: json.dumps(_about(*model)).encode()}
    pq.write_table(table.replace_schema_metadata(about), sink, row_group_size=_GROUP_ROWS, compression="zstd")
    name = f"pairs-{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.parquet"
    write_bytes(folder / name, sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class StoreIndex:
    """The hashes of all pairs of a model in a store: 16 bytes a pair, which Ray shares among processes of a machine.

    Two keys share a hash once in 2^64. The whole key is compared when a value is read.
    """

    files: tuple[Location, ...]
    hashes: NDArray[np.uint64]
    """In ascending order, each once."""
    positions: NDArray[np.int64]
    """For each hash, the number of the file in its upper 32 bits, and the row in the lower ones."""

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the position of each hash, or -1."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        found = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[found] == hashes, self.positions[found], -1)


def read_index(folder: Location, model: tuple[str, str | None], notify: Callable[[str], None]) -> StoreIndex:
    """Read the hashes of the pairs of a model. Files that are broken or of another kind are named, and left out.

    Raises `StorageError` if the folder cannot be listed.

    Args:
        folder: The folder of the model.
        model: Ids of the model and of its familiarity file.
        notify: Receives a sentence about each file that is left out.
    """
    found = [info.location for info in list_files(folder) if info.location.name.endswith(".parquet")]
    listed = [location for location in found if not location.name.startswith(".")]  # others are drafts of writers
    files: list[Location] = []
    hashes: list[NDArray[np.uint64]] = []
    with ThreadPoolExecutor(_READERS) as readers:
        for location, read in zip(listed, readers.map(lambda each: _read_hashes(each, model), listed), strict=True):
            if isinstance(read, str):
                notify(f"{location} of the reuse store is not used: {read}")
                continue
            files.append(location)
            hashes.append(read)
    if not files:
        return StoreIndex((), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    positions = np.concatenate([(number << 32) + np.arange(len(each)) for number, each in enumerate(hashes)])
    unique, first = np.unique(np.concatenate(hashes), return_index=True)
    return StoreIndex(tuple(files), unique, positions[first])


def _read_hashes(location: Location, model: tuple[str, str | None]) -> NDArray[np.uint64] | str:
    """Return the hashes of a file, or the reason why it is not used."""
    try:
        with storage_errors(location), open_seekable(location) as stream:
            file = pq.ParquetFile(stream)
            if reason := _foreign(file, model):
                return reason
            return file.read(columns=["hash"])["hash"].to_numpy()
    except (pa.ArrowException, StorageError, OSError) as error:
        return f"it cannot be read: {' '.join(str(error).split())[:200]}"


def _foreign(file: pq.ParquetFile, model: tuple[str, str | None]) -> str | None:
    """Return the reason if a file is not one that `write_pairs` wrote for this model."""
    try:
        about = json.loads((file.schema_arrow.metadata or {}).get(_ABOUT, b"null"))
    except ValueError:
        about = None
    if about != _about(*model):
        return "it is not a file of pairs of this model and version"
    if not file.schema_arrow.equals(STORE_SCHEMA):
        return "its columns are not those of pairs"
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if any(rows != _GROUP_ROWS for rows in groups[:-1]) or any(rows > _GROUP_ROWS for rows in groups):
        return "its row groups are not those of pairs"
    return None


def unsound(values: pa.Table, has_familiarity: bool) -> str | None:
    """Return what is wrong with values of pairs, whatever their pictures and texts; None if nothing is.

    Args:
        values: Rows of `VALUE_SCHEMA`.
        has_familiarity: True if the model has a familiarity file, so that every pair has its familiarity.
    """
    types = {name: pc.struct_field(values["types"], name) for name in TYPES}
    shares = types | {name: values[name] for name in ("score", "text_read", "familiarity", "familiarity_image",
                                                      "familiarity_text")}  # fmt: skip
    shares["word_scores"] = pc.list_flatten(values["word_scores"])
    needed = ["score", *IMAGE_TYPES] + (["familiarity", "familiarity_image"] if has_familiarity else [])
    for name, column in shares.items():
        if not _within(column, 0, 1) or (name in (*needed, "word_scores") and column.null_count):
            return f"{name} is not a number from 0 to 1"
    for name in ("agreement_image_text", "agreement_image_caption", "agreement_text_caption"):
        if not _within(values[name], -1, 1):
            return f"{name} is not a number from -1 to 1"
    for name in ("x0", "y0", "x1", "y1"):
        side = pc.struct_field(values["raw_box_px"], name)
        if side.null_count or not _within(side, 0, 1e9):
            return "raw_box_px is not a box"
    warnings = pc.list_flatten(values["text_warnings"]).to_pylist()
    if any(one is None or not TEXT_WARNING.match(one) or len(one) > 1000 for one in warnings):
        return "text_warnings has a sentence that no text leads to"
    return None


def _within(column: Any, low: float, high: float) -> bool:
    """Return True if every value lies between the bounds. NaN does not, and null counts for nothing."""
    inside = pc.and_(pc.greater_equal(column, float(low)), pc.less_equal(column, float(high)))
    return bool(pc.all(inside, min_count=0).as_py())


class StoreReader:
    """Reads the values of pairs from a store. Threads may share it."""

    def __init__(self, index: StoreIndex, system: pafs.FileSystem, has_familiarity: bool) -> None:
        """Take over the index.

        Args:
            index: The index.
            system: The file system of the driver, since another process may lack its settings.
            has_familiarity: As in `unsound`.
        """
        self._index, self._system, self._has_familiarity = index, system, has_familiarity
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        self._refused: set[int] = set()
        self._away_until = 0.0

    def find(self, keys: Sequence[bytes]) -> tuple[Found, dict[bytes, str]]:
        """Return the values of those keys that the store has, and what was wrong with the files of others.

        Pairs of a store that cannot be read now are not found.
        """
        if not keys or time.monotonic() < self._away_until:
            return NOTHING, {}
        positions = self._index.find(hashes_of(keys))
        by_group: dict[tuple[int, int], list[tuple[bytes, int]]] = {}
        for row in np.flatnonzero(positions >= 0).tolist():
            number, place = divmod(int(positions[row]), 2**32)
            if number not in self._refused:
                by_group.setdefault((number, place // _GROUP_ROWS), []).append((keys[row], place % _GROUP_ROWS))
        if not by_group:
            return NOTHING, {}
        names: list[bytes] = []
        parts: list[pa.Table] = []
        wrong: dict[bytes, str] = {}
        with ThreadPoolExecutor(min(_READERS, len(by_group))) as readers:
            for ((number, _), wanted), read in zip(
                by_group.items(), readers.map(self._read_group, by_group), strict=True
            ):
                if isinstance(read, str):
                    wrong |= {key: self.refuse(number, read) for key, _ in wanted}
                if not isinstance(read, pa.Table):
                    continue
                # Two keys may share a hash: the whole key decides.
                rows = [(key, row) for key, row in wanted if row < len(read) and read["key"][row].as_py() == key]
                names += [key for key, _ in rows]
                parts.append(read.select(VALUE_SCHEMA.names).take(pa.array([row for _, row in rows], pa.int64())))
        return (Found(names, pa.concat_tables(parts)) if names else NOTHING), wrong

    def refuse_key(self, key: bytes, reason: str) -> str:
        """Use the file of a key no more; return a sentence that names it."""
        return self.refuse(int(self._index.find(hashes_of([key]))[0]) >> 32, reason)

    def refuse(self, number: int, reason: str) -> str:
        """Use a file no more; return a sentence that names it."""
        self._refused.add(number)
        return f"{self._index.files[number]} of the reuse store is not used: {reason}; the pair was judged"

    def _read_group(self, place: tuple[int, int]) -> pa.Table | str | None:
        """Return the rows of a row group, what is wrong with them, or None if the store cannot be read now."""
        with self._lock:
            if (kept := self._groups.get(place)) is not None:
                self._groups.move_to_end(place)
                return kept
        location = self._index.files[place[0]]
        path = f"{location.bucket}/{location.key}" if location.is_s3 else location.uri
        try:
            with storage_errors(location), self._system.open_input_file(path) as stream:
                table = pq.ParquetFile(stream).read_row_group(place[1])
        except pa.ArrowInvalid as error:
            return f"it cannot be read: {' '.join(str(error).split())[:200]}"
        except (StorageError, OSError) as error:
            if isinstance(error.__cause__ or error, FileNotFoundError):
                return "it was deleted"
            self._away_until = time.monotonic() + _PAUSE_S
            _LOG.warning("asap: the reuse store cannot be read, and pairs are judged: %s", error)
            return None
        if not table.schema.equals(STORE_SCHEMA):
            return "its columns are not those of pairs"
        if reason := unsound(table, self._has_familiarity):
            return reason
        with self._lock:
            self._groups[place] = table
            while len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        return table
