"""The start of Ray on this machine, or the connection to a cluster, with an error that says what went wrong.

Ray itself says little. A folder whose path is too long, an address where nobody listens and a raylet that died all end
in the same timeout, some of them after two minutes. So the folder and the address are checked first, and a dead raylet
ends the start at once.

Ray offers no public way to fix the ports of its agents, nor to hear of a dead raylet. `_hooks` reaches into its private
modules; pyproject.toml bounds the version of Ray.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from asap.packages import SETUP_HOOK
from jobs.errors import JobError
from jobs.ray_address import DASHBOARD_PORT, host_of

_TRIES = 3
_RETRY_WITHIN_S = 60.0
"""Seconds after the first try in which another may begin. A machine that is too busy for that long stays so."""
_REGISTER_S = 60.0
"""Seconds that a raylet has to register. Ray gives it 30, and a busy machine may need more."""
_CONNECT_S = 5.0
_END_S = 2.0
"""Seconds that a process of a failed start has to end by itself."""
_MOST_SOCKET_BYTES = 107
"""Longest path of a Unix socket, by the operating system."""
_AGAIN = "Then run the same command again."
_RAYLET_ENDED = "its raylet ended"
_ERROR_LINE = re.compile(r"\[[^]]* [CEF] [^]]*\](?: \([^)]*\))? \S+: (.*)")
"""A line of a log of Ray's C++ at the levels error, critical and fatal."""


def start_ray(address: str | None, options: dict[str, Any]) -> None:
    """Start Ray on this machine, or connect to a cluster. Raises `JobError` with the reason and what to do.

    Args:
        address: A running cluster; None starts Ray on this machine.
        options: Further arguments of `ray.init`.
    """
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR} | options
    # Workers import the packages before Ray puts the working folder first on their path, whatever that folder holds.
    settings["runtime_env"] = {"worker_process_setup_hook": SETUP_HOOK} | options.get("runtime_env", {})
    if address:
        _connect(address, settings)
        return
    # The raylet ends if the agent that sets up its workers takes longer than this to start. Ray allows it 30 s.
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    # The workers of a job need the setup hook above, so those that Ray starts in advance are never used.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    settings = {"include_dashboard": False} | settings
    folder = settings.setdefault("_temp_dir", str(_usable_folder()))
    last_retry_s = time.monotonic() + _RETRY_WITHIN_S
    for tries_left in range(_TRIES - 1, -1, -1):
        problem = _try_start(settings)
        if problem is None:
            return
        # Both come from a machine that is too busy, or from a port that another process took in the meantime.
        is_passing = "timed out" in problem.lower() or problem == _RAYLET_ENDED
        if not (is_passing and tries_left and time.monotonic() < last_retry_s):
            break
    logs = _log_folder(folder)
    if problem == _RAYLET_ENDED and (words := _last_words(logs)):
        problem += f" with: {words}"
    advice = f" Reduce the load of this machine, or give --address of a running cluster. {_AGAIN}" if is_passing else ""
    raise JobError(f"Ray did not start: {problem}.{advice} Ray's logs are in {logs}.")


def _connect(address: str, settings: dict[str, Any]) -> None:
    import ray
    from ray._private.services import canonicalize_bootstrap_address, find_gcs_addresses

    advice = f"Start it, or correct --address. {_AGAIN}"
    outside = f"From outside the cluster send it with asap submit --address http://{{}}:{DASHBOARD_PORT}."
    try:
        found = canonicalize_bootstrap_address(address)  # refuses what is no address
        found = str(found) if address == "auto" else address
        # Ray would try for two minutes, and then end this process without a word.
        host, _, port = found.rpartition("://")[2].rpartition(":")
        if port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:  # ConnectionError is an OSError
        problem = f"no Ray cluster answers at {address}: {_first_line(error)}. {advice}"
        raise JobError(f"{problem} {outside.format('HOST')}" if address == "auto" else problem) from error
    if not find_gcs_addresses():  # Ray would wait for a raylet of this machine
        raise JobError(
            f"a Ray answers at {address}, but this machine is not one of its cluster, and a job joins a cluster on one "
            f"of its machines. Run the command there. {outside.format(host_of(found))}"
        )
    try:
        ray.init(address, **settings)
    except (OSError, ValueError) as error:
        if isinstance(error.__cause__, ray.exceptions.AuthenticationError):
            raise JobError(
                f"the Ray cluster at {address} refuses this process: its token is missing or is not the cluster's. Set "
                f"RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with the cluster's token. {_AGAIN}"
            ) from error
        raise JobError(f"no Ray cluster answers at {address}: {_first_line(error)}. {advice}") from error
    except Exception as error:  # Ray has no class for it
        ray.shutdown()
        raise JobError(f"the Ray cluster at {address} was not joined: {_first_line(error)}. {advice}") from error


def _try_start(settings: dict[str, Any]) -> str | None:
    """Start Ray, or return the reason why it did not start. Nothing of a failed start stays behind."""
    import ray

    try:
        with _hooks(shows_logs=settings["log_to_driver"]) as ports:
            ray.init("local", **(ports | settings))
    except Exception as error:  # Ray has no class for this error
        ray.shutdown()
        return _first_line(error)
    finally:
        if not ray.is_initialized():
            end_processes()
    return None


def _first_line(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__).rstrip(". ")


# The folder of Ray.


def _usable_folder() -> Path:
    """Return the folder for Ray's sessions: Ray's own choice, or a short one if that cannot hold its sockets."""
    from ray._common.utils import get_default_ray_temp_dir

    usual, short = Path(get_default_ray_temp_dir()).absolute(), Path(f"/tmp/ray-{os.getuid()}")  # noqa: S108
    problem = _folder_problem(usual)
    if problem is None:
        return usual
    if _folder_problem(short) is None:
        return short
    raise JobError(
        f"Ray cannot start in {usual}: {problem}, and {short} cannot be used either. Set RAY_TMPDIR to a folder that "
        f"can be written to, with a path of at most {_most_folder_bytes()} bytes. {_AGAIN}"
    )


def _folder_problem(folder: Path) -> str | None:
    """Return the reason why Ray cannot work in the folder, which is created; None if it can."""
    if (length := len(os.fsencode(folder))) > _most_folder_bytes():
        return f"its path has {length} bytes, and Ray's sockets need one of at most {_most_folder_bytes()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"it cannot be written to ({error.strerror})"


def _most_folder_bytes() -> int:
    """Return the longest path of Ray's folder for which the longest path of a socket below it is allowed."""
    name = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    return _MOST_SOCKET_BYTES - len(f"/{name}/sockets/plasma_store")


def _log_folder(folder: str) -> Path:
    """Return the folder with the logs of this process's last session."""
    sessions = sorted(Path(folder).glob(f"session_*_{os.getpid()}"), key=lambda path: path.stat().st_mtime)
    return sessions[-1] / "logs" if sessions else Path(folder)


def _last_words(logs: Path) -> str:
    """Return the last error in the logs of the raylet, without its time and place in the source; empty if none."""
    found = ""
    for name in ("raylet.out", "raylet.err"):
        with suppress(OSError):
            lines = (logs / name).read_text(errors="replace").splitlines()
            found = next((words[1] for line in reversed(lines) if (words := _ERROR_LINE.match(line))), found)
    return found.strip().rstrip(".")


# The processes of Ray.


def session_processes() -> dict[int, str]:
    """Return the command lines of this process's children that serve a Ray session of this process, by id.

    The result is empty on a system without /proc.
    """
    found = {}
    own = re.compile(rf"session_[\d_-]+_{os.getpid()}\b")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # processes end at any time
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                command = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if own.search(command):
                    found[int(stat.parent.name)] = command
    return found


def end_processes() -> None:
    """End the processes of this process's Ray sessions, by their ids. Ray forgets them when a start fails."""
    for number, wait_s in ((signal.SIGTERM, _END_S), (signal.SIGKILL, _END_S)):
        processes = session_processes()
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        deadline = time.monotonic() + wait_s
        while processes and time.monotonic() < deadline and session_processes():
            time.sleep(0.05)
        for process in processes:
            with suppress(ChildProcessError):  # Ray has waited for it
                os.waitpid(process, os.WNOHANG)


@contextmanager
def _hooks(*, shows_logs: bool) -> Iterator[dict[str, Any]]:
    """Make a start of Ray quick and sure, and yield further arguments of `ray.init`.

    - The ports of the agents are fixed. Otherwise the raylet waits for its agents to report their ports, and it dies if
      a busy machine takes 15 s to start them.
    - The server of the dashboard is left out. Without a dashboard it would only report usage, which is off, and Ray
      waits for it.
    - The autoscaler is left out, since this machine is all there is. So is the process that brings what workers print,
      unless `shows_logs`.
    - A raylet that dies ends the start. Ray itself would ask for it for half a minute.
    """
    from ray._private import parameter, services
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    former = parameter.RayParams, services.get_node, services.start_api_server, services.start_ray_process
    agent, listen, environments, metrics = _free_ports(4)
    parameter.RayParams = functools.partial(
        former[0],
        metrics_agent_port=agent,
        dashboard_agent_listen_port=listen,
        runtime_env_agent_port=environments,
        no_monitor=True,
        include_log_monitor=shows_logs,
    )

    def get_node(gcs_address: str, node_id: str) -> Any:
        _await_raylet(gcs_address, node_id)
        return former[1](gcs_address, node_id)

    def start_api_server(include_dashboard: bool | None, *arguments: Any, **options: Any) -> Any:
        return former[2](include_dashboard, *arguments, **options) if include_dashboard else (None, None)

    def start_ray_process(command: list[str], kind: str, *arguments: Any, **options: Any) -> Any:
        # Ray gives this port to the agent, and forgets to give it to the raylet.
        more = [f"--dashboard_agent_listen_port={listen}"] if kind == PROCESS_TYPE_RAYLET else []
        return former[3](command + more, kind, *arguments, **options)

    services.get_node, services.start_api_server = get_node, start_api_server
    services.start_ray_process = start_ray_process
    try:
        yield {"_metrics_export_port": metrics}
    finally:
        parameter.RayParams, services.get_node, services.start_api_server, services.start_ray_process = former


def _await_raylet(gcs_address: str, node_id: str) -> None:
    """Wait until the raylet has registered, for some time. Raises `ChildProcessError` if it ends."""
    from ray.exceptions import RpcError

    # The stubs of this module lack the class.
    client = importlib.import_module("ray._raylet").GcsClient(address=gcs_address)
    deadline = time.monotonic() + _REGISTER_S
    while time.monotonic() < deadline:
        with suppress(RpcError):  # a busy server answers the next time
            nodes = client.get_all_node_info(timeout=_CONNECT_S).values()
            if any(node.node_id.hex() == node_id for node in nodes):
                return
        processes = session_processes()
        if processes and not any("/raylet/raylet " in command for command in processes.values()):
            raise ChildProcessError(_RAYLET_ENDED)
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now, each different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
