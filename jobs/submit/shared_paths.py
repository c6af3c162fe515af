"""Local paths of a submitted command, and whether all machines of the cluster see the same files there.

The machine that submits cannot ask the others for a file. It refuses relative paths, which mean its own folder. On the
cluster each machine looks for the other paths before the command begins, and for a file that is written into OUT.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asap.errors import ConfigError
from asap.storage.location import Location
from jobs.errors import JobError

_READ = ("input", "corpus", "test_corpus", "model", "pictures")
_WRITTEN = "out"
_OWN_FILES = ("log_file", "metrics_targets")
"""Files that the machine with the command writes for itself."""
_LOOK_S = 120.0
"""Seconds that the machines have to look for the paths."""


def local_paths(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the local paths among the settings of a command as they were typed, by the name of the setting.

    Args:
        values: The settings by name. Names of hubs, and the model `demo`, are no paths.
    """
    found = {name: values[name] for name in (*_READ, _WRITTEN) if isinstance(values.get(name), str)}
    if found.get("model") == "demo":
        del found["model"]
    for name in ("captions", "explanations"):
        described = values.get(name)
        if isinstance(described, list):
            found |= {f"{name}[{number}]": path for number, path in enumerate(described)}
        elif described is not None and _is_path(described.engine, described.source):
            found[f"{name}.source"] = described.source
    for number, source in enumerate(values.get("init") or ()):
        path = source.removeprefix("timm:").removeprefix("bert:")
        if source != "demo" and (path == source or Path(path).exists()):
            found[f"init[{number}]"] = path
    return {name: path for name, path in found.items() if not Location.parse(path).is_s3}


def _is_path(engine: str, source: str) -> bool:
    """Return True if the source of captions is a file or folder, and not a name of a hub or of an endpoint."""
    return engine == "precomputed" or (engine == "transformers" and (source.startswith("/") or Path(source).exists()))


def check_whole(typed: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a relative path in the settings, which no other machine can find."""
    own = {name: typed[name] for name in _OWN_FILES if typed.get(name) not in (None, "-")}
    for name, path in (local_paths(typed) | own).items():
        if not path.startswith(("/", "file://")):
            raise ConfigError(
                f"{name} {path!r} is relative to a folder of this machine, and the machines of a cluster do not see "
                "it. Give s3://, or the whole path of a folder that all of them share."
            )


def check_shared(paths: Mapping[str, str]) -> None:
    """Raise `JobError` for a path that a machine of the running Ray does not see as this one does.

    Args:
        paths: Local paths by the name of the setting.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    machines = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0, max_retries=0)(_missing)
    whole = {name: Location.parse(path).uri for name, path in paths.items()}
    with _probe_written(whole.get(_WRITTEN)) as probe:
        wanted = whole | probe
        looks = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False)).remote(wanted)
            for machine in machines
        ]
        seen = ray.get(looks, timeout=_LOOK_S)
    for name, path in paths.items():
        without = [host for host, missing in seen if name in missing]
        if without:
            raise JobError(
                f"{name} {path} is not a folder or file that the whole cluster shares: {len(without)} of "
                f"{len(machines)} machines do not see it, such as {without[0]}. Give s3://, or a folder that all "
                "machines share."
            )


def _missing(paths: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the name of this machine, and the names of the paths that do not exist on it."""
    return socket.gethostname(), [name for name, path in paths.items() if not Path(path).exists()]


@contextmanager
def _probe_written(folder: str | None) -> Iterator[dict[str, str]]:
    """Write a file into the folder for the duration of the block. Folders that are made for it are removed again."""
    if folder is None:
        yield {}
        return
    target = Path(folder)
    if target.is_file() or target.suffix == ".json":  # the policy of a calibration
        target = target.parent
    made = [path for path in (target, *target.parents) if not path.exists()]
    probe = target / f".asap-{secrets.token_hex(8)}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        raise JobError(
            f"{_WRITTEN} {folder} cannot be written to on {socket.gethostname()}, the machine of the cluster that runs "
            f"the command: {error.strerror}. Give s3://, or a folder that all machines share."
        ) from error
    try:
        yield {_WRITTEN: str(probe)}
    finally:
        probe.unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):  # another process has written into it
                path.rmdir()
