"""The jobs of callers: submitted, listed, shown, cancelled, and their rows read. Each key sees its own jobs.

Every method waits for the store or the cluster, so the routes call it in a thread.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from asap.errors import ConfigError, StorageError
from asap.job_records.json_rows import row_json
from asap.job_records.record import request_cancel, results_folder
from asap.job_records.rows import ERROR_COLUMNS, Cursor, RowFilter, StoredRows
from asap.job_records.status import JobStatus, find_or_broken, find_status, list_jobs
from asap.storage.files import exists
from asap.storage.location import Location
from asap.storage.prefixes import is_below
from asap.submission.entrypoint import new_submission_id
from serve.errors import Refused
from serve.job_schemas import EXECUTION, Job, JobRequest
from serve.jobs.arguments import scan_arguments
from serve.jobs.cluster import Cluster, SubmissionState
from serve.jobs.records import (
    IdempotentRequest,
    JobRecord,
    Records,
    Submission,
    fingerprint_of,
    job_id,
    now,
    owner_of,
)
from serve.jobs.rules import NOT_CONFIGURED, check_allowed, rules_of
from serve.jobs.views import is_begun, is_under_way, view_of
from serve.settings import JobRules, JobSettings

_LOG = logging.getLogger("asap.server")
_READERS = 8
_WAIT_S = 10.0
"""Seconds that a request for a job waits for another one of its key."""
_KNOWN_COLUMNS = pa.schema([
    ("row_id", pa.int64()), ("custom_id", pa.string()), ("given_id", pa.string()), ("image_uri", pa.string()),
    ("status", pa.string()), ("error_code", pa.string()), ("error_detail", pa.string()), ("retryable", pa.bool_()),
    ("attempt", pa.int32()), ("verdict", pa.string()), ("score", pa.float32()),
    ("flagged_types", pa.list_(pa.string())),
])  # fmt: skip
"""Columns that filters read, which the results of every version have or could have."""


class Caller(NamedTuple):
    """The caller: the name of the key, or None without one, and whether the key sees the jobs of others."""

    key_name: str | None
    sees_all: bool

    @property
    def owner(self) -> str:
        """The name of the caller's records."""
        return owner_of(self.key_name)


class Submitted(NamedTuple):
    """The outcome of a request for a job."""

    job: Job
    is_new: bool
    """False if nothing was submitted: the same request was there before, or the job is finished."""


@dataclass(frozen=True)
class RowsAsked:
    """The rows that a request asks for."""

    where: RowFilter
    columns: tuple[str, ...]
    """Empty: all, or of failed rows those that say what failed."""
    after: str | None
    most_rows: int
    within_s: float


class RowsPage(NamedTuple):
    """Rows as JSON lines, and the cursor of the next page, if there is one."""

    lines: bytes
    after: str | None


class _Found(NamedTuple):
    """A job that a caller may see."""

    id: str
    folder: Location
    record: JobRecord | None
    status: JobStatus | None


class JobDesk:
    """The jobs of a deployment.

    Args:
        settings: The setting `jobs`; None if the server takes no jobs, and every method raises `Refused` (403).
        cluster: The cluster that runs them.
    """

    def __init__(self, settings: JobSettings | None, cluster: Cluster) -> None:
        self._settings = settings
        self._cluster = cluster
        self._records = None if settings is None else Records(Location.parse(settings.records))
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        """Locks by owner; see `_alone`."""

    def submit(self, caller: Caller, request: JobRequest, idempotency_key: str | None) -> Submitted:
        """Submit a job, or go on with one that was stopped. Raises `Refused`."""
        rules, records = rules_of(self._settings, caller.key_name), self._open()
        check_allowed(request, rules)
        with _store_errors():
            if former := self._former(records, caller, request, idempotency_key):
                return self._repeated(former, request, rules)
            arguments = scan_arguments(request, rules.inputs, self._cluster.address())
            checked = self._cluster.check(arguments)
            if not is_below(checked.folder, rules.outputs):
                raise Refused(403, "job_not_allowed", "the job folder is not below an allowed prefix", param="job")
            with self._alone(caller.owner):
                if former := self._former(records, caller, request, idempotency_key):  # it came meanwhile
                    return self._repeated(former, request, rules)
                folder = Location(checked.folder)
                if checked.is_finished and (finished := records.find(caller.owner, job_id(folder))):
                    return Submitted(self._view(self._look(finished)), False)
                record = self._decide(records, caller, request, folder, rules)
                records.write(record)
                if idempotency_key:
                    asked = IdempotentRequest(fingerprint=fingerprint_of(request), job=record.id)
                    records.keep_request(caller.owner, idempotency_key, asked)
                self._cluster.submit(record.submission.id, arguments)
            return Submitted(self._view(self._look(record)), True)

    def list_newest(self, caller: Caller, limit: int) -> list[Job]:
        """Return the newest jobs that a caller may see. Raises `Refused`."""
        records = self._open()
        with _store_errors():
            owners = records.owners() if caller.sees_all else [caller.owner]
            known = sorted(
                (record for owner in owners for record in records.of_owner(owner)),
                key=lambda record: record.submission.at,
                reverse=True,
            )
            with ThreadPoolExecutor(_READERS) as readers:
                found = list(readers.map(self._look_or_broken, known[:limit]))
                if caller.sees_all and len(found) < limit:
                    ids = {record.id for record in known}
                    others = [job for job in self._of_command_line() if job.id not in ids]
                    found += others[: limit - len(found)]
                return list(readers.map(self._view, found))

    def show(self, caller: Caller, id_: str) -> Job:
        """Return a job. Raises `Refused`."""
        with _store_errors():
            return self._view(self._find(caller, id_))

    def cancel(self, caller: Caller, id_: str) -> Job:
        """Ask a job to stop in an orderly way, and return it as it is now. One that has ended is left as it is.

        Raises `Refused`.
        """
        with _store_errors():
            job = self._find(caller, id_)
            submission = self._submission(job)
            if job.record is not None and not is_begun(job.record, job.status):
                if submission is not None and not submission.has_ended:
                    self._cluster.stop(job.record.submission.id)
                return self._view(self._look(job.record))
            status = job.status
            if status is None or status.has_ended:
                return self._view(job)
            if status.is_silent or not status.can_be_cancelled:
                message = "the job cannot be cancelled, because nothing works on it that looks for requests."
                raise Refused(409, "job_not_running", message)
            request_cancel(job.folder)
            return self._view(job._replace(status=find_status(job.folder)))

    def rows(self, caller: Caller, id_: str, asked: RowsAsked) -> RowsPage:
        """Return a page of a job's rows, also while it runs. Raises `Refused`."""
        with _store_errors():
            job = self._find(caller, id_)
            if job.status is None:
                return RowsPage(b"", None)
            folder = results_folder(job.folder, job.status.record)
            source = StoredRows(folder, _KNOWN_COLUMNS, is_complete=job.status.state == "completed")
            default = ERROR_COLUMNS if asked.where.is_failed else source.schema().names
            try:
                after = None if asked.after is None else Cursor.parse(asked.after)
                page = source.page(
                    asked.columns or default, asked.where, after, most_rows=asked.most_rows, within_s=asked.within_s
                )
            except ConfigError as error:
                raise Refused(422, "invalid_field", str(error)) from error
        lines = [row_json(row) + b"\n" for table in page.tables for row in table.to_pylist()]
        return RowsPage(b"".join(lines), None if page.after is None else str(page.after))

    # Submission.

    def _former(
        self, records: Records, caller: Caller, request: JobRequest, idempotency_key: str | None
    ) -> JobRecord | None:
        """Return the job of the request that had the same `Idempotency-Key`. Raises `Refused` if that was another."""
        former = records.find_request(caller.owner, idempotency_key) if idempotency_key else None
        if former is None:
            return None
        if former.fingerprint != fingerprint_of(request):
            message = "another request had this Idempotency-Key. Send each request with one of its own."
            raise Refused(422, "invalid_field", message, param="Idempotency-Key")
        return records.find(caller.owner, former.job)

    def _repeated(self, record: JobRecord, request: JobRequest, rules: JobRules) -> Submitted:
        """Return the job of a request that was sent again. Submit it if the first request did not come so far."""
        job = self._look(record)
        if record.request == request and not is_begun(record, job.status) and self._submission(job) is None:
            arguments = scan_arguments(request, rules.inputs, self._cluster.address())
            self._cluster.submit(record.submission.id, arguments)
        return Submitted(self._view(job), False)

    def _decide(
        self, records: Records, caller: Caller, request: JobRequest, folder: Location, rules: JobRules
    ) -> JobRecord:
        """Return the record with which a job may be submitted. Raises `Refused` if it may not."""
        id_, status = job_id(folder), find_status(folder)
        former = records.find(caller.owner, id_)
        if former is None:
            if status is not None and not caller.sees_all:
                message = f"{folder} holds a job that was not asked for with this key. Choose another job or out."
                raise Refused(409, "job_exists", message, param="job")
            _check_apart(records, folder, rules)
            if not records.claim(id_, caller.owner):
                raise Refused(409, "job_exists", f"{folder} is another key's. Choose another job or out.", param="job")
        elif differing := _differing(former.request, request):
            message = f"{folder} is the folder of a job with another {' and '.join(differing)}. Choose another job."
            raise Refused(409, "job_exists", message, param=differing[0])
        if former and is_under_way(former, status, self._submission(_Found(id_, folder, former, status))):
            raise Refused(409, "job_in_use", f"{folder} is in use: its job is under way. Wait for it, or cancel it.")
        if self._under_way(records, caller.owner) >= rules.max_under_way:
            message = f"{rules.max_under_way} jobs of this key are under way, which is the limit. Wait until one ends."
            raise Refused(429, "too_many_jobs", message, retry_after_s=30)
        submission = Submission(id=new_submission_id("scan"), at=now(), runs=status.runs if status else 0)
        created = former.created if former else submission.at
        return JobRecord(
            id=id_, owner=caller.owner, folder=folder.uri, created=created, request=request, submission=submission
        )

    def _under_way(self, records: Records, owner: str) -> int:
        """Return the number of a key's jobs that are under way."""
        with ThreadPoolExecutor(_READERS) as readers:
            found = readers.map(self._look, records.of_owner(owner))
            return sum(readers.map(self._is_under_way, found))

    def _is_under_way(self, job: _Found) -> bool:
        return job.record is not None and is_under_way(job.record, job.status, self._submission(job))

    # Jobs as they are.

    def _open(self) -> Records:
        if self._records is None:
            raise Refused(403, "jobs_not_configured", NOT_CONFIGURED)
        return self._records

    @contextmanager
    def _alone(self, owner: str) -> Iterator[None]:
        """Decide requests of a key one after the other, or two could both be the last that is allowed."""
        lock = self._locks[owner]
        if not lock.acquire(timeout=_WAIT_S):
            message = "another request of this key for a job is being decided. Try again in a second."
            raise Refused(429, "overloaded", message, retry_after_s=1)
        try:
            yield
        finally:
            lock.release()

    def _find(self, caller: Caller, id_: str) -> _Found:
        """Return a job that a caller may see. Raises `Refused` (404) for any other."""
        records = self._open()
        for owner in [caller.owner, *(records.owners() if caller.sees_all else ())]:
            if record := records.find(owner, id_):
                return self._look(record)
        if caller.sees_all:
            for job in self._of_command_line():
                if job.id == id_:
                    return job
        raise Refused(404, "not_found", "there is no such job, or this key may not see it.")

    def _of_command_line(self) -> Iterator[_Found]:
        """Yield the scans directly below the allowed outputs, whoever began them."""
        rules = self._settings.keys.values() if self._settings else ()
        for prefix in dict.fromkeys(prefix for one in rules for prefix in one.outputs):
            for status in list_jobs(Location.parse(prefix)):
                if status.kind == "scan":
                    yield _Found(job_id(status.folder), status.folder, None, status)

    def _look(self, record: JobRecord) -> _Found:
        folder = Location(record.folder)
        return _Found(record.id, folder, record, find_status(folder))

    def _look_or_broken(self, record: JobRecord) -> _Found:
        """Return a job for a list, which one broken record must not spoil."""
        folder = Location(record.folder)
        return _Found(record.id, folder, record, find_or_broken(folder))

    def _submission(self, job: _Found) -> SubmissionState | None:
        """Return what the cluster knows of a job's last submission. It is not asked once the folder tells all."""
        if job.record is None or is_begun(job.record, job.status):
            return None
        return self._cluster.state(job.record.submission.id)

    def _view(self, job: _Found) -> Job:
        return view_of(*job, self._submission(job))


def _check_apart(records: Records, folder: Location, rules: JobRules) -> None:
    """Raise `Refused` if a folder lies in that of another job, whose files it would join."""
    above = folder.uri.rpartition("/")[0]
    while is_below(above, rules.outputs):
        if exists(Location(above) / "job.json") or records.is_claimed(job_id(Location(above))):
            message = f"{folder} lies in the folder of another job. Choose another out."
            raise Refused(409, "job_exists", message, param="out")
        above = above.rpartition("/")[0]


def _differing(former: JobRequest, request: JobRequest) -> list[str]:
    """Return the names of the settings that decide the rows and differ."""
    names = [name for name in JobRequest.model_fields if name not in EXECUTION | {"out", "job"}]
    return [name for name in names if getattr(former, name) != getattr(request, name)]


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn the errors of the store into a `Refused` (503), without the names of the server's own folders."""
    try:
        yield
    except StorageError as error:
        _LOG.error("the store of the jobs: %s", error)
        message = "the folder of the jobs, or of this job, cannot be read or written now. Send the request again."
        raise Refused(503, "store_unavailable", message, retry_after_s=5) from error
