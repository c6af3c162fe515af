"""The record of a training run, `run.json`: code, libraries, settings, data, seeds, machines and times.

Paths are recorded as the user typed them. Nothing else in the record shows where a run was made.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from asap.storage.files import write_bytes
from asap.storage.location import Location
from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings

_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "safetensors", "ray", "numpy", "pillow")
_PACKAGE = "asap-ray"


def start_record(
    folder: RunFolder, settings: TrainSettings, data: dict[str, Any] | None = None, run_id: str | None = None
) -> None:
    """Write the record when the run starts or resumes. Records of earlier starts are kept.

    Args:
        folder: The folder of the run.
        settings: The settings as the user gave them.
        data: A description of each split, such as its fingerprint; by default that of the last start.
        run_id: Name of this start in the signs of life of `jobs.train.watch`.
    """
    record = read_record(folder)
    started = {
        "run_id": run_id,
        "started": _now(),
        "state": "running",
        "error": None,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "finished": None,
        "seconds": None,
        "code": code_version(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "hardware": hardware(),
    }
    _write(
        folder,
        {
            "name": settings.name,
            "settings": settings.model_dump(mode="json"),
            "seeds": {"seed": settings.seed},
            "data": data or record.get("data", {}),
            "starts": [*record.get("starts", []), started],
        },
    )


def note_cluster(folder: RunFolder, resources: dict[str, float]) -> None:
    """Add the CPUs, GPUs and accelerators that Ray found on all machines together."""
    kinds = {name.removeprefix("accelerator_type:"): count for name, count in resources.items() if "type:" in name}
    cluster = {"cpus": resources.get("CPU", 0), "gpus": resources.get("GPU", 0), "accelerators": kinds}
    _update_last_start(folder, cluster=cluster)


def finish_record(folder: RunFolder, **entries: Any) -> None:
    """Add when the run ended, how long its last start took, and entries such as the checkpoint of its model."""
    record = read_record(folder)
    started_s = datetime.fromisoformat(record["starts"][-1]["started"]).timestamp()
    seconds = round(time.time() - started_s, 1)
    _update_last_start(folder, state="completed", finished=_now(), seconds=seconds, **entries)


def record_stop(folder: RunFolder, run_id: str, state: str, error: str | None = None) -> None:
    """Add how a start ended before its time: `cancelled`, or `failed` with the reason.

    Another process may have resumed the run by then, so the record is read anew, and only this start is changed.
    """
    folder.pull(folder.record.name)
    record = read_record(folder)
    for start in record.get("starts", []):
        if start.get("run_id") == run_id:
            start |= {"state": state, "error": error}
            _write(folder, record)


def code_version() -> dict[str, Any]:
    """Return the version of the package, with the git commit of the code and whether it was changed since."""
    here = Path(__file__).parent
    version = {"version": metadata.version(_PACKAGE)}
    commit = _git(here, "rev-parse", "HEAD")
    # The package may be installed in an environment that is inside somebody's repository. Its commit is not ours.
    if not commit or _git(here, "ls-files", Path(__file__).name) != Path(__file__).name:
        return version
    return version | {"commit": commit, "changed": bool(_git(here, "status", "--porcelain", "--untracked-files=no"))}


def hardware() -> dict[str, Any]:
    """Return the properties of this machine that affect speed and the last digits of results."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def _git(folder: Path, *words: str) -> str:
    """Return the output of a git command, or an empty string if it fails."""
    try:
        done = subprocess.run(  # noqa: S603  # the words are constants
            ["git", *words],  # noqa: S607  # the git that the user has
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_record(folder: RunFolder) -> dict[str, Any]:
    """Return the record; empty if there is none yet."""
    return dict(json.loads(folder.record.read_text(encoding="utf-8"))) if folder.record.exists() else {}


def _write(folder: RunFolder, record: dict[str, Any]) -> None:
    # `asap status` reads it at any time.
    write_bytes(Location(str(folder.record)), (json.dumps(record, indent=2) + "\n").encode())
    folder.push(folder.record.name)


def _update_last_start(folder: RunFolder, **entries: Any) -> None:
    record = read_record(folder)
    record["starts"][-1] |= entries
    _write(folder, record)
