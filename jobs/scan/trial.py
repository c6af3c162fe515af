"""The trial of an engine that describes, before a job starts: on this machine, or on the cluster of the job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from asap.errors import ConfigError
from jobs.cluster import describe_waits, ray_running
from jobs.descriptions.engine import Outcome
from jobs.descriptions.loading import located
from jobs.descriptions.pinning import CONTENT, pinned
from jobs.descriptions.probe import Probe, probe, probe_of, read_answer, read_probe, request_of, start_probe
from jobs.descriptions.prompts import chat_prompt, fill
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.vllm_engine import Placement, add_vllm_stages, facts_there, record_of
from jobs.descriptions.vllm_rows import Asked, Written, ask
from jobs.errors import JobDiffers
from jobs.scan.passes import cause_of
from jobs.settings import ClusterSettings
from jobs.sharing import shared
from jobs.stops import in_background

if TYPE_CHECKING:
    from ray.data import Dataset

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
    if settings.engine == "vllm":
        with ray_running(job.address), shared() if job.address else nullcontext():
            found = _try_stages(settings, job, find_room, notify)
    elif job.address is None:
        found = probe(settings, None if job.device == "auto" else job.device)
    else:
        import ray

        # The room that is found stays claimed, or jobs that grow would take it.
        with ray_running(job.address), shared():
            resources, device = find_room()
            reference = start_probe(located(settings), device, resources.cpus, resources.gpus)
            while not ray.wait([reference], timeout=job.stall_after_s)[0]:
                notify(_describe_wait(settings))
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


def _try_stages(settings: DescriptionSettings, job: ClusterSettings, find_room: FindRoom, notify: Notify) -> Probe:
    """Have the stages of vLLM describe, where the work will be. The arguments are as in `try_engine`; Ray runs."""
    import ray

    from jobs.scan.pipeline import data_context

    resources, _ = find_room()
    settings = located(settings)
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1, max_retries=0)(facts_there)
    reference = task.remote(settings.model_dump())
    while not ray.wait([reference], timeout=job.stall_after_s)[0]:
        notify(_describe_wait(settings))
    facts = read_answer(settings, reference)
    settings = pinned(settings, facts)
    machine = facts.pop("machine")

    # A process that dies while it loads the model would die again, for ever.
    placement = Placement(1, resources.cpus, engines=1, restarts=0, is_one_at_a_time=True)
    with data_context(0):
        rows = ray.data.from_arrow(pa.table({"custom_id": [request_of(settings).custom_id]}))
        dataset = add_vllm_stages(rows, partial(_ask_probe, settings=settings), settings, placement, facts.get(CONTENT))
        try:
            with in_background(partial(_describe_probe, dataset, settings)) as described:
                while not described.wait(job.stall_after_s):
                    notify(_describe_wait(settings))
                outcome = described.result
        except ray.exceptions.RayError as error:
            session = ray.get_runtime_context().get_session_name()
            raise ConfigError(describe_failure_at_vllm(settings, error, session)) from error
    found = probe_of(settings, outcome, record_of(settings) | facts)
    return found if job.address is None else replace(found, machine=machine)


def describe_failure_at_vllm(settings: DescriptionSettings, error: Exception, session: str) -> str:
    """Return why vLLM cannot be used, in sentences, and where to read on.

    Args:
        settings: Settings of the engine.
        error: What ended the stages.
        session: Name of the session of Ray, which is a folder of each machine.
    """
    cause = cause_of(error).rstrip(".")
    found = f"the captioner {settings.source} cannot be used by vLLM: {cause}."
    if ConfigError.__name__ in cause:  # it says itself what to do
        return found
    # vLLM loads a model in further processes. Its error says only that one of them failed.
    return (
        f"{found} The logs of Ray on the machine of the model say why: /tmp/ray/{session}/logs, or below the "
        "--temp-dir that Ray was started with. If the memory of the GPU is too small, lower max_model_len, or change "
        "gpu_memory_utilization, in vllm.options."
    )


def _ask_probe(batch: pa.Table, settings: DescriptionSettings) -> pa.Table:
    """Return the request of a probe as a row of vLLM's stages."""
    request, buffer = request_of(settings), BytesIO()
    if request.image is not None:
        request.image.save(buffer, "JPEG")
    return ask(batch, [Asked([0], fill(chat_prompt(settings), request.text), buffer.getvalue() or None)])


def _describe_probe(dataset: Dataset, settings: DescriptionSettings, is_stopped: threading.Event) -> Outcome:
    written = Written(settings)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        written.read(batch)
    return written.describe([request_of(settings)])[0]


def _describe_wait(settings: DescriptionSettings) -> str:
    return describe_waits() or f"{settings.source} has not described anything yet"
