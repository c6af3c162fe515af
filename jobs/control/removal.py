"""Delete a job folder, if it is one and nothing works on it. Links are deleted, and what they lead to is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from asap.errors import StorageError
from asap.job_records.record import read_record, read_sign
from asap.job_records.status import REPOLICY, TRAIN, JobStatus, find_status, read_status
from asap.storage.failures import storage_errors
from asap.storage.files import delete_file, delete_folder, is_empty, list_files, list_folders
from asap.storage.location import Location
from jobs.errors import JobError, JobInUse
from jobs.heartbeat import wait_until_still
from jobs.scan.output.job_folder import wait_until_free
from jobs.train.run_folder.folder import RunFolder


def check_deletable(folder: Location, notify: Callable[[str], None] = lambda line: None) -> JobStatus:
    """Return the status of a job that can be deleted.

    Raises `JobError` if the folder is not that of a job, is a link, or holds other jobs; `JobInUse` if a process works
    on the job.
    """
    if not folder.is_s3 and Path(folder.uri).is_symlink():
        raise JobError(f"{folder} is a link to {Path(folder.uri).resolve()}. Delete that folder itself.")
    status = read_status(folder)
    for inner in list_folders(folder):
        if not inner.name.startswith("_") and find_status(inner):
            raise JobError(f"{folder} holds another job, {inner}. Delete or move that one first.")
    check_idle(status, notify)
    return status


def check_idle(status: JobStatus, notify: Callable[[str], None] = lambda line: None) -> None:
    """Raise `JobInUse` if a process works on a job, or gave a sign of life so lately that one may."""
    folder = status.folder
    stale_after_s = float((status.record.get("settings") or {}).get("stale_after_s", 12))
    in_use = f"{folder} is in use: {status.process} works on it. `asap cancel {folder}` stops it."
    if status.kind == TRAIN and status.can_be_cancelled:
        if not status.has_ended:
            try:
                wait_until_still(folder, read_sign(folder), lambda: read_sign(folder), stale_after_s, notify)
            except JobInUse as error:
                raise JobInUse(in_use) from error
        return
    if status.kind == TRAIN:
        if not status.has_ended and not status.is_silent:
            raise JobInUse(
                f"{folder} is in use: its last sign of life is younger than {status.watched_s / 60:.0f} min. Stop "
                "`asap train`; if it died, try again after that time."
            )
        return
    # The process that applies another policy has a record and a heartbeat of its own.
    for at, record in ((folder, status.record), (folder / REPOLICY, read_record(folder / REPOLICY))):
        if record is None or (at == folder and status.is_republished):
            continue
        try:
            wait_until_free(at, record, stale_after_s, notify)
        except JobInUse as error:
            raise JobInUse(in_use) from error


def count_files(folder: Location) -> int:
    """Return the number of files and links that a deletion takes away."""
    if folder.is_s3:
        return sum(1 for _ in list_files(folder))
    walk = os.walk(folder.uri)  # which does not enter links
    return sum(len(files) + sum((Path(parent) / name).is_symlink() for name in names) for parent, names, files in walk)


def delete_job(status: JobStatus) -> None:
    """Delete the folder of a job. Its record goes last, so that a deletion that was stopped can be repeated.

    Raises `StorageError` if something cannot be deleted.
    """
    folder = status.folder
    last = "train.json" if status.kind == TRAIN else "job.json"
    with storage_errors(folder):
        if folder.is_s3:
            for inner in list_folders(folder):
                delete_folder(inner)
            for info in list_files(folder):
                if info.location.name != last:
                    delete_file(info.location)
        else:
            for entry in sorted(Path(folder.uri).iterdir()):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)  # which deletes links, and does not follow them
                elif entry.name != last:
                    entry.unlink()
        delete_folder(folder)
    if not is_empty(folder):
        raise StorageError(
            f"{folder} still holds files: the store refused to delete them, or another process writes them."
        )
    if status.kind == TRAIN and folder.is_s3:
        shutil.rmtree(RunFolder.open(folder.uri).path, ignore_errors=True)  # this machine's copy
