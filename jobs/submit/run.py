"""A command on a cluster: submitted under a new id, followed to its end, or stopped.

Ray's log of a job is a file of the machine that runs it. It is read from its beginning, also after a connection was
lost, and what was shown already is passed over.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp

from asap.submission.entrypoint import STOP_ENVIRONMENT, shell_command
from jobs.errors import EXIT_STOPPED, JobError, JobUnknown
from jobs.submit.job_server import JobServer, logs_command

_LOOK_S = 5.0
"""Seconds without a new line after which the job is asked whether it has ended."""
_LOST_S = 120.0
"""Seconds without an answer of the dashboard after which it counts as lost."""
_PAUSE_S = 1.0
_SHELL_CODES = {126: "cannot be run", 127: "was not found"}


def submit(
    server: JobServer, submission_id: str, command: str, arguments: Sequence[str], *, python: str | None = None
) -> None:
    """Submit a command of asap. It runs on the head and reserves nothing. Raises `JobError`.

    Args:
        server: The cluster.
        submission_id: An id that no job of the cluster has.
        command: The command.
        arguments: Its arguments.
        python: The interpreter on the cluster. None: that of Ray's workers.
    """
    server.submit(shell_command(command, arguments, python), submission_id, STOP_ENVIRONMENT)


def follow(server: JobServer, submission_id: str, show: Callable[[str], None]) -> int:
    """Show the log of a job until it ends, and return the exit code of its command; 130 if it was stopped.

    Raises `JobError` if the job ended without an exit code of asap, or if the dashboard is lost.
    """
    server.info(submission_id)  # raises if there is no such job
    asyncio.run(_show_log(server, submission_id, show))
    info = server.info(submission_id)
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return EXIT_STOPPED
    code = info.driver_exit_code
    if code is None:
        reason = (info.message or "Ray gave no reason").strip().splitlines()[0].rstrip(".")
        raise JobError(f"job {submission_id} failed on the cluster: {reason}. Submit the same command again to resume.")
    if code in _SHELL_CODES:
        raise JobError(
            f"job {submission_id} did not start: its interpreter {_SHELL_CODES[code]} on the cluster. Give --python "
            "with the path of the Python there that has asap."
        )
    number = -code if code < 0 else code - 128
    if code != EXIT_STOPPED and number in set(signal.Signals):
        raise JobError(
            f"job {submission_id} was ended by {signal.Signals(number).name} on the cluster. SIGKILL comes from a "
            "machine without memory, among others. Submit the same command again to resume."
        )
    return int(code)


def stop(server: JobServer, submission_id: str, wait_s: float) -> str:
    """Stop a job in an orderly way, and return its last status. Raises `JobError` if it does not end in time."""
    server.stop(submission_id)
    deadline = time.monotonic() + wait_s
    while not (info := server.info(submission_id)).status.is_terminal():
        if time.monotonic() >= deadline:
            raise JobError(f"job {submission_id} was asked to stop, and has not ended within {wait_s:g} s. Ask again.")
        time.sleep(_PAUSE_S)
    return str(info.status.value)


async def _show_log(server: JobServer, submission_id: str, show: Callable[[str], None]) -> None:
    shown, has_ended = 0, False
    answered_s = time.monotonic()
    while True:
        passed = 0
        lost: JobError | None = None
        try:
            async for piece in _until_ended(server, submission_id):
                answered_s = time.monotonic()
                new = piece[max(0, shown - passed) :]
                passed += len(piece)
                if new:
                    show(new)  # its own errors, such as that of a closed pipe, are no `JobError` and pass
                    shown = passed
            if has_ended:
                return
            has_ended = (await asyncio.to_thread(server.info, submission_id)).status.is_terminal()
            answered_s = time.monotonic()
            if has_ended:  # the connection may have ended before the last lines: read the log once more
                continue
        except JobError as error:
            lost = error
        if lost is not None and time.monotonic() - answered_s > _LOST_S:
            raise await asyncio.to_thread(_last_word, server, submission_id, lost)
        await asyncio.sleep(_PAUSE_S)


def _last_word(server: JobServer, submission_id: str, lost: JobError) -> JobError:
    """Return the error that ends the watching: the cluster no longer has the job, or the dashboard is lost."""
    try:
        server.info(submission_id)
    except JobUnknown as error:  # a head that was replaced answers, and knows nothing of the job
        return error
    except JobError as error:
        lost = error
    return JobError(f"{lost} The job may still run: look with {logs_command(server.url, submission_id)}.")


async def _until_ended(server: JobServer, submission_id: str) -> AsyncIterator[str]:
    """Yield the pieces of the log. They end when the job has ended, also if the connection does not say so.

    Raises `JobError` if the connection is lost.
    """
    pieces = server.log(submission_id)
    coming = asyncio.ensure_future(anext(pieces, None))
    try:
        while True:
            await asyncio.wait({coming}, timeout=_LOOK_S)
            if coming.done():
                if (piece := coming.result()) is None:
                    return
                yield piece
                coming = asyncio.ensure_future(anext(pieces, None))
            elif (await asyncio.to_thread(server.info, submission_id)).status.is_terminal():
                return
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        raise JobError(f"the dashboard at {server.url} was lost: {error}.") from error
    finally:
        coming.cancel()
