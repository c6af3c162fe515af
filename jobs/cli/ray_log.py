"""The log file for what Ray prints while a command runs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ray_output_logged() -> Iterator[None]:
    """Send what this process prints to stderr to a temporary file during the block.

    Ray's C++ writes warnings and traces to the file descriptor, in the middle of the progress. An error that leaves the
    block gets a note with the path of the file, if anything was printed. Else the file is deleted.
    """
    descriptor, name = tempfile.mkstemp(prefix="asap-", suffix=".log")
    log, former, terminal = Path(name), sys.stderr, os.dup(2)
    former.flush()
    os.dup2(descriptor, 2)
    is_kept = False
    try:
        # rich replaces sys.stderr while it shows a bar, so redirecting the descriptor is not enough.
        with os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="replace") as sys.stderr:
            yield
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
