"""The shell command and the environment with which Ray runs a command of `asap` on a machine of the cluster."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime

STOP_ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""Ray kills a job three seconds after its signal. A job writes what it has judged first, as after any signal."""
RAYS_INTERPRETER = (
    r"raylet=$(tr '\0' '\n' </proc/$PPID/environ | sed -n 's/^RAY_RAYLET_PID=//p'); "
    r"python=$(tr '\0' '\n' </proc/$raylet/cmdline | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')"
)
"""Finds the interpreter of Ray's own workers, which has Ray and asap. The PATH of the shell is that of `ray start`, and
may lead to another one. The parent of the shell is a worker, whose environment names its raylet."""


ARGUMENTS = "ASAP_JOB_ARGUMENTS"
"""Variable with the arguments of `REQUESTED_COMMAND`, as a JSON list that begins with the name of the command."""
REQUESTED_COMMAND = f'{RAYS_INTERPRETER}; exec "$python" -P -m jobs.cli.requested'
"""The command line for arguments that strangers chose: the same for all of them, so that no shell reads them."""


def shell_command(command: str, arguments: Sequence[str], python: str | None) -> str:
    """Return the command line for a shell.

    The shell is replaced by the interpreter, so that its exit code and its signals are those of the command. The
    interpreter does not import from the working folder, whatever that holds (`-P`).

    Args:
        command: The command of asap.
        arguments: Its arguments.
        python: The interpreter on the cluster. None: that of Ray's workers.
    """
    find, name = ("", shlex.quote(python)) if python else (f"{RAYS_INTERPRETER}; ", '"$python"')
    return f"{find}exec {name} -P -m jobs.cli {shlex.join([command, *arguments])}"


def new_submission_id(command: str) -> str:
    """Return an id that no job of the cluster has. It begins with the command and the time (UTC)."""
    return f"asap-{command}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
