"""The audit log: one line of JSON for each request of the API, with no color and nothing else on the line."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any

from asap.errors import ConfigError

LOG = logging.getLogger("asap.requests")
_MODE = 0o640
"""Permissions of a new file: addresses of callers are not for everybody."""


class _LineFile(WatchedFileHandler):
    """A handler that appends each line by one write, so that several processes can share a file.

    A file that is moved away or deleted, as `logrotate` does, is made anew.
    """

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        return io.TextIOWrapper(os.fdopen(descriptor, "ab", buffering=0), "utf-8", write_through=True)


def start_audit(file: str | None) -> None:
    """Write the lines of this process to a file or, without one, to stderr, which Ray collects.

    Raises `ConfigError` if the file cannot be written.
    """
    LOG.setLevel(logging.INFO)
    if LOG.handlers:
        return
    if file is None:
        LOG.addHandler(logging.StreamHandler(sys.stderr))
        return
    check_audit_file(file)
    LOG.addHandler(_LineFile(file))
    LOG.propagate = False


def check_audit_file(file: str) -> None:
    """Raise `ConfigError` if a file cannot be written."""
    try:
        _LineFile(file).close()
    except OSError as error:
        raise ConfigError(
            f"audit_file {file!r} cannot be written: {error.strerror}. Name a file in a folder that exists."
        ) from error


def write_line(fields: dict[str, Any]) -> None:
    """Write a line with the time now and these fields."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    LOG.info(json.dumps({"time": now} | fields))
