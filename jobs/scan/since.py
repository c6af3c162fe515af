"""A scan of what is new since an earlier job: rows that are the same there are copied from its results.

A row is the same if the address and the version of its picture and its text are. The version is the one in the
manifest. For an input that lists no versions, such as a table of addresses, each picture is asked for its version: a
HEAD request, or a look at the size and time of a local file, which costs less than to fetch and judge it.

Rows are found by hashes, 16 bytes a row of the earlier job, and compared as a whole before they are copied. The copies
go to the results before the pipeline starts, which then has the other rows to judge. A job that was stopped copies the
rows that are not yet in its results.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from asap.errors import ConfigError, StorageError
from asap.job_records.record import RESULTS_ENTRY, read_record
from asap.job_records.rows import results_file, results_files
from asap.policy import Policy
from asap.storage.failures import storage_errors
from asap.storage.files import file_info, list_files
from asap.storage.location import Location
from asap.storage.objects import head
from asap.storage.s3 import s3_client
from jobs.scan.input.manifest import complete_manifest
from jobs.scan.output.completeness import repair_results
from jobs.scan.output.job_folder import is_finished
from jobs.scan.stages.result_rows import CALLER_COLUMNS, RESULT_SCHEMA, RESULTS, SCHEMA_VERSION, write_table
from jobs.scan.stages.verdicts import reapply_policy

_ADDRESS = ("image_uri", "image_offset", "image_length", "image_encoding", "image_group", "image_row", "image_column",
            "text", "text_escapes")  # fmt: skip
"""Columns that, with the version, make two rows the same."""
_DECIDING = ("precision", "min_text_read", "max_image_bytes", "max_image_pixels", "captions", "explanations",
             "caption_pairs")  # fmt: skip
"""Settings that decide a row, whatever the input."""
_ETAG = re.compile(r"[0-9a-f]{32}(-\d+)?")
_NO_VERSION = "null"
"""The version id of objects from before their bucket kept versions, whatever their content."""
_RENAMED = re.compile(r"custom_id .* was used by an earlier row; ", re.DOTALL)
_ASKERS = 32
_ROWS_AT_ONCE = 2**13
_ROWS_PER_FILE = 2**16


def check_earlier_job(folder: Location, own: Location, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an earlier job whose rows can be those of this one, but for the policy.

    Raises `ConfigError` if it is another kind of job, is not finished, or has another model or other settings.

    Args:
        folder: Folder of the earlier job.
        own: Folder of this job.
        identity: Identity of this job.
    """
    record = read_record(folder)
    if record is None or record.get("kind") != "scan":
        raise ConfigError(f"--since {folder} is not the folder of a scan. Give the OUT/JOB of an earlier one.")
    if folder == own:
        raise ConfigError(f"--since {folder} is the folder of this scan. Give this one another --job.")
    if RESULTS_ENTRY in record or not is_finished(folder):
        raise ConfigError(f"--since {folder} is not finished. Run its command again, and wait for its end.")
    former, identity = record["identity"], json.loads(json.dumps(identity))  # the record was JSON too
    pairs = {
        name: (former.get(name), identity.get(name))
        for name in ("model_id", "familiarity_id", "captioner", "explainer")
    }
    settings = former["settings"], identity["settings"]
    pairs |= {name: (settings[0].get(name), settings[1].get(name)) for name in _DECIDING}
    if other := [f"{name} was {old!r} and is {new!r}" for name, (old, new) in pairs.items() if old != new]:
        raise ConfigError(
            f"--since {folder} was made otherwise: {'; '.join(other)}. Scan with its model and settings, or without "
            "--since."
        )
    return record


@dataclass(frozen=True)
class Earlier:
    """The rows of an earlier job that can be copied, found by their hashes."""

    files: tuple[Location, ...]
    hashes: NDArray[np.uint64]
    """In ascending order."""
    positions: NDArray[np.int64]
    """For each hash, the number of the file in its upper 32 bits, and the row in the lower ones."""
    has_version_ids: bool
    """True if pictures are in a bucket that keeps versions, so that their versions are not those of a listing."""

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the position of each hash, or -1."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        found = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[found] == hashes, self.positions[found], -1)


def read_earlier(results: Location) -> Earlier:
    """Read the hashes of the rows that can be copied: those with a version, and without an error that may pass."""
    files = tuple(results_files(results))
    hashes, positions = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    has_ids = False
    for number, location in enumerate(files):
        start = 0
        with results_file(location) as file:
            names = set(file.schema_arrow.names)
            columns = [name for name in _READ if name in names]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                rows = pa.Table.from_batches([batch])
                versions = _versions_to_copy(rows)
                kept = [row for row, version in enumerate(versions) if version is not None]
                hashes.append(_hashes(rows, versions)[kept])
                positions.append((number << 32) + start + np.array(kept, np.int64))
                has_ids = has_ids or _has_version_ids(rows)
                start += len(rows)
    joined = np.concatenate(hashes)
    order = np.argsort(joined, kind="stable")
    return Earlier(files, joined[order], np.concatenate(positions)[order], has_ids)


_READ = (*_ADDRESS, "image_version", "status", "retryable", "caption_error", "explanation_error")


def _versions_to_copy(rows: pa.Table) -> list[str | None]:
    """Return the version of each row's picture; None for rows that are not copied."""
    again = pc.and_(pc.equal(rows["status"], "error"), pc.fill_null(rows["retryable"], False))
    for name in ("caption_error", "explanation_error"):
        if name in rows.column_names:
            again = pc.or_(again, pc.fill_null(pc.struct_field(rows[name], "retryable"), False))
    again = pc.or_(again, pc.fill_null(pc.equal(rows["image_version"], _NO_VERSION), False))
    return pc.if_else(again, pa.scalar(None, pa.string()), rows["image_version"]).to_pylist()


def _has_version_ids(rows: pa.Table) -> bool:
    versions = rows.filter(pc.fill_null(pc.starts_with(rows["image_uri"], "s3://"), False))["image_version"]
    known = versions.drop_null().unique().to_pylist()
    return any(version != _NO_VERSION and _ETAG.fullmatch(version) is None for version in known)


def _identities(rows: pa.Table, versions: Sequence[str | None]) -> list[tuple[Any, ...]]:
    """Return the values that make rows the same. Columns that rows of earlier versions lack are null."""
    lists = [rows[name].to_pylist() if name in rows.column_names else [None] * len(rows) for name in _ADDRESS]
    return list(zip(*lists, versions, strict=True))


def _hashes(rows: pa.Table, versions: Sequence[str | None]) -> NDArray[np.uint64]:
    digests = (
        hashlib.blake2b(repr(identity).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for identity in _identities(rows, versions)
    )
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def copy_rows(
    folder: Location,
    earlier: Location,
    policy: Policy,
    run_id: str,
    is_same_policy: bool,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Copy the rows of a job that are the same in an earlier one to its results; return how many.

    Raises `StorageError` if a folder cannot be read or written.

    Args:
        folder: Folder of the job, with its manifest.
        earlier: Folder of the earlier job.
        policy: The policy of the job.
        run_id: Id of the run of the job.
        is_same_policy: True if the rows of the earlier job are under the policy.
        check: Called now and then; what it raises stops the work.
    """
    known = read_earlier(earlier / "results")
    done = repair_results(folder / "results")
    waiting: list[pa.Table] = []
    copied = 0
    for info in list_files(folder / "manifest"):
        with results_file(info.location) as file:
            for batch in file.iter_batches(_ROWS_PER_FILE):
                check()
                rows = complete_manifest(pa.Table.from_batches([batch]))
                rows = rows.filter(pa.array(~done.contains(rows["row_id"].to_numpy())))
                for copies in _copies(rows, known):
                    rows_now = copies.set_column(*_column(copies, "judged_run", run_id))
                    waiting.append(rows_now if is_same_policy else reapply_policy(rows_now, policy))
                    copied += len(copies)
                if sum(map(len, waiting)) >= _ROWS_PER_FILE:
                    _write(waiting, folder)
    _write(waiting, folder)
    return copied


def _write(waiting: list[pa.Table], folder: Location) -> None:
    if waiting:
        write_table(pa.concat_tables(waiting), folder / "results" / f"rows-{uuid.uuid4().hex}.parquet")
        waiting.clear()


def _column(rows: pa.Table, name: str, value: Any) -> tuple[int, pa.Field, pa.Array]:
    """Return the arguments of `set_column` that give a column one value."""
    field = rows.schema.field(name)
    return rows.schema.get_field_index(name), field, pa.repeat(pa.scalar(value, field.type), len(rows))


def _copies(rows: pa.Table, known: Earlier) -> Iterator[pa.Table]:
    """Yield result rows for the rows of a manifest that are the same in the earlier job, a table for each file."""
    rows = rows.filter(
        pc.and_(pc.is_valid(rows["image_uri"]), pc.and_(pc.is_null(rows["row_error"]), pc.is_null(rows["text_uri"])))
    )
    versions = _versions_now(rows, known.has_version_ids)
    positions = known.find(_hashes(rows, versions))
    for number in np.unique(positions[positions >= 0] >> 32).tolist():
        own = np.flatnonzero((positions >= 0) & (positions >> 32 == number))
        with results_file(known.files[number]) as file:
            former = RESULTS.with_all_columns(file.read().take(pa.array(positions[own] & 0xFFFFFFFF)))
        mine = rows.take(pa.array(own))
        old = _identities(former, former["image_version"].to_pylist())
        new = _identities(mine, [versions[row] for row in own])
        same = pa.array([one == other for one, other in zip(old, new, strict=True)], pa.bool_())
        yield _copied(mine.filter(same), former.filter(same))


def _copied(rows: pa.Table, former: pa.Table) -> pa.Table:
    """Return rows of results with the names of manifest rows and all else of their former results."""
    warnings = [
        [*(new or ()), *(one for one in old or () if one not in (new or ()) and not _RENAMED.match(one))]
        for new, old in zip(rows["warnings"].to_pylist(), former["warnings"].to_pylist(), strict=True)
    ]
    own = {name: rows[name] for name in CALLER_COLUMNS if name != "image_version"}
    columns = {name: own.get(name, former[name]) for name in RESULT_SCHEMA.names}
    columns["warnings"] = pa.array(warnings, pa.list_(pa.string()))
    table = pa.table(columns).cast(RESULT_SCHEMA)
    for name, value in (("reused", "since"), ("schema_version", SCHEMA_VERSION)):
        table = table.set_column(*_column(table, name, value))
    return table


def _versions_now(rows: pa.Table, has_version_ids: bool) -> list[str | None]:
    """Return the version of the picture of each row: that of the manifest, or the one that its store says."""
    listed, uris = rows["image_version"].to_pylist(), rows["image_uri"].to_pylist()
    with ThreadPoolExecutor(_ASKERS) as askers:
        return list(askers.map(partial(_version_now, has_version_ids), uris, listed))


def _version_now(has_version_ids: bool, uri: str, listed: str | None) -> str | None:
    """Return the version of a picture; None if there is none, or if its store does not answer: it is judged then."""
    location = Location(uri)
    if listed is not None and not (location.is_s3 and has_version_ids):
        return listed
    try:
        if not location.is_s3:
            info = file_info(location)
            return info.revision if info else None
        with storage_errors(location):
            found = head(s3_client(), location)
    except (StorageError, OSError):
        return None
    version = found and (found.get("VersionId") or found.get("ETag", "").strip('"'))
    return None if version == _NO_VERSION else version or None
