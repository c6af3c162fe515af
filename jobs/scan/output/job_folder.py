"""The folder of a job: its record (`job.json`), which process owns the job, and whether it can be resumed.

    job.json        settings, state, counts, model, versions, timings, heartbeat
    manifest/       the input as rows            results/      one row for each of them
    errors.jsonl    flagged.jsonl    unfamiliar.jsonl    summary.json    report/index.html
    _remaining/     rows of the manifest that a resumed job still has to scan, until it is done
    _sample/        rows of the sample that is scanned before the rest
    _captions/      rows that are captioned after they were judged, and their captions, until these are published
    _retry/         failed rows that are judged again, and their new outcomes, until these are published
    _lists/         lists of parts of the results, until they are joined
    history/        the old outcomes of rows that were judged again, a folder for each retry
    _SUCCESS        written last; _remaining and _sample are deleted after it
    _repolicy/      exists while another policy is applied to a finished job
    _cancel         asks the process that owns the job to stop

States: validating, running, finalizing, then completed, failed, cancelled or unfamiliar (most of a sample is unfamiliar
to the model). A job that was stopped in any way resumes when the same command is run again, an unfamiliar one with
`--allow-unfamiliar` added. The process that owns a job writes a heartbeat. A process that sees the heartbeat of another
one move leaves the job alone, and an owner that finds the id of another run in the record, or a file `_cancel`, stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from asap.errors import StorageError
from asap.job_records.record import CANCEL, ENDS, RESULTS_ENTRY, read_record
from asap.storage.files import (
    create_bytes,
    delete_file,
    delete_folder,
    exists,
    is_empty,
    write_bytes,
)
from asap.storage.location import Location
from jobs.errors import JobDiffers, JobFailed, JobInUse
from jobs.heartbeat import Heartbeat, wait_until_still
from jobs.states import end_state, reason_of

RECORD_VERSION = 1
Notify = Callable[[str], None]
OnState = Callable[[dict[str, Any]], None]
_LOOK_AGAIN_S = 0.5
"""Seconds between two looks for a record that seems to be deleted."""


def check_resumable(folder: Location, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of a job that the same command started before; None if the folder is free.

    Raises `JobDiffers` if the folder holds another job, with the differences in the message, or something else.
    """
    record = read_record(folder)
    if record is None:
        if not is_empty(folder):
            raise JobDiffers(f"{folder} holds files that are not a job's. Choose another --out or --job.")
        return None
    if RESULTS_ENTRY in record:
        raise JobDiffers(
            f"{folder} is being given another policy. Wait until that is done, or run its `asap repolicy` again."
        )
    if differences := _differences(record.get("identity", {}), identity):
        raise JobDiffers(
            f"{folder} belongs to another job: {'; '.join(differences)}. Choose another, or run the same command."
        )
    return record


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Describe each difference between two identities, for a person."""
    flat_old, flat_new = _flat(old), _flat(new)
    if "settings.captions.engine" in flat_old and "settings.caption_pairs" in flat_new:
        flat_old.setdefault("settings.caption_pairs", "all")  # earlier versions captioned all pairs
    differ = [name for name in sorted(flat_old.keys() | flat_new.keys()) if flat_old.get(name) != flat_new.get(name)]
    if "settings.input" in differ and "input" in differ:
        differ.remove("input")  # another input has another fingerprint, which says nothing more
    if "schema_version" in flat_old and flat_old["schema_version"] < flat_new.get("schema_version", 0):
        differ.remove("schema_version")  # columns are only ever added, and results of earlier versions get them
    if flat_new.get("settings.captions.engine") == "precomputed":
        differ = [name for name in differ if name != "settings.captions.prompt"]  # it decides nothing there
    return [
        "the content of the input has changed"
        if name == "input"
        else f"{name} was {flat_old.get(name)!r} and is {flat_new.get(name)!r}"
        for name in differ
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def is_finished(folder: Location) -> bool:
    """Return True if the job is complete, with its last file written."""
    return exists(folder / "_SUCCESS")


def wait_until_free(folder: Location, record: dict[str, Any], stale_after_s: float, notify: Notify) -> None:
    """Return once no process works on the job: at once if its record says so, else when its heartbeat stands still.

    The heartbeat is watched, not compared with this machine's clock. Raises `JobInUse` if it moves.

    Args:
        folder: Folder of the job.
        record: Record of the job, as it was read before.
        stale_after_s: Seconds to watch the heartbeat.
        notify: Receives a sentence before the wait.
    """
    if record.get("state") not in ENDS:
        wait_until_still(folder, record, lambda: read_record(folder) or {}, stale_after_s, notify)


def is_same_run(folder: Location, record: dict[str, Any]) -> bool:
    """Return True if no other process has worked on the job since the record was read."""
    now = read_record(folder) or {}
    return all(now.get(name) == record.get(name) for name in ("run_id", "beats", "state"))


class Job:
    """A job that this process works on.

    Entering the context claims the job and starts its heartbeat; leaving it records how the job ended.
    """

    def __init__(
        self, folder: Location, record: dict[str, Any], heartbeat_s: float, on_state: OnState = lambda record: None
    ) -> None:
        """Prepare the claim of a job.

        Args:
            folder: Folder of the job.
            record: Record of an earlier run, or the first entries of a new one.
            heartbeat_s: Seconds between two heartbeats.
            on_state: Receives the record after each write of a state.
        """
        self.folder = folder
        self._on_state = on_state
        self._lock = threading.Lock()
        self._heart = Heartbeat(self._beat, heartbeat_s)
        self._also: list[Callable[[], None]] = []
        """Further checks of the work that goes on."""
        self._lost = False
        self._deleted = False
        self._misses = 0
        self._record = record | {
            "record_version": RECORD_VERSION,
            "job_id": folder.name,
            "run_id": uuid.uuid4().hex,
            "runs": record.get("runs", 0) + 1,
            "beats": 0,
            "error": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    @property
    def record(self) -> dict[str, Any]:
        """A copy of the record. `job.json` holds it after the next write."""
        with self._lock:
            return dict(self._record)

    def update(self, **entries: Any) -> None:
        """Change entries and write the record. Raises `JobFailed` if the folder was deleted meanwhile."""
        if self._heart.is_beating and self._is_deleted():
            raise self._deletion()  # a write would make the folder anew
        with self._lock:
            self._record |= entries
            self._write()
        if "state" in entries:
            self._on_state(self.record)

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if the job was cancelled, deleted or taken over; and what other checks raise."""
        self._heart.check()
        for check in self._also:
            check()

    @contextmanager
    def also_checked(self, check: Callable[[], None]) -> Iterator[None]:
        """Have `check` do another check too, for the duration of the block."""
        self._also.append(check)
        try:
            yield
        finally:
            self._also.remove(check)

    def announce(self, state: str, error: str | None = None) -> None:
        """Report a state that the record does not take, such as `stalled`, and the reason."""
        self._on_state(self.record | {"state": state, "error": error})

    def end_retry(self) -> None:
        """Move the retry of the record, whose rows are published, to the list of those that are done."""
        with self._lock:
            done = self._record.pop("retry") | {"at": datetime.now(UTC).isoformat(timespec="seconds")}
            self._record["retries"] = [*self._record.get("retries", []), done]
            self._write()

    def note(self, **entries: Any) -> None:
        """Change entries; the next heartbeat writes them."""
        with self._lock:
            self._record |= entries

    def __enter__(self) -> Self:
        self._record["state"] = "validating"
        # A new job is claimed by creating its record, which succeeds in one process only.
        if self._record["runs"] > 1:
            self.update(state="validating")
        elif create_bytes(self.folder / "job.json", self._encoded()):
            self._on_state(self.record)
        else:
            raise JobInUse(
                f"{self.folder} is in use: another process has begun it. Wait for it, or choose another folder."
            )
        delete_file(self.folder / CANCEL)  # it was meant for an earlier run
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_recorded = self._heart.has_ended
        self._heart.stop()
        if self._lost:
            raise JobInUse(f"{self.folder} was taken over by another process. This one stopped.") from error
        if error is None:
            return
        if self._is_deleted():
            raise self._deletion() from error
        if is_recorded:
            return
        if isinstance(error, KeyboardInterrupt):
            self.cancel()
            return
        # What stopped the job may also prevent its record. The reason is worth more than that failure.
        with suppress(StorageError):
            self.update(state=end_state(error), error=reason_of(error))

    def _is_deleted(self) -> bool:
        """Return True if the record is gone. It is looked for twice, because a store may have a hiccup."""
        if not self._deleted:
            try:
                self._deleted = not any(self._is_recorded(wait_s) for wait_s in (0, _LOOK_AGAIN_S))
            except StorageError:
                return False  # a store that is away has deleted nothing
        return self._deleted

    def _is_recorded(self, wait_s: float) -> bool:
        time.sleep(wait_s)
        return exists(self.folder / "job.json")

    def _deletion(self) -> JobFailed:
        """Return the error of a deleted job. What workers wrote into the folder after its deletion is deleted too."""
        if "manifest" in self._record and not is_empty(self.folder / "manifest"):
            return JobFailed(
                f"{self.folder / 'job.json'} was deleted while the job ran, and the rest is of no use without it. "
                f"Delete {self.folder}, and run the command again to start anew."
            )
        delete_folder(self.folder)
        return JobFailed(
            f"{self.folder} was deleted while the job ran. Nothing of it is kept. Run the command again to start anew."
        )

    def cancel(self) -> None:
        """Record that the job was stopped, before the work is cleaned up, which may take longer than is given.

        Nothing is written to the record after it: another process may resume the job from then on.
        """
        self._heart.stop()
        if not self._lost and not self._is_deleted():
            self.update(state="cancelled")
            delete_file(self.folder / CANCEL)

    def _beat(self) -> bool:
        """Give a sign of life, and return True if the work must stop."""
        self._beat_once()
        return self._lost or self._deleted or exists(self.folder / CANCEL)

    def _beat_once(self) -> None:
        """Write a heartbeat, unless another run has taken the job over or the record is gone."""
        found = read_record(self.folder)
        # Once may be a hiccup of a store. Twice in a row the folder was deleted, and is not made anew.
        self._misses = 0 if found else self._misses + 1
        self._deleted = self._misses > 1
        self._lost = found is not None and found.get("run_id") != self._record["run_id"]
        if found is not None and not self._lost:
            with self._lock:
                self._record["beats"] += 1
                self._write()

    def _write(self) -> None:
        write_bytes(self.folder / "job.json", self._encoded())

    def _encoded(self) -> bytes:
        self._record["heartbeat"] = datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps(self._record, indent=2, default=str).encode()


def fail(reason: str) -> JobFailed:
    """Return an error that says how to resume."""
    return JobFailed(f"{reason}. What was done is kept; run the same command again to resume.")
