"""The settings with which a job resumes, from its own record. They load no torch; what they are for does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asap.errors import ConfigError
from asap.job_records.status import TRAIN, JobStatus
from asap.storage.files import read_bytes
from jobs.scan.output.job_folder import is_finished

if TYPE_CHECKING:
    from jobs.annotate.settings import AnnotateSettings
    from jobs.scan.settings import ScanSettings
    from jobs.train.settings import TrainSettings


def needs_no_restart(status: JobStatus) -> bool:
    """Return True if the job is finished, to its last file."""
    return status.state == "completed" and (status.kind == TRAIN or is_finished(status.folder))


def scan_settings(status: JobStatus, changes: dict[str, Any]) -> ScanSettings:
    """Return the settings of a scan, with changes. Raises `ConfigError` if they do not work here."""
    from jobs.scan.settings import ScanSettings

    recorded = dict(status.record.get("settings") or {})
    # Paths are recorded as they were typed. The folder is known, and the identity has the whole path of the input.
    recorded |= {"out": str(status.folder.parent), "job": status.folder.name}
    recorded |= {"input": status.record.get("identity", {}).get("settings", {}).get("input", recorded.get("input"))}
    settings = _build(ScanSettings, recorded | changes, status)
    if settings.model != "demo" and not Path(settings.model).is_dir():
        raise ConfigError(
            f"the model of {status.folder} is recorded as {settings.model!r}, and there is no such folder here. Give "
            "--model, or run `asap resume` where the scan was started."
        )
    return settings


def annotate_settings(status: JobStatus, changes: dict[str, Any]) -> AnnotateSettings:
    """Return the settings of a job of annotations, with changes. Raises `ConfigError` if they do not work here."""
    from jobs.annotate.settings import AnnotateSettings

    recorded = dict(status.record.get("settings") or {}) | {"out": str(status.folder)}
    recorded |= {"input": status.record.get("identity", {}).get("settings", {}).get("input", recorded.get("input"))}
    return _build(AnnotateSettings, recorded | changes, status)


def train_settings(status: JobStatus, changes: dict[str, Any]) -> TrainSettings:
    """Return the settings of a training run, with changes. Raises `ConfigError` if they do not work here."""
    from jobs.train.settings import NOT_SETTINGS, TrainSettings

    # train.json has the settings that decide what is learned, with whole paths; run.json has all, as they were typed.
    recorded = json.loads(read_bytes(status.folder / "train.json"))
    identity = {name: value for name, value in recorded.items() if name not in NOT_SETTINGS}
    values = dict(status.record.get("settings") or {}) | identity | {"out": str(status.folder)}
    return _build(TrainSettings, values | changes, status)


def _build(kind: type[Any], values: dict[str, Any], status: JobStatus) -> Any:
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"the record of {status.folder} cannot be used to resume it: {name}: {first['msg']}. Run the command again "
            "that started it."
        ) from error
