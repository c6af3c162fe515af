"""The trial of an engine that describes, before a job starts: on this machine, or on the cluster of the job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.cluster import describe_waits, ray_running
from jobs.descriptions.loading import located
from jobs.descriptions.probe import probe, read_probe, start_probe
from jobs.descriptions.settings import DescriptionSettings
from jobs.settings import ClusterSettings
from jobs.sharing import Claim, shared

if TYPE_CHECKING:
    from jobs.scan.pipeline import StageResources

Notify = Callable[[str], None]
FindRoom = Callable[[], tuple["StageResources", str]]
"""Waits until the running Ray has room for the job; returns the resources of the engine, and its device."""


def try_engine(
    settings: DescriptionSettings, job: ClusterSettings, find_room: FindRoom, notify: Notify
) -> dict[str, Any]:
    """Have an engine describe a gray picture or a short text; return its record, with what it wrote.

    Raises `ConfigError` if that fails, and what `find_room` raises. This machine may lack the folder of the model and
    the room for it, so the trial is where the work will be: on the cluster, if the job has one.

    Args:
        settings: Settings of the engine, not of `precomputed`.
        job: The cluster and the device of the job.
        find_room: Called once a cluster is joined.
        notify: Receives a sentence about what is waited for, and about what was written.
    """
    if job.address is None:
        found = probe(settings, None if job.device == "auto" else job.device)
    else:
        import ray

        with ray_running(job.address):
            resources, device = find_room()
            needs = {"CPU": resources.cpus, "GPU": resources.gpus}
            with shared(Claim(needs, needs)):  # else jobs that grow would take the room that was found
                reference = start_probe(located(settings), device, resources.cpus, resources.gpus)
                while not ray.wait([reference], timeout=job.stall_after_s)[0]:
                    notify(describe_waits() or f"{settings.source} has not described anything yet")
                found = read_probe(settings, reference)
    notify(found.sentence(settings))
    where = {} if found.machine is None else {"machine": found.machine}
    return found.record | {"wrote": found.wrote} | where
