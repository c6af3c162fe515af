"""With what a run was made: code, libraries, settings, data, seeds and machines, when and for how long; `run.json`.

Places are as they were typed; nothing else in it tells where a run was made.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from jobs.train.run_folder.folder import RunFolder
from jobs.train.settings import TrainSettings

_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "tokenizers", "safetensors", "ray", "numpy", "pillow")
_PACKAGE = "asap-ray"


def start_record(folder: RunFolder, settings: TrainSettings, data: dict[str, Any] | None = None) -> None:
    """Write the record as the run starts or goes on; what was written before stays as the record of a former start.

    settings: as they were given. data: what is known of each split, such as its fingerprint.
    """
    record = _read(folder)
    started = {
        "started": _now(),
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
    """Add what Ray found: the CPUs, GPUs and accelerators of all machines together."""
    kinds = {name.removeprefix("accelerator_type:"): count for name, count in resources.items() if "type:" in name}
    shown = {"cpus": resources.get("CPU", 0), "gpus": resources.get("GPU", 0), "accelerators": kinds}
    _change_last(folder, cluster=shown)


def finish_record(folder: RunFolder, **figures: Any) -> None:
    """Add that the run is over, how long its last start took, and which checkpoint its model is."""
    record = _read(folder)
    began = datetime.fromisoformat(record["starts"][-1]["started"]).timestamp()
    _change_last(folder, finished=_now(), seconds=round(time.time() - began, 1), **figures)


def code_version() -> dict[str, Any]:
    """The git commit that the code lies in, and whether it was changed since; else the package's version."""
    here = Path(__file__).parent
    version = {"version": metadata.version(_PACKAGE)}
    commit = _git(here, "rev-parse", "HEAD")
    # A repository that merely holds the environment in which the package is installed tells nothing of the package.
    if not commit or _git(here, "ls-files", Path(__file__).name) != Path(__file__).name:
        return version
    return version | {"commit": commit, "changed": bool(_git(here, "status", "--porcelain", "--untracked-files=no"))}


def hardware() -> dict[str, Any]:
    """What of this machine bears on speed and on the last digits."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # words of ours only
            ["git", *words],  # noqa: S607  # whichever git the person uses
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(folder.record.read_text(encoding="utf-8"))) if folder.record.exists() else {}


def _write(folder: RunFolder, record: dict[str, Any]) -> None:
    folder.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    folder.push(folder.record.name)


def _change_last(folder: RunFolder, **entries: Any) -> None:
    record = _read(folder)
    record["starts"][-1] |= entries
    _write(folder, record)
