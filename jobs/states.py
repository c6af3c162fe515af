"""The states of a job as its operator sees them: a JSON line for each change, and a notification when it ends.

The lines go to the logger `asap.jobs`, as those of requests go to `asap.requests`. `log_file` writes them to a file, or
to stderr as `-`; a program that calls a job in Python adds a handler of its own instead. A line and the document of a
notification have the same fields. docs/watching.md describes them.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asap.errors import ConfigError
from asap.job_records.record import ENDS
from jobs.errors import InputUnfamiliar
from jobs.notify import Notifier
from jobs.settings import WatchSettings

LOG = logging.getLogger("asap.jobs")
_WARNINGS = logging.getLogger("asap.notify")
STALLED = "stalled"
"""The state of a job that runs and makes no progress. Its record keeps the state `running`."""


class JobStates:
    """The states of one job. Each change is logged; a stall is notified at once, and the end when the job is over.

    Args:
        kind: `scan`, `train`, `evaluate` or `calibrate`.
        job: Name of the job.
        folder: Address of what the job writes.
        notifier: Receives the documents of stalls and of the end.
    """

    def __init__(self, kind: str, job: str, folder: str, notifier: Notifier) -> None:
        self._notifier = notifier
        self._lock = threading.Lock()
        self._entries: dict[str, Any] = {
            "kind": kind, "job": job, "folder": folder, "host": socket.gethostname(), "run_id": uuid.uuid4().hex,
            "state": None, "counts": {}, "error": None,
        }  # fmt: skip

    def note(self, **counts: int) -> None:
        """Keep counts for the next line."""
        with self._lock:
            self._entries["counts"] = counts

    def change(self, record: Mapping[str, Any]) -> None:
        """Take over `run_id`, `state`, `counts` and `error` of a record. Log them if the state is another one."""
        changes = {name: record[name] for name in ("run_id", "state", "counts", "error") if name in record}
        with self._lock:
            is_new = changes.get("state", self._entries["state"]) != self._entries["state"]
            self._entries |= changes
            document = self._document()
        if is_new:
            LOG.info(json.dumps(document, default=str))
            if document["state"] == STALLED:
                self._notifier.send(document)

    def end(self, error: BaseException | None) -> None:
        """Log how the job ended, unless its record has said so, and notify. A job that never began has no end.

        Args:
            error: The error that ended the job, if one did.
        """
        state = self._entries["state"]
        if state is None:
            return
        if state not in ENDS or (state == "completed" and error is not None):
            self.change({"state": end_state(error), "error": None if error is None else reason_of(error)})
        self._notifier.send(self._document())

    def _document(self) -> dict[str, Any]:
        entries = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | self._entries
        return entries | {"sentence": sentence(entries)}


def end_state(error: BaseException | None) -> str:
    """Return the state of a job that an error ended; None: nothing did."""
    if error is None:
        return "completed"
    if isinstance(error, KeyboardInterrupt):
        return "cancelled"
    return "unfamiliar" if isinstance(error, InputUnfamiliar) else "failed"


def reason_of(error: BaseException) -> str | None:
    """Return the reason of a failure: the first line of its message. None for a stop."""
    if isinstance(error, KeyboardInterrupt):
        return None
    return str(error).partition("\n")[0] or type(error).__name__


def sentence(entries: Mapping[str, Any]) -> str:
    """Return the state of a job in one or two sentences for a person."""
    name = f"{str(entries['kind']).capitalize()} {entries['job']}"
    counts = entries["counts"] or {}
    work = f"{counts['done']:,} of {counts['total']:,} pairs are done" if "total" in counts else ""
    for kind in ("flagged", "unfamiliar", "errors"):
        if number := counts.get(kind):
            work += f", {number:,} {'error' if kind == 'errors' and number == 1 else kind}"
    reason = str(entries["error"] or "").rstrip(".")
    match entries["state"]:
        case "completed":
            said = f"{name} is complete."
        case "cancelled":
            said = f"{name} was stopped. Run the same command again to go on."
        case "failed" | "unfamiliar" | "stalled" as state:
            verb = {"failed": "failed", "unfamiliar": "stopped", "stalled": "has stalled"}[state]
            said = f"{name} {verb}: {reason}." if reason else f"{name} {verb}."
        case state:
            said = f"{name} is {state}."
    return f"{said} {work}." if work else said


@contextmanager
def job_states(settings: WatchSettings, kind: str, job: str, folder: object) -> Iterator[JobStates]:
    """Log and notify the states of a job during the block, and its end after the block.

    The block calls `change` for each state. Leaving it waits for the notifications, at most `notify_for_s` seconds.
    Raises `ConfigError` if the log file cannot be written or the token of notifications cannot be sent.

    Args:
        settings: Targets of notifications, and the log file.
        kind: `scan`, `train`, `evaluate` or `calibrate`.
        job: Name of the job.
        folder: Address of what the job writes.
    """
    notifier = Notifier(settings.notify, settings.notify_for_s)
    states = JobStates(kind, job, str(folder), notifier)
    with _logged_to(settings.log_file):
        try:
            yield states
        except BaseException as error:
            states.end(error)
            raise
        else:
            states.end(None)
        finally:
            notifier.wait()


@contextmanager
def _logged_to(log_file: str | None) -> Iterator[None]:
    """Append the lines of `LOG` to a file during the block; to stderr for `-`, nowhere for None."""
    if log_file is None:
        yield
        return
    # The command line sends stderr to Ray's log, and keeps the real one at hand.
    stderr = getattr(sys.stderr, "terminal", sys.stderr)
    handler = logging.StreamHandler(stderr) if log_file == "-" else _AppendedLines(log_file)
    level = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)


class _AppendedLines(logging.Handler):
    """A handler that opens its file for each line, so that the file may be rotated. A full disk is a warning."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file).expanduser()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.open("a").close()
        except OSError as error:
            raise ConfigError(f"log_file {file!r} cannot be written: {error.strerror}. Choose another file.") from error

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(record.getMessage() + "\n")
        except OSError as error:
            _WARNINGS.warning("asap: log_file %s cannot be written: %s", self._file, error.strerror)
