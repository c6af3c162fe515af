"""Captions after detection: rows that are flagged, or that wait for a caption in place of their text.

Detection writes its verdicts to `results` first. A stop or a captioner that fails can therefore take no verdict away:

1. `choose_rows` copies the rows that need a caption from the manifest to `_captions/manifest`.
2. The pipeline captions them, and compares the captions with pictures and texts, into `_captions/results`.
3. `publish` writes each file of results again, in one write, with what is new: many files by Ray tasks. A row that was
   judged keeps its verdict and gets `caption`, `caption_error` and the agreements with its caption. A row that waited
   for its caption is replaced.

Texts of flagged rows are explained in the same pass, as `explanation` and `explanation_error`.

The record of the job names this work until it is published, and every step can be repeated after a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asap.job_records.rows import results_file, results_files
from asap.labels import FLAGGED
from asap.storage.files import delete_folder
from asap.storage.location import Location
from jobs.scan.input.manifest import write_tables
from jobs.scan.output.completeness import RowSet, rows_within
from jobs.scan.retry import RETRYABLE, Outcomes
from jobs.scan.stages.result_rows import CAPTION_ERROR, RESULTS, write_table

FOLDER = "_captions"
FAILED = "caption_failed"
"""Error code of a pair without a text that got no caption. As a choice, it stands for all captions that failed."""
_CHOICES = {"caption": FAILED, "explanation": "explanation_failed"}
"""Choices that stand for all captions, or all explanations, that failed."""
_WAITING = ("text_missing", "text_unreadable")
"""Error codes of rows that a caption may help."""
_COLUMNS = ["row_id", "status", "error_code", "verdict", "caption", "caption_error", "explanation",
            "explanation_error", "judged_run"]  # fmt: skip


def rows_to_caption(
    results: Location,
    *,
    late: bool,
    codes: Sequence[str] = (),
    besides_run: str | None = None,
    kinds: Sequence[str] = ("caption",),
) -> RowSet:
    """Return the rows that need a caption or an explanation now.

    Args:
        results: The results of a job.
        late: True if flagged rows are described after detection, and rows that lack a text get a caption then.
        codes: `FAILED` for captions of judged rows that failed, `explanation_failed` for explanations, or `RETRYABLE`
            for those that may succeed.
        besides_run: Rows that this run has judged are left out of those that failed.
        kinds: What the job writes: `caption`, `explanation`, or both.
    """
    chosen = RowSet()
    columns = [*_COLUMNS, "text"] if late and "explanation" in kinds else _COLUMNS
    for location in results_files(results):
        with results_file(location) as file:
            for batch in file.iter_batches(2**16, columns=columns):
                rows = _with_missing(batch)
                each = [_is_chosen(rows, kind, late=late, codes=codes, besides_run=besides_run) for kind in kinds]
                wanted = reduce(pc.or_, each, pa.repeat(pa.scalar(False), len(rows)))
                chosen.add(batch.filter(wanted)["row_id"].to_numpy())
    return chosen


def _with_missing(batch: pa.RecordBatch) -> pa.Table:
    """Return the rows with the columns that files of earlier versions lack, as nulls."""
    rows = pa.Table.from_batches([batch])
    later = {"caption_error": CAPTION_ERROR, "explanation_error": CAPTION_ERROR, "judged_run": pa.string()}
    for name, kind in later.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), kind))
    return rows


def _is_chosen(rows: pa.Table, kind: str, *, late: bool, codes: Sequence[str], besides_run: str | None) -> pa.Array:
    """Return for each row whether it needs a description of this kind; see `rows_to_caption`."""
    error = rows[f"{kind}_error"]
    chosen = pa.array([False] * len(rows), pa.bool_())
    if late:
        is_open = pc.and_(pc.is_null(rows[kind]), pc.is_null(error))
        has_turn = pc.is_in(rows["verdict"], pa.array(FLAGGED))
        if kind == "caption":
            has_turn = pc.or_(has_turn, pc.is_in(rows["error_code"], pa.array(_WAITING)))
        else:  # a caption may have replaced the text, and then there is nothing to explain
            has_turn = pc.and_(has_turn, pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(rows["text"]), ""), False))
        chosen = pc.and_(is_open, has_turn)
    if _CHOICES[kind] in codes or RETRYABLE in codes:
        # A row that failed as a whole is judged again as a whole, with its descriptions.
        again = pc.and_(pc.is_valid(error), pc.equal(rows["status"], "ok"))
        if _CHOICES[kind] not in codes:
            again = pc.and_(again, pc.fill_null(pc.struct_field(error, "retryable"), False))
        if besides_run is not None:
            again = pc.and_(again, pc.fill_null(pc.not_equal(rows["judged_run"], besides_run), True))
        chosen = pc.or_(chosen, again)
    return chosen.combine_chunks() if isinstance(chosen, pa.ChunkedArray) else chosen


def choose_rows(
    folder: Location,
    *,
    late: bool,
    codes: Sequence[str] = (),
    besides_run: str | None = None,
    kinds: Sequence[str] = ("caption",),
) -> int:
    """Write the rows that need a caption or an explanation to `_captions/manifest`; return how many there are.

    The arguments are as in `rows_to_caption`. What an earlier choice left in `_captions` is deleted.
    """
    delete_folder(folder / FOLDER)
    chosen = rows_to_caption(folder / "results", late=late, codes=codes, besides_run=besides_run, kinds=kinds)
    return write_tables(rows_within(folder / "manifest", chosen), folder / FOLDER / "manifest") if len(chosen) else 0


def publish(folder: Location, check: Callable[[], None] = lambda: None, kinds: Sequence[str] = ("caption",)) -> None:
    """Put the captions and explanations in `_captions/results` into the rows of `results`. Ray must run.

    Args:
        folder: Folder of the job.
        check: Called twice a second; what it raises stops the work.
        kinds: What the job writes: `caption`, `explanation`, or both.
    """
    from jobs.scan.file_tasks import work_on_files

    # The outcomes are put in order once. The tasks get their ids, and read the files of those that they need.
    shared = Outcomes(folder / FOLDER / RESULTS.folder, RESULTS), tuple(kinds)
    work_on_files(publish_file, shared, list(results_files(folder / "results")), check)


def publish_file(shared: tuple[Outcomes, Sequence[str]], location: Location) -> None:
    """Put the captions and explanations of the rows of one file into it. Rows that have them already stay the same.

    Args:
        shared: The rows as they were judged again, and what the job writes.
        location: The file.
    """
    outcomes, kinds = shared
    with results_file(location) as file:
        new = outcomes.of_rows(file.read(columns=["row_id"])["row_id"].to_numpy())
        if new is None:
            return
        former = RESULTS.with_all_columns(file.read())
    by_id = {row["row_id"]: row for row in new.to_pylist()}
    has_new = pc.is_in(former["row_id"], pa.array(list(by_id), pa.int64()))
    rows = [captioned(row, by_id[row["row_id"]], kinds) for row in former.filter(has_new).to_pylist()]
    changed = pa.Table.from_pylist(rows, RESULTS.schema)
    write_table(pa.concat_tables([former.filter(pc.invert(has_new)), changed]), location)


def captioned(former: dict[str, Any], new: dict[str, Any], kinds: Sequence[str] = ("caption",)) -> dict[str, Any]:
    """Return a row of results with its caption and its explanation.

    Args:
        former: The row as it was judged, or as it waited for its caption.
        new: The row as it was judged again with them. Its verdict is not used if `former` has one.
        kinds: What the job writes. A row that has one of them already keeps it.
    """
    if former["status"] == "error":
        return new
    changes: dict[str, Any] = {}
    for kind in kinds:
        if former[kind] is None and (kind == "caption" or (former["text"] or "").strip()):
            changes |= _described(kind, former, new)
    if any(changes.get(kind) is not None for kind in kinds):
        old = former["warnings"] or []
        changes["warnings"] = [*old, *(one for one in new["warnings"] or [] if one not in old)]
    return former | changes


def _described(kind: str, former: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a description that a row lacked: what was written, or why it is missing."""
    written, error = new[kind], new[f"{kind}_error"]
    if kind == "caption" and new["image_sha256"] not in (None, former["image_sha256"]):
        detail = "the picture is not the one that was judged: it changed before it was captioned"
        written, error = None, {"kind": "picture_changed", "detail": detail, "retryable": False}
    elif kind == "explanation" and new["error_code"] is None and new["text"] != former["text"]:
        detail = "the text is not the one that was judged: its file changed before it was explained"
        written, error = None, {"kind": "text_changed", "detail": detail, "retryable": False}
    elif written is None and error is None:  # the picture could not be read again, or its process died each time
        error = {"kind": new["error_code"], "detail": new["error_detail"], "retryable": bool(new["retryable"])}
    changes = {kind: written, f"{kind}_error": error}
    if kind == "caption" and written is not None:
        changes |= {name: new[name] for name in ("agreement_image_caption", "agreement_text_caption")}
    return changes
