"""A machine that sees an empty folder where the others see files: a raylet in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HIDE = 'mount -t tmpfs hidden "$0" && exec "$@"'


def can_hide_folders() -> bool:
    """Return True if this process may make mount namespaces."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "hidden", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def folder_hidden(folder: Path) -> Iterator[None]:
    """Have the raylets that this process starts in the block, and their workers, see the folder as empty."""
    from ray._private import services
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    former = services.start_ray_process

    def start(command: list[str], kind: str, *arguments: Any, **options: Any) -> Any:
        if kind == PROCESS_TYPE_RAYLET:
            command = ["unshare", "--mount", "sh", "-c", _HIDE, str(folder), *command]
        return former(command, kind, *arguments, **options)

    services.start_ray_process = start
    try:
        yield
    finally:
        services.start_ray_process = former
