"""The output of a server's processes: lines of JSON for a log system, and Ray's own lines for its log file.

Ray prints all of them with the name of the process before each line, in color, and leaves out lines that look alike.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

from serve.api.audit import LINE_START

_RAYS_PRINTER = "ray_print_logs"
"""The name under which Ray registers the function that prints, and removes it again when it shuts down."""


def print_json_lines_alone(stream: TextIO) -> None:
    """Write the server's lines of JSON to the stream, each alone on its line, while this process runs Ray.

    All other lines go to stderr, which `ray_output_logged` sends to a file. Ray offers no public way to print by
    another function; pyproject.toml bounds the version of Ray.
    """
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler(_RAYS_PRINTER)
    dispatcher.add_handler(_RAYS_PRINTER, lambda batch: _write(batch, stream))
    # Messages of the raylet about actors that ended take another way.
    worker.print_to_stdstream = lambda batch, *_, **__: _write(batch, stream)


def _write(batch: dict[str, Any], stream: TextIO) -> None:
    """Write the lines of one process."""
    for line in batch.get("lines", ()):
        if line.startswith(LINE_START):
            stream.write(f"{line}\n")
        else:
            name = batch.get("actor_name") or batch.get("task_name") or "ray"
            sys.stderr.write(f"({name} pid={batch.get('pid')}) {line}\n")
    stream.flush()
