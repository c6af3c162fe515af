#!/usr/bin/env python3
"""Copies the logs of this machine's Ray to a folder in S3 once a minute: `ship_logs.py s3://BUCKET/logs`.

A spot machine takes its disk with it when it goes. Of its logs, the last minute may then be missing. SIGTERM makes a
last copy, and then the end. Each boot of a machine has a folder of its own, since another machine may get the same
address and join the same session.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from pathlib import Path

from asap.errors import AsapError
from asap.storage.failures import storage_errors
from asap.storage.location import Location
from asap.storage.s3 import s3_client

RAY = Path("/tmp/ray")  # noqa: S108 - where Ray writes its logs
BOOT = Path("/proc/sys/kernel/random/boot_id")
EVERY_S = 60.0
MOST_PRINTED = 5
"""Failures of a round that are printed one by one."""

Shipped = dict[Path, tuple[int, int]]
"""Size and time of change of each file when it was last copied."""


def ship(ray: Path, target: Location, shipped: Shipped) -> tuple[int, list[str]]:
    """Copy each log file that has changed since the last call; return how many were copied, and the failures.

    A file that cannot be copied does not keep the others from it. It is tried again in the next call.

    Args:
        ray: The folder of Ray's sessions.
        target: The folder in S3 that receives `SESSION/FILE`.
        shipped: What earlier calls copied; this call adds to it.
    """
    copied, failures = 0, []
    # `session_latest` and links between logs are left out: they show files that are found under their own name too.
    sessions = [folder for folder in sorted(ray.glob("session_*")) if not folder.is_symlink()]
    for path in (path for session in sessions for path in sorted((session / "logs").rglob("*"))):
        try:
            if path.is_symlink() or not path.is_file():
                continue
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if shipped.get(path) == state:
                continue
            name, _, *rest = path.relative_to(ray).parts
            goal = target / "/".join((name, *rest))
            with storage_errors(goal):
                s3_client().upload_file(str(path), goal.bucket, goal.key)
        except (AsapError, OSError, ValueError) as error:  # a ValueError: a name that no key in S3 can have
            failures.append(f"{path} was not copied: {error}")
            continue
        shipped[path] = state
        copied += 1
    return copied, failures


def folder_of_machine(logs: Location) -> Location:
    """Return the folder of this machine since it was started: its name, and the id of its boot."""
    return logs / f"{socket.gethostname()}-{BOOT.read_text().strip()}"


def main() -> None:
    """Ship the logs to the folder of this machine until SIGTERM; failures are printed and tried again."""
    target = folder_of_machine(Location.parse(sys.argv[1]))
    shipped: Shipped = {}
    is_last = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_last.set())
    while True:
        is_end = is_last.is_set()  # read first: what is written before the signal is then copied after it
        try:
            _, failures = ship(RAY, target, shipped)
        except OSError as error:  # a folder that goes while it is listed
            failures = [f"the files of {RAY} were not listed: {error}"]
        for failure in failures[:MOST_PRINTED]:
            sys.stderr.write(f"ship-logs: {failure}\n")
        if more := len(failures[MOST_PRINTED:]):
            sys.stderr.write(f"ship-logs: and {more} more failed.\n")
        if is_end:
            return
        is_last.wait(EVERY_S)


if __name__ == "__main__":
    main()
