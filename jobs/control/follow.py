"""Follow a job to its end, and cancel it: both watch the job's record, from any machine.

Signs of life are watched, not compared with a clock: a job whose sign of life has not changed for a while has no
process, whatever the clocks of the machines say.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from asap.errors import StorageError
from asap.job_records.record import CANCEL, request_cancel
from asap.job_records.status import JobStatus, find_status, format_duration, read_status
from asap.storage.files import delete_file
from asap.storage.location import Location
from jobs.errors import JobError

_POLL_S = 1.0


def follow_job(
    folder: Location,
    on_change: Callable[[JobStatus], None],
    *,
    every_s: float = 10,
    give_up_after_s: float | None = None,
) -> JobStatus:
    """Wait until a job ends, and return its last status.

    A store that fails for a while is no reason to stop. Raises `JobError` if there is no sign of life any more, or if
    the folder is not that of a job or was deleted; `StorageError` if the store keeps failing.

    Args:
        folder: Folder of the job.
        on_change: Receives the status at the start, at each change of the state, of the work under way or of the
            process, and when counts have changed.
        every_s: Fewest seconds between two calls that report counts.
        give_up_after_s: Seconds without a sign of life. None: a minute; 15 for a training run of an earlier version.
    """
    shown = last = read_status(folder)
    on_change(shown)
    shown_s = moved_s = time.monotonic()
    while not last.has_ended:
        if last.is_silent:
            raise JobError(f"{folder}: {last.sentence()}")
        time.sleep(_POLL_S)
        now_s = time.monotonic()
        limit_s = last.watched_s if give_up_after_s is None else give_up_after_s
        try:
            now = find_status(folder)
        except StorageError:
            if now_s - moved_s > limit_s:
                raise
            continue
        if now is None:
            raise JobError(f"{folder} was deleted while it was watched.")
        if now.beat != last.beat:
            moved_s = now_s
        elif not now.has_ended and now_s - moved_s > limit_s:
            raise JobError(f"{folder}: no sign of life for {format_duration(now_s - moved_s)}: {now.remedy}")
        is_news = (now.state, now.runs, now.phase) != (shown.state, shown.runs, shown.phase)
        has_moved = (now.counts, now.phase_counts) != (shown.counts, shown.phase_counts)
        if is_news or (has_moved and now_s - shown_s >= every_s):
            on_change(now)
            shown, shown_s = now, now_s
        last = now
    return last


def cancel_job(folder: Location, *, wait_s: float = 60, notify: Callable[[str], None] = lambda line: None) -> JobStatus:
    """Ask the process of a job to stop, and wait until its record says that the job ended; return that status.

    A job that has ended already is left as it is. Raises `JobError` if no process works on the job, if the process
    does not stop in time, or if it does not look for the request.

    Args:
        folder: Folder of the job.
        wait_s: Seconds to wait.
        notify: Receives a sentence before the wait.
    """
    status = read_status(folder)
    if status.has_ended:
        return status
    if status.is_silent:
        raise JobError(f"{folder} was not cancelled, because nothing works on it: {status.sentence()}")
    if not status.can_be_cancelled:
        raise JobError(
            f"{folder} cannot be cancelled through its folder: {status.process} does not look for requests. Stop the "
            "command itself, with Ctrl-C or SIGTERM."
        )
    request_cancel(folder)
    notify(f"waiting up to {format_duration(wait_s)} until {status.process} has stopped")
    dead_after_s = float((status.record.get("settings") or {}).get("stale_after_s", 12))
    asked_s = moved_s = time.monotonic()
    while (now_s := time.monotonic()) - asked_s < wait_s:
        time.sleep(min(_POLL_S, wait_s / 10))
        try:
            now = find_status(folder)
        except StorageError:
            moved_s = now_s  # a store that is away says nothing about the process; the wait has an end of its own
            continue
        if now is None:
            raise JobError(f"{folder} was deleted while its job was being cancelled.")
        if now.has_ended:
            # The process deletes the request, unless it had ended for another reason before it saw it.
            delete_file(folder / CANCEL)
            return now
        if now.beat != status.beat:
            status, moved_s = now, now_s
        elif now_s - moved_s > dead_after_s:
            # A request that stays would stop the process that resumes the job.
            delete_file(folder / CANCEL)
            raise JobError(
                f"{folder} was not cancelled, because nothing works on it: no sign of life for "
                f"{format_duration(now_s - moved_s)}. Its record is unchanged. {status.next_step}"
            )
    raise JobError(
        f"{folder} has not stopped within {format_duration(wait_s)}. The request stays, and {status.process} stops "
        "when it sees it. To stop at once, end that process."
    )
