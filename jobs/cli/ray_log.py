"""The log file for what Ray prints while a command runs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def ray_output_logged() -> Iterator[TextIO]:
    """Send what this process prints to stderr to a temporary file during the block, which gets the real stderr.

    Ray's C++ writes warnings and traces to the file descriptor, in the middle of the progress. The attribute `terminal`
    of `sys.stderr` is the real one, for lines that belong there. An error that leaves the block gets a note with the
    path of the file, if anything was printed. Else the file is deleted.
    """
    descriptor, name = tempfile.mkstemp(prefix="asap-", suffix=".log")
    log, former, terminal = Path(name), sys.stderr, os.dup(2)
    former.flush()
    os.dup2(descriptor, 2)
    is_kept = False
    options: dict[str, Any] = {"mode": "w", "buffering": 1, "encoding": "utf-8", "errors": "replace"}
    try:
        # rich replaces sys.stderr while it shows a bar, so redirecting the descriptor is not enough.
        with os.fdopen(terminal, closefd=False, **options) as real, os.fdopen(descriptor, **options) as sys.stderr:
            sys.stderr.terminal = real if _writes_to_descriptor_2(former) else former
            yield sys.stderr.terminal
    except Exception as error:
        is_kept = log.stat().st_size > 0
        if is_kept:
            error.add_note(f"What Ray printed is in {log}.")
        raise
    finally:
        sys.stderr = former
        os.dup2(terminal, 2)
        os.close(terminal)
        if not is_kept:
            log.unlink()


def _writes_to_descriptor_2(stream: TextIO) -> bool:
    """Return True unless the caller has put another stream in the place of stderr."""
    try:
        return stream.fileno() == 2
    except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
        return False
