"""The trial of an engine that describes, before a job starts: on this machine, or on the cluster of the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jobs.cluster import describe_waits, ray_running
from jobs.descriptions.loading import located
from jobs.descriptions.pinning import CONTENT, pinned
from jobs.descriptions.probe import probe, read_probe, start_probe
from jobs.descriptions.settings import DescriptionSettings
from jobs.errors import JobDiffers
from jobs.settings import ClusterSettings
from jobs.sharing import shared

if TYPE_CHECKING:
    from jobs.scan.pipeline import StageResources

Notify = Callable[[str], None]
FindRoom = Callable[[], tuple["StageResources", str]]
"""Waits until the running Ray has room for the job; claims it, and returns the resources of the engine, and its
device."""


def try_engine(
    settings: DescriptionSettings,
    job: ClusterSettings,
    find_room: FindRoom,
    notify: Notify,
    former: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Have an engine describe a gray picture or a short text; return its record, with what it wrote.

    Raises `ConfigError` if that fails, `JobDiffers` if an earlier run had another model, and what `find_room` raises.
    This machine may lack the folder of the model and the room for it, so the trial is where the work will be: on the
    cluster, if the job has one.

    Args:
        settings: Settings of the engine, not of `precomputed`.
        job: The cluster and the device of the job.
        find_room: Called once a cluster is joined.
        notify: Receives a sentence about what is waited for, and about what was written.
        former: The record of an earlier run of the job, if there is any. A model on the hub is the commit that it had.
    """
    settings = pinned(settings, former)
    if job.address is None:
        found = probe(settings, None if job.device == "auto" else job.device)
    else:
        import ray

        # The room that is found stays claimed, or jobs that grow would take it.
        with ray_running(job.address), shared():
            resources, device = find_room()
            reference = start_probe(located(settings), device, resources.cpus, resources.gpus)
            while not ray.wait([reference], timeout=job.stall_after_s)[0]:
                notify(describe_waits() or f"{settings.source} has not described anything yet")
            found = read_probe(settings, reference)
    notify(found.sentence(settings))
    began = (former or {}).get(CONTENT)  # records of earlier versions have none
    if began not in (None, found.record.get(CONTENT)):
        raise JobDiffers(
            f"the captioner {settings.source} has changed since the job began: the fingerprint of its files is "
            f"{found.record.get(CONTENT)}, and was {began}. Restore it, or choose another folder for the job."
        )
    where = {} if found.machine is None else {"machine": found.machine}
    return found.record | {"wrote": found.wrote} | where
