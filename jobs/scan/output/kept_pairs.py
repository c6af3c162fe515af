"""Pairs that a job judged, added to a reuse store from the results of the job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asap.job_records.rows import results_file, results_files
from asap.storage.location import Location
from jobs.scan.stages.pair_store import StoreIndex, hashes_of, write_pairs
from jobs.scan.stages.pair_values import RAW_COLUMNS, ReuseContext, pair_keys, values_of

_COLUMNS = ["status", "error_code", "image_sha256", "text", "text_escapes", "caption", "judged_run", "reused",
            "warnings", *RAW_COLUMNS]  # fmt: skip
_OF_CAPTION = ("agreement_image_caption", "agreement_text_caption")


@dataclass(frozen=True)
class Adding:
    """How the pairs of a job are added to a store."""

    folder: Location
    """The folder of the model in the store."""
    contexts: dict[str, ReuseContext]
    """The context of the scores, for each run of the job. Rows of other runs are left out."""
    index: StoreIndex
    """The pairs that the store has."""
    captions_late: bool
    """True if pairs were captioned after they were judged. They are found without their captions too."""


def add_pairs(
    adding: Adding, results: Location, check: Callable[[], None] = lambda: None, seconds: float | None = None
) -> None:
    """Add the pairs of all files of results that a store lacks. It can be repeated: what was added is not added again.

    Raises `StorageError` if a folder cannot be read or written.

    Args:
        adding: What is added, and where.
        results: The results of the job.
        check: Called now and then; what it raises stops the work.
        seconds: Time after which no further file is begun, in this process. None: all files are added, many of them by
            Ray tasks.
    """
    if not adding.contexts:
        return
    if seconds is None:
        from jobs.scan.file_tasks import work_on_files

        work_on_files(add_file, adding, list(results_files(results)), check)
        return
    deadline = time.monotonic() + seconds
    for location in results_files(results):
        if time.monotonic() > deadline:
            return
        add_file(adding, location)


def add_file(adding: Adding, location: Location) -> None:
    """Add the pairs of one file of results that a store lacks."""
    with results_file(location) as file:
        if "reused" not in file.schema_arrow.names:  # a file of an earlier version
            return
        rows = file.read(columns=_COLUMNS)
    is_new = pc.and_(pc.equal(rows["status"], "ok"), pc.fill_null(pc.not_equal(rows["reused"], "store"), True))
    keys: list[bytes] = []
    parts: list[pa.Table] = []
    for run, context in adding.contexts.items():
        judged = rows.filter(pc.and_(is_new, pc.fill_null(pc.equal(rows["judged_run"], run), False)))
        _collect(judged, context, keys, parts)
        if adding.captions_late:
            # The text alone decided the scores of these rows.
            captioned = judged.filter(pc.and_(pc.is_valid(judged["caption"]), pc.is_valid(judged["text_read"])))
            for name in ("caption", *_OF_CAPTION):
                column = captioned.schema.get_field_index(name)
                captioned = captioned.set_column(
                    column, captioned.schema.field(name), pa.nulls(len(captioned), captioned.schema.field(name).type)
                )
            _collect(captioned, context, keys, parts)
    if not keys:
        return
    first = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
    rows_first = np.array(sorted(first.values()))
    wanted = rows_first[adding.index.find(hashes_of([keys[row] for row in rows_first])) < 0]
    if len(wanted):
        values = pa.concat_tables(parts).take(wanted)
        model = next(iter(adding.contexts.values()))
        write_pairs(adding.folder, [keys[row] for row in wanted], values, (model.model_id, model.familiarity_id))


def _collect(rows: pa.Table, context: ReuseContext, keys: list[bytes], parts: list[pa.Table]) -> None:
    """Add the keys and values of rows of results to the lists."""
    found = pair_keys(rows, context)
    known = [row for row, key in enumerate(found) if key is not None]
    keys += [key for key in found if key is not None]
    parts.append(values_of(rows.take(pa.array(known, pa.int64()))))
