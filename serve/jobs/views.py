"""A job as a response shows it: what its folder says, who asked for it, and what became of its last submission."""

from __future__ import annotations

from dataclasses import replace

from asap.errors import EXIT_STOPPED
from asap.job_records.record import results_folder
from asap.job_records.status import BROKEN, JobStatus, exit_code
from asap.storage.location import Location
from serve.job_schemas import Job, JobFiles
from serve.jobs.cluster import SubmissionState, without_paths
from serve.jobs.records import JobRecord

SUBMITTED = "submitted"
"""State of a job whose process does not work on the folder yet."""
_LOST = "the cluster does not know the job any more, and its folder was not begun. Send the same request again."
_SILENT_END = "the process of the job ended before it said why. Send the same request again, or ask the operator."


def is_begun(record: JobRecord | None, status: JobStatus | None) -> bool:
    """Return True if the process of the last submission has worked on the folder, whose status then tells all."""
    if status is None:
        return False
    return record is None or status.state == BROKEN or status.runs > record.submission.runs


def is_under_way(record: JobRecord, status: JobStatus | None, submission: SubmissionState | None) -> bool:
    """Return True if something works on a job, or will.

    Args:
        record: Its record.
        status: The status of its folder, if that exists.
        submission: The last submission as the cluster knows it, if it does; not needed once the job is begun.
    """
    if status is not None and not status.has_ended and not status.is_silent:
        return True
    return not is_begun(record, status) and submission is not None and not submission.has_ended


def view_of(
    id_: str, folder: Location, record: JobRecord | None, status: JobStatus | None, submission: SubmissionState | None
) -> Job:
    """Return a job as a response shows it.

    Args:
        id_: The id of the job.
        folder: The job folder.
        record: Its record; None for a job of the command line.
        status: The status of its folder; None if that is not begun.
        submission: The last submission as the cluster knows it; None if it does not, or if the job is begun.
    """
    shown = status if status is not None else JobStatus(folder, "scan", SUBMITTED)
    state, code, error = shown.state, exit_code(shown) if shown.has_ended else None, shown.error
    if record is not None and not is_begun(record, status):
        state, code, error = _before_the_folder(shown, submission)
        shown = replace(shown, phase=None, phase_counts={}, pairs_per_s=None)
    note = None if state == SUBMITTED or status is None else shown.sentence()
    rows = results_folder(folder, shown.record)
    return Job(
        id=id_,
        folder=folder.uri,
        key=record.key_name if record else None,
        created=record.created if record else None,
        state=state,
        counts=shown.counts,
        phase=shown.phase,
        phase_counts=shown.phase_counts,
        pairs_per_s=shown.pairs_per_s,
        left_s=None if shown.left_s is None else round(shown.left_s, 1),
        runs=shown.runs,
        heartbeat=shown.heartbeat,
        silent=shown.is_silent,
        exit_code=code,
        error=without_paths(error) if error else None,
        note=without_paths(note) if note else None,
        model_id=shown.record.get("model_id"),
        policy_id=shown.record.get("policy_id"),
        settings=record.request.model_dump(exclude_defaults=True) if record else None,
        files=JobFiles(
            results=rows.uri,
            **{name: (folder / f"{name}.jsonl").uri for name in ("errors", "flagged", "unfamiliar")},
            summary=(folder / "summary.json").uri,
            report=(folder / "report" / "index.html").uri,
        ),
    )


def _before_the_folder(former: JobStatus, submission: SubmissionState | None) -> tuple[str, int | None, str | None]:
    """Return state, exit code and error of a submission whose process has not worked on the folder.

    Args:
        former: What the folder says of the starts before.
        submission: The submission as the cluster knows it.
    """
    if submission is None:
        return "failed", 1, _LOST
    if not submission.has_ended:
        return SUBMITTED, None, None
    if submission.exit_code == EXIT_STOPPED:
        return "cancelled", EXIT_STOPPED, None
    if submission.exit_code == 0:  # it found that the job is finished
        return former.state, exit_code(former), former.error
    return "failed", submission.exit_code or 1, submission.message or _SILENT_END
