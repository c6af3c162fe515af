"""Captions after detection: rows that are flagged, or that wait for a caption in place of their text.

Detection writes its verdicts to `results` first. A stop or a captioner that fails can therefore take no verdict away:

1. `choose_rows` copies the rows that need a caption from the manifest to `_captions/manifest`.
2. The pipeline captions them, and compares the captions with pictures and texts, into `_captions/results`.
3. `publish` writes each file of results again, in one write, with what is new: many files by Ray tasks. A row that was
   judged keeps its verdict and gets `caption`, `caption_error` and the agreements with its caption. A row that waited
   for its caption is replaced.

The record of the job names this work until it is published, and every step can be repeated after a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asap.labels import FLAGGED
from asap.storage.files import delete_folder
from asap.storage.location import Location
from jobs.scan.input.manifest import write_tables
from jobs.scan.output.completeness import RowSet, rows_within
from jobs.scan.output.tally import results_file, results_files
from jobs.scan.retry import RETRYABLE, Outcomes
from jobs.scan.stages.result_rows import CAPTION_ERROR, RESULTS, write_table

FOLDER = "_captions"
FAILED = "caption_failed"
"""Error code of a pair without a text that got no caption. As a choice, it stands for all captions that failed."""
_WAITING = ("text_missing", "text_unreadable")
"""Error codes of rows that a caption may help."""
_FEW_FILES = 4
"""Files that this process writes itself: the processes of tasks would take longer to start."""
_COLUMNS = ["row_id", "status", "error_code", "verdict", "caption", "caption_error", "judged_run"]


def rows_to_caption(
    results: Location, *, late: bool, codes: Sequence[str] = (), besides_run: str | None = None
) -> RowSet:
    """Return the rows that need a caption now.

    Args:
        results: The results of a job.
        late: True if flagged rows are captioned after detection, and so are rows that lack a text.
        codes: `FAILED` for captions of judged rows that failed, or `RETRYABLE` for those that may succeed.
        besides_run: Rows that this run has judged are left out of those that failed.
    """
    chosen = RowSet()
    for location in results_files(results):
        with results_file(location) as file:
            for batch in file.iter_batches(2**16, columns=_COLUMNS):
                wanted = _is_chosen(_with_missing(batch), late=late, codes=codes, besides_run=besides_run)
                chosen.add(batch.filter(wanted)["row_id"].to_numpy())
    return chosen


def _with_missing(batch: pa.RecordBatch) -> pa.Table:
    """Return the rows with the columns that files of earlier versions lack, as nulls."""
    rows = pa.Table.from_batches([batch])
    for name, kind in (("caption_error", CAPTION_ERROR), ("judged_run", pa.string())):
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), kind))
    return rows


def _is_chosen(rows: pa.Table, *, late: bool, codes: Sequence[str], besides_run: str | None) -> pa.Array:
    """Return for each row whether it needs a caption; see `rows_to_caption`."""
    chosen = pa.array([False] * len(rows), pa.bool_())
    if late:
        is_open = pc.and_(pc.is_null(rows["caption"]), pc.is_null(rows["caption_error"]))
        has_turn = pc.or_(
            pc.is_in(rows["verdict"], pa.array(FLAGGED)), pc.is_in(rows["error_code"], pa.array(_WAITING))
        )
        chosen = pc.and_(is_open, has_turn)
    if FAILED in codes or RETRYABLE in codes:
        # A row that failed as a whole is judged again as a whole, with its caption.
        again = pc.and_(pc.is_valid(rows["caption_error"]), pc.equal(rows["status"], "ok"))
        if FAILED not in codes:
            again = pc.and_(again, pc.fill_null(pc.struct_field(rows["caption_error"], "retryable"), False))
        if besides_run is not None:
            again = pc.and_(again, pc.fill_null(pc.not_equal(rows["judged_run"], besides_run), True))
        chosen = pc.or_(chosen, again)
    return chosen.combine_chunks() if isinstance(chosen, pa.ChunkedArray) else chosen


def choose_rows(folder: Location, *, late: bool, codes: Sequence[str] = (), besides_run: str | None = None) -> int:
    """Write the rows of the job that need a caption to `_captions/manifest`; return how many there are.

    The arguments are as in `rows_to_caption`. What an earlier choice left in `_captions` is deleted.
    """
    delete_folder(folder / FOLDER)
    chosen = rows_to_caption(folder / "results", late=late, codes=codes, besides_run=besides_run)
    return write_tables(rows_within(folder / "manifest", chosen), folder / FOLDER / "manifest") if len(chosen) else 0


def publish(folder: Location, check: Callable[[], None] = lambda: None) -> None:
    """Put the captions in `_captions/results` into the rows of `results`. Ray must run.

    Args:
        folder: Folder of the job.
        check: Called twice a second; what it raises stops the work.
    """
    from jobs.scan.file_tasks import run_on_files

    # The outcomes are put in order once. The tasks get their ids, and read the files of those that they need.
    outcomes = Outcomes(folder / FOLDER / RESULTS.folder, RESULTS)
    files = list(results_files(folder / "results"))
    if len(files) > _FEW_FILES:
        run_on_files(publish_file, outcomes, files, check)
        return
    for location in files:
        check()
        publish_file(outcomes, location)


def publish_file(outcomes: Outcomes, location: Location) -> None:
    """Put the captions of the rows of one file into it. Rows that have them already stay the same."""
    with results_file(location) as file:
        new = outcomes.of_rows(file.read(columns=["row_id"])["row_id"].to_numpy())
        if new is None:
            return
        former = RESULTS.with_all_columns(file.read())
    by_id = {row["row_id"]: row for row in new.to_pylist()}
    has_new = pc.is_in(former["row_id"], pa.array(list(by_id), pa.int64()))
    rows = [captioned(row, by_id[row["row_id"]]) for row in former.filter(has_new).to_pylist()]
    changed = pa.Table.from_pylist(rows, RESULTS.schema)
    write_table(pa.concat_tables([former.filter(pc.invert(has_new)), changed]), location)


def captioned(former: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return a row of results with its caption.

    Args:
        former: The row as it was judged, or as it waited for its caption.
        new: The row as it was judged again with its caption. Its verdict is not used if `former` has one.
    """
    if former["status"] == "error":
        return new
    caption, error = new["caption"], new["caption_error"]
    if new["image_sha256"] not in (None, former["image_sha256"]):
        detail = "the picture is not the one that was judged: it changed before it was captioned"
        caption, error = None, {"kind": "picture_changed", "detail": detail, "retryable": False}
    elif caption is None and error is None:  # the picture could not be read again, or its process died each time
        error = {"kind": new["error_code"], "detail": new["error_detail"], "retryable": bool(new["retryable"])}
    changes = {"caption": caption, "caption_error": error}
    if caption is not None:
        old = former["warnings"] or []
        changes |= {name: new[name] for name in ("agreement_image_caption", "agreement_text_caption")}
        changes["warnings"] = [*old, *(one for one in new["warnings"] or [] if one not in old)]
    return former | changes
