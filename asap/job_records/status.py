"""The status of a job: what its record says, and whether its process still gives signs of life.

A scan says how it goes in `job.json`, with a heartbeat. A training run says it in `run.json` and `progress.jsonl`, and
its heartbeat is `heartbeat.json`. For one of an earlier version, the last line of progress is its sign of life.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asap.errors import EXIT_STOPPED, EXIT_TOO_MANY_ERRORS, EXIT_UNFAMILIAR, JobError, StorageError
from asap.job_records.record import ENDS, RESULTS_ENTRY, read_record, read_sign
from asap.storage.failures import storage_errors
from asap.storage.files import exists, list_folders, read_bytes, read_json
from asap.storage.location import Location

TRAIN = "train"
"""Kind of a training run."""
ANNOTATE = "annotate"
"""Kind of a job of annotations."""
BROKEN = "broken"
"""State, in a list, of a job whose record cannot be read."""
REPOLICY = "_repolicy"
"""Folder in a scan's folder whose record is that of the process that applies another policy."""
_EXIT_CODES = {"completed": 0, "unfamiliar": EXIT_UNFAMILIAR, "cancelled": EXIT_STOPPED}
_READERS = 16
_SILENT_AFTER_S = 60
"""Age of a heartbeat, in seconds, beyond which its process probably died. A heartbeat comes every 2 s."""
_SILENT_ELSEWHERE_S = 300
"""The same for a process of another machine. It is larger, because the clocks of machines may differ."""
_SILENT_TRAINING_S = 900
"""The same for a training run of an earlier version, without a heartbeat: it writes a line every 25 steps."""


@dataclass(frozen=True)
class JobStatus:
    """The status of a job, at the moment when its folder was read."""

    folder: Location
    kind: str
    """`scan`, `annotate` or `train`; `unknown` in a list, of a job whose record is broken."""
    state: str
    """validating, running, finalizing, completed, failed, cancelled or unfamiliar; `broken` in a list."""
    counts: dict[str, int] = field(default_factory=dict)
    """`done` and `total`, and of a scan `errors`, `flagged` and `unfamiliar`."""
    phase: str | None = None
    """The work under way, such as `decoding train pictures` of a training run, or `captioning` of a scan; None if the
    job has ended."""
    phase_counts: dict[str, int] = field(default_factory=dict)
    """`done` and `total` of that work, if it is counted."""
    pairs_per_s: float | None = None
    error: str | None = None
    """The reason why the job stopped, or why its record cannot be read."""
    runs: int = 0
    """Number of times that the job was started."""
    host: str | None = None
    """Name of the machine that the process of the last start runs on. Older records lack it."""
    pid: int | None = None
    heartbeat: datetime | None = None
    """Time of the last sign of life, by the clock of that machine."""
    age_s: float | None = None
    """Seconds since then, by the clock of this machine. Negative if the clocks differ."""
    beat: tuple[Any, ...] = ()
    """A value that changes with each sign of life, so that it can be watched without a clock."""
    can_be_cancelled: bool = False
    """True if the process looks for the file `_cancel`."""
    record: dict[str, Any] = field(default_factory=dict)
    """The record that was read."""

    @property
    def has_ended(self) -> bool:
        """True if the record says that no process works on the job."""
        return self.state in ENDS

    @property
    def watched_s(self) -> float:
        """Seconds without a sign of life, as this process watches, after which the other one probably died."""
        return _SILENT_AFTER_S if self.can_be_cancelled or self.kind != TRAIN else _SILENT_TRAINING_S

    @property
    def is_silent(self) -> bool:
        """True if the record says that a process works on the job, and its last sign of life is old."""
        if self.has_ended or self.age_s is None:
            return False
        return self.age_s > (self.watched_s if self._is_here else max(self.watched_s, _SILENT_ELSEWHERE_S))

    @property
    def left_s(self) -> float | None:
        """Seconds that are left at the present speed. None for a job that is not running."""
        done, total = self.counts.get("done"), self.counts.get("total")
        if self.has_ended or self.is_silent or not self.pairs_per_s or done is None or not total:
            return None
        return (total - done) / self.pairs_per_s

    @property
    def phase_text(self) -> str:
        """The work under way, with its count; empty if it is not known."""
        if not self.phase or not self.phase_counts:
            return self.phase or ""
        return f"{self.phase}: {self.phase_counts['done']:,} of {self.phase_counts['total']:,}"

    @property
    def process(self) -> str:
        """The process of the last start, as far as the record names it."""
        pid = "its process" if self.pid is None else f"process {self.pid}"
        return pid if self.host is None else f"{pid} on {self.host}"

    @property
    def is_republished(self) -> bool:
        """True if the scan is being given another policy."""
        return RESULTS_ENTRY in self.record

    def sentence(self) -> str:
        """Return what a person should know beyond state and counts; empty if there is nothing."""
        if self.is_silent and self.age_s is not None:
            clock = (
                "" if self._is_here else f" (by this machine's clock; that of {self.host or 'its machine'} may differ)"
            )
            return f"no sign of life for {format_duration(self.age_s)}{clock}: {self.remedy}"
        if not self.has_ended and self.age_s is not None and self.age_s < -_SILENT_AFTER_S:
            return f"the heartbeat is {format_duration(-self.age_s)} ahead: the clocks of the machines differ"
        if self.is_republished:
            return "another policy is being applied"
        return self.error or ""

    @property
    def remedy(self) -> str:
        """The probable reason why there is no sign of life, and what to do then."""
        unless = ", unless it prepares pictures" if self.watched_s == _SILENT_TRAINING_S else ""
        return f"the process probably died{unless}. {self.next_step}"

    @property
    def next_step(self) -> str:
        """A sentence on how a job goes on that nothing works on."""
        if self.is_republished:
            return "Run its `asap repolicy` again."
        return f"`asap resume {self.folder}` goes on."

    @property
    def _is_here(self) -> bool:
        """True if the process runs on this machine, so that its clock is this one."""
        return self.host == socket.gethostname()

    def to_json(self) -> dict[str, Any]:
        """Return the status as the entries of a JSON object."""
        return {
            "folder": self.folder.uri,
            "kind": self.kind,
            "state": self.state,
            "counts": self.counts,
            "phase": self.phase,
            "phase_counts": self.phase_counts,
            "pairs_per_s": self.pairs_per_s,
            "left_s": None if self.left_s is None else round(self.left_s, 1),
            "runs": self.runs,
            "host": self.host,
            "pid": self.pid,
            "heartbeat": None if self.heartbeat is None else self.heartbeat.isoformat(timespec="seconds"),
            "heartbeat_age_s": None if self.age_s is None else round(self.age_s, 1),
            "silent": self.is_silent,
            "error": self.error,
            "note": self.sentence() or None,
        }


def read_status(folder: Location) -> JobStatus:
    """Return the status of a job. Raises `JobError` if the folder is not that of a job, `StorageError`."""
    status = find_status(folder)
    if status is None:
        raise JobError(
            f"{folder} is not the folder of a job: it has neither the job.json of a scan nor the train.json of a "
            "training run. Give OUT/JOB of a scan, or OUT of `asap annotate` or `asap train`."
        )
    return status


def find_status(folder: Location) -> JobStatus | None:
    """Return the status of a job, or None if the folder is not that of a job. Raises `StorageError`."""
    with storage_errors(folder):
        try:
            record = read_record(folder)
            # Other programs write files of these names too, and `asap delete` must not take their folders for jobs.
            if record is not None and {"job_id", "state"} <= record.keys():
                return _scan_status(folder, record)
            settings = read_json(folder / "train.json") or {}
            return _training_status(folder) if {"corpus", "recipe"} <= settings.keys() else None
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise StorageError(f"the record of {folder} is broken: {error}. Choose another folder.") from error


def exit_code(status: JobStatus) -> int:
    """Return the exit code of the command whose job has ended."""
    total = status.counts.get("total")
    if status.state == "completed" and total and status.counts.get("errors") == total:
        return 1  # a scan whose pairs all fail is a failure
    allowed = status.record.get("settings", {}).get("max_error_rate", 1)
    if status.state == "completed" and status.counts.get("errors", 0) > allowed * (total or 0):
        return EXIT_TOO_MANY_ERRORS
    return _EXIT_CODES.get(status.state, 1)


def list_jobs(out: Location) -> list[JobStatus]:
    """Return the status of each job directly below a folder, and of the folder itself, the newest first.

    A job whose record is broken has the state `broken`. Raises `StorageError` if the folder cannot be read.
    """
    if not out.is_s3 and not Path(out.uri).is_dir():
        raise StorageError(f"{out} is not a folder. Give the --out of your jobs.")
    # The folders of a job's own work begin with an underscore, and one of them has a record.
    folders = [out, *(folder for folder in list_folders(out) if not folder.name.startswith("_"))]
    with ThreadPoolExecutor(_READERS) as readers:
        found = [status for status in readers.map(find_or_broken, folders) if status is not None]
    earliest = datetime.min.replace(tzinfo=UTC)
    return sorted(found, key=lambda status: status.heartbeat or earliest, reverse=True)


def find_or_broken(folder: Location) -> JobStatus | None:
    """Return the status of a job, which is `broken` if its record cannot be read; None if there is no job."""
    try:
        return find_status(folder)
    except StorageError as error:
        return JobStatus(folder, "unknown", BROKEN, error=str(error))


def _scan_status(folder: Location, record: dict[str, Any]) -> JobStatus:
    # While another policy is applied, the process that gives signs of life has a record of its own.
    alive = (read_record(folder / REPOLICY) or record) if RESULTS_ENTRY in record else record
    heartbeat = _time(alive.get("heartbeat"))
    counts = {name: count for name, count in (record.get("counts") or {}).items() if name != "pairs"}
    if "total" not in counts and "manifest" in record:
        counts["total"] = int(record["manifest"]["rows"])
    state = str(record.get("state", "unknown"))
    captioning = None if state in ENDS else record.get("captioning")
    return JobStatus(
        folder,
        str(record.get("kind", "scan")),
        state,
        counts=counts,
        phase="captioning" if captioning else None,
        phase_counts=({"done": int(captioning.get("done", 0)), "total": int(captioning["rows"])} if captioning else {}),
        pairs_per_s=record.get("pairs_per_s"),
        error=record.get("error"),
        runs=int(record.get("runs", 0)),
        host=alive.get("host"),
        pid=alive.get("pid"),
        heartbeat=heartbeat,
        age_s=_age_s(heartbeat),
        beat=(alive.get("run_id"), alive.get("beats")),
        can_be_cancelled=RESULTS_ENTRY not in record,
        record=record,
    )


def _training_status(folder: Location) -> JobStatus:
    record = read_json(folder / "run.json") or {}
    starts = record.get("starts") or [{}]
    last, progress = starts[-1], _last_progress(folder)
    signs = [_time(last.get(name)) for name in ("started", "finished")]
    signs += [datetime.fromtimestamp(progress["at"], UTC)] if "at" in progress else []
    sign = read_sign(folder)
    if has_heartbeat := bool(sign) and sign.get("run_id") in [start.get("run_id") for start in starts]:
        signs.append(_time(sign.get("heartbeat")))
    heartbeat = max((sign for sign in signs if sign is not None), default=None)
    state = "completed" if exists(folder / "model" / "config.json") else str(last.get("state", "running"))
    # The sign of an earlier start, or of a start that has ended, shows work that nobody does.
    works = state not in ENDS and bool(sign) and sign.get("run_id") == last.get("run_id")
    total = progress.get("of", (record.get("settings") or {}).get("pairs"))
    return JobStatus(
        folder,
        TRAIN,
        state,
        counts={"done": int(progress.get("pairs", 0))} | ({} if total is None else {"total": int(total)}),
        phase=str(sign["phase"]) if works and "phase" in sign else None,
        phase_counts=(
            {name: int(sign["phase_counts"][name]) for name in ("done", "total")}
            if works and "phase_counts" in sign
            else {}
        ),
        pairs_per_s=progress.get("pairs_per_s"),
        error=last.get("error"),
        runs=len(record.get("starts", ())),
        host=last.get("host"),
        pid=last.get("pid"),
        heartbeat=heartbeat,
        age_s=_age_s(heartbeat),
        beat=(len(starts), heartbeat, sign.get("beats")),
        can_be_cancelled=has_heartbeat,
        record=record,
    )


def _last_progress(folder: Location) -> dict[str, Any]:
    """Return the entries of the last whole line of the progress, and the last speed; nothing before the first line."""
    file = folder / "progress.jsonl"
    lines = read_bytes(file).split(b"\n")[:-1] if exists(file) else []
    entries: dict[str, Any] = {}
    for line in lines[-2:]:  # a line of validation metrics has no speed, the line before it has
        try:
            entries |= json.loads(line)
        except ValueError as error:
            raise StorageError(f"{file} is broken: {error}") from error
    return entries


def _time(text: Any) -> datetime | None:
    """Parse a time of a record; None for a record without one, or with one that cannot be read."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (TypeError, ValueError):
        return None


def _age_s(heartbeat: datetime | None) -> float | None:
    return None if heartbeat is None else (datetime.now(UTC) - heartbeat).total_seconds()


def format_duration(seconds: float) -> str:
    """Return a duration in the two units that matter: `12 s`, `14 min`, `3 h 5 min`, `2 d 4 h`."""
    return " ".join(_units(round(seconds)))


def _units(seconds: int) -> Iterator[str]:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        yield from (f"{days} d", f"{hours % 24} h")
    elif hours:
        yield from (f"{hours} h", f"{minutes % 60} min")
    else:
        yield f"{minutes} min" if minutes else f"{seconds} s"
