"""The log of the API: one line of JSON for each request, and one for each failure of the server.

A line has no color, and nothing else is on it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any

from asap.errors import ConfigError

LOG = logging.getLogger("asap.requests")
_FAILURES = logging.getLogger("asap")
"""The logger above all others of this project, whose warnings and errors are for the server's operator."""
LINE_START = '{"time": "'
"""The beginning of each line, by which a reader tells it from what else a process prints."""
_MODE = 0o640
"""Permissions of a new file: addresses of callers are not for everybody."""


class _LineFile(WatchedFileHandler):
    """A handler that appends each line by one write, so that several processes can share a file.

    A file that is moved away or deleted, as `logrotate` does, is made anew. While that or a write fails, lines are lost
    and requests are answered all the same. The failures' log says so once, and says again when lines are written.

    Args:
        file: The file.
        on_lost: Called for each line that is lost.
    """

    def __init__(self, file: str, on_lost: Callable[[], None] = lambda: None) -> None:
        super().__init__(file)
        self._on_lost = on_lost
        self._lost = 0
        """Lines lost since the last one that was written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it as lost."""
        lost = self._lost
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened anew
            self.handleError(record)
        if lost and self._lost == lost:
            self._lost = 0
            _FAILURES.warning("audit_file %r is written again. Lines lost: %d.", self.baseFilename, lost)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - a method of logging
        """Count a line that could not be written. Logging itself would print a traceback for each."""
        self._on_lost()
        self._lost += 1
        if self._lost == 1:
            error = sys.exception()
            reason = getattr(error, "strerror", None) or type(error).__name__
            advice = "Lines are lost until the file can be written. Mend its folder or free space."
            _FAILURES.error("audit_file %r cannot be written: %s. %s", self.baseFilename, reason, advice)

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        return io.TextIOWrapper(os.fdopen(descriptor, "ab", buffering=0), "utf-8", write_through=True)


class _JsonLine(logging.Formatter):
    """A formatter that writes a record, and its traceback, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _line(fields)


def start_logs(audit_file: str | None, on_lost: Callable[[], None] = lambda: None) -> None:
    """Write the lines of this process to stderr, which Ray collects, and those of requests to a file if one is named.

    Raises `ConfigError` if the file cannot be written. If that begins later, `on_lost` is called for each lost line.
    """
    if LOG.handlers:
        return
    if audit_file is not None:
        check_audit_file(audit_file)
    failures = logging.StreamHandler(sys.stderr)
    failures.setFormatter(_JsonLine())
    _FAILURES.addHandler(failures)
    LOG.addHandler(logging.StreamHandler(sys.stderr) if audit_file is None else _LineFile(audit_file, on_lost))
    LOG.setLevel(logging.INFO)
    _FAILURES.propagate = LOG.propagate = False


def check_audit_file(file: str) -> None:
    """Raise `ConfigError` if a file cannot be written."""
    try:
        _LineFile(file).close()
    except OSError as error:
        raise ConfigError(
            f"audit_file {file!r} cannot be written: {error.strerror}. Name a file in a folder that exists."
        ) from error


def write_request(fields: dict[str, Any]) -> None:
    """Write the line of a request, with the time now and these fields."""
    LOG.info(_line(fields))


def _line(fields: dict[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": now} | fields)
