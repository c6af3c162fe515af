#!/usr/bin/env python3
"""Copies the logs of this machine's Ray to a folder in S3 once a minute: `ship_logs.py s3://BUCKET/logs`.

A spot machine takes its disk with it when it goes. Of its logs, the last minute may then be missing.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from asap.errors import AsapError
from asap.storage.failures import storage_errors
from asap.storage.location import Location
from asap.storage.s3 import s3_client

RAY = Path("/tmp/ray")  # noqa: S108 - where Ray writes its logs
EVERY_S = 60.0

Shipped = dict[Path, tuple[int, int]]
"""Size and time of change of each file when it was last copied."""


def ship(ray: Path, target: Location, shipped: Shipped) -> int:
    """Copy each log file that has changed since the last call, and return how many. Raises `AsapError`.

    Args:
        ray: The folder of Ray's sessions.
        target: The folder in S3 that receives `SESSION/FILE`.
        shipped: What earlier calls copied; this call adds to it.
    """
    copied = 0
    # `session_latest` and links between logs are left out: they show files that are found under their own name too.
    sessions = [folder for folder in sorted(ray.glob("session_*")) if not folder.is_symlink()]
    for path in (path for session in sessions for path in sorted((session / "logs").rglob("*"))):
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
        shipped[path] = state
        copied += 1
    return copied


def main() -> None:
    """Ship the logs to the folder of this machine for ever; a failure is printed and tried again."""
    target = Location.parse(sys.argv[1]) / socket.gethostname()
    shipped: Shipped = {}
    while True:
        try:
            ship(RAY, target, shipped)
        except (AsapError, OSError) as error:
            sys.stderr.write(f"ship-logs: {target} did not get the logs: {error}\n")
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
