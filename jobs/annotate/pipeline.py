"""The stages of a job of annotations: rows are prepared, captioned, and explained; the last stage hands them over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.data import Dataset

from asap.storage.location import Location
from jobs.annotate.known import read_known, start_known
from jobs.annotate.requests import preparation_of
from jobs.annotate.rows import ANNOTATIONS
from jobs.annotate.settings import AnnotateSettings
from jobs.annotate.stage import DescribeStage, Order
from jobs.cluster import wait_for_resources, wait_until_free
from jobs.scan.pipeline import LOST_BATCHES, LOST_ROWS, StageResources, Writing, actor_options
from jobs.scan.stages.prepare import Preparation
from jobs.scan.stages.row_shape import RowShape


@dataclass(frozen=True)
class AnnotatePipeline:
    """The pipeline of a job of annotations (`jobs.scan.pipeline.RowPipeline`)."""

    preparation: Preparation
    orders: tuple[Order, ...]
    """The work of each engine, in the order of the stages."""
    known: Mapping[str, Any]
    """The actors that know what is described, by kind; none for an engine that looks descriptions up."""
    batch_size: int
    writing: Writing
    prepare: StageResources
    describe: tuple[StageResources, ...]
    lost_batches: int = LOST_BATCHES
    shape: RowShape = ANNOTATIONS

    def patient(self) -> AnnotatePipeline:
        """Return the pipeline for rows whose pictures were too slow for their batches."""
        return replace(self, preparation=self.preparation.patient(self.batch_size))

    def one_row_at_a_time(self) -> AnnotatePipeline:
        """Return the pipeline for rows of lost batches: each row alone."""
        alone = tuple(replace(resources, ahead=1) for resources in self.describe)
        return replace(self.patient(), batch_size=1, lost_batches=LOST_ROWS, describe=alone)

    def add_stages(self, prepared: Dataset, counter: Any, writers: Sequence[Any], batches: dict[str, Any]) -> Dataset:
        """Add a stage for each engine; see `RowPipeline.add_stages`."""
        for known in self.known.values():
            known.release.remote()
        for order, resources in zip(self.orders, self.describe, strict=True):
            last = (counter, writers) if order.is_last else (None, ())
            arguments = order, self.known.get(order.settings.kind), *last
            options = actor_options(resources)
            prepared = prepared.map_batches_internal(DescribeStage, fn_constructor_args=arguments, **options, **batches)
        return prepared


def size_annotation(
    settings: AnnotateSettings,
    input: Location,
    rows: int,
    notify: Callable[[str], None] = lambda note: None,
    run_id: str | None = None,
) -> AnnotatePipeline:
    """Return a pipeline for the Ray that runs.

    Raises `ConfigError` if the machines cannot hold the engines, and do not grow in time; `JobError` if they can, but
    other jobs hold them for too long.

    Args:
        settings: Settings of the job.
        input: The input, from which paths in a file of descriptions may start.
        rows: Rows of the manifest.
        notify: Receives a sentence before a wait for the cluster.
        run_id: Id of the run, which the rows name.
    """
    wait_s = settings.wait_for_machines_s if settings.address else 0
    wait = partial(wait_for_resources, waits_for_people=settings.waits_for_people)
    if not settings.device.startswith("cuda"):
        wait({"CPU": 1}, 1, wait_s, notify, "Add a machine with CPUs.")
    machines = ray.cluster_resources()
    on_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and machines.get("GPU", 0) > 0)
    cpus = int(machines.get("CPU", 1))
    prepare = StageResources(0.25, size=None if on_gpu or settings.address else max(1, cpus // 2))
    describe = size_engines(settings, on_gpu=on_gpu, cpus=cpus)
    needs = {"CPU": sum(each.cpus for each in describe), "GPU": sum(each.gpus for each in describe)}
    needs = {name: amount for name, amount in needs.items() if amount}
    wait(needs, 1, wait_s, notify, "Give --device auto, or an engine that needs less.")
    wait_until_free(needs, 1, settings.wait_for_machines_s, notify, beside={"CPU": prepare.cpus})
    return AnnotatePipeline(
        preparation=preparation_of(settings),
        orders=_orders(settings, input, "cuda" if on_gpu else "cpu", cpus, run_id),
        known=_start_known(settings),
        batch_size=settings.batch_size or 64,
        writing=Writing(
            settings.rows_per_file or min(100_000, max(512, rows // 200)),
            settings.write_every_s,
            settings.write_patience_s,
        ),
        prepare=prepare,
        describe=describe,
    )


def size_engines(settings: AnnotateSettings, *, on_gpu: bool, cpus: int) -> tuple[StageResources, ...]:
    """Return the resources of each engine; `cpus` is the number of CPUs that Ray has."""
    models = sum(engine.engine == "transformers" for engine in settings.engines.values())
    sizes = []
    for engine in settings.engines.values():
        if engine.engine != "transformers":
            sizes.append(StageResources(0.1, size=settings.annotators or 1))
        elif on_gpu:  # two models share each GPU
            sizes.append(StageResources(0.5 / models, 1 / models, settings.annotators))
        else:
            size = settings.annotators or 1
            sizes.append(StageResources(round(0.6 * cpus / (models * size), 3), size=size))
    return tuple(sizes)


def _orders(
    settings: AnnotateSettings, input: Location, device: str, cpus: int, run_id: str | None
) -> tuple[Order, ...]:
    """Return the work of each stage. Models on CPUs share the threads that there are CPUs."""
    engines = list(settings.engines.values())
    models = sum(engine.engine == "transformers" for engine in engines) * (settings.annotators or 1)
    threads = max(1, cpus // max(1, models)) if device == "cpu" else None
    job = settings.job_folder.name
    return tuple(
        Order(engine, input, device, threads, job, run_id, is_last=engine is engines[-1]) for engine in engines
    )


def _start_known(settings: AnnotateSettings) -> dict[str, Any]:
    """Start an actor for each engine that writes, with the descriptions that earlier runs of the job wrote."""
    known = {}
    for kind, engine in settings.engines.items():
        order = Order(engine, Location.parse(settings.input))
        if not order.is_lookup:
            rows = settings.job_folder / ANNOTATIONS.folder
            known[kind] = start_known(read_known(rows, kind, with_text=order.prompt_has_text))
    return known
